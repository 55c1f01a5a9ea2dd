"""A stand-in for the HTTP API that S3, OSS and Google Cloud Storage have in common, with faults on demand."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-11-27T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{tag}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


@dataclass
class BucketServer:
    """A running stand-in with one bucket, `models`.

    objects: by key. dropped: keys whose connection closes after half of an answer, with the number of answers.
    listed: wrong sizes to list. replaced: objects that take the others' place after the first listing. refused: HTTP
    status of every answer, if not 0. asked: every request as (path, first byte).
    """

    url: str
    objects: dict[str, bytes] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)
    replaced: dict[str, bytes] = field(default_factory=dict)
    refused: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)

    def put(self, folder: Path, prefix: str) -> None:
        """Uploads the files of a folder."""
        self.objects |= {f"{prefix}/{file.name}": file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def downloads(self, key: str) -> list[int]:
        """The first byte of each download of an object."""
        return [first for path, first in self.asked if path == f"/models/{key}"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: BucketServer

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        url, state = urlsplit(self.path), self.server_state
        path = unquote(url.path)
        first, last = map(int, match.groups()) if (match := self._range()) else (0, 0)
        state.asked.append((path, first))
        if state.refused:
            return self._reply(b"", state.refused)
        if path == "/models":
            return self._list(parse_qs(url.query)["prefix"][0])
        body = state.objects.get(path.removeprefix("/models/"))
        if body is None:
            return self._reply(b"<Error><Code>NoSuchKey</Code></Error>", 404)
        tag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        if self.headers.get("If-Match", f'"{tag}"') != f'"{tag}"':
            return self._reply(b"<Error><Code>PreconditionFailed</Code></Error>", 412)
        headers = {"ETag": f'"{tag}"', "Last-Modified": "Fri, 27 Nov 2026 00:00:00 GMT"}
        part = body[first : last + 1] if match else body
        if match:
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(body)}"
        key = path.removeprefix("/models/")
        half = state.dropped.get(key, 0) > 0
        if half:
            state.dropped[key] -= 1
        return self._reply(part, 206 if match else 200, headers, half)

    def _range(self) -> re.Match[str] | None:
        return re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))

    def _list(self, prefix: str) -> None:
        state = self.server_state
        entries = [
            _ENTRY.format(
                key=escape(key),
                tag=hashlib.md5(body, usedforsecurity=False).hexdigest(),
                size=state.listed.get(key, len(body)),
            )
            for key, body in state.objects.items()
            if key.startswith(prefix)
        ]
        state.objects |= state.replaced
        text = f"<ListBucketResult><Name>models</Name>{''.join(entries)}<IsTruncated>false</IsTruncated>"
        self._reply(f"{text}</ListBucketResult>".encode(), headers={"Content-Type": "application/xml"})

    def _reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, half: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.close_connection = True


@contextmanager
def bucket_server() -> Iterator[BucketServer]:
    """Runs the stand-in on loopback during the block."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running = BucketServer(f"http://127.0.0.1:{server.server_address[1]}")
    handler.server_state = running  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield running
    server.shutdown()
    server.server_close()
