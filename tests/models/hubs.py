"""Stand-ins for the HTTP APIs of the two hubs, for the hubs' own clients, with faults on demand."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "a-token-that-may-read"


@dataclass
class Repository:
    """A repository: its files by path.

    gated: readable only with TOKEN. spoiled: paths served with a wrong byte, with the number of requests. dropped:
    paths whose connection closes after half the bytes, with the number of requests. listed: wrong sizes to list.
    added: files that appear after the first listing.
    """

    files: dict[str, bytes]
    gated: bool = False
    spoiled: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)
    added: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Repository":
        return cls({file.name: file.read_bytes() for file in folder.iterdir() if file.name != "dray-model.json"})


@dataclass
class StandIn:
    """A running stand-in. asked: every request as (method, path, first byte requested)."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def downloads(self, path: str) -> list[int]:
        """The first byte of each download of a file."""
        return [first for method, where, first in self.asked if method == "GET" and path in where]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        first = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.stand_in.asked.append((self.command, unquote(self.path), first))
        self.route(urlsplit(self.path), first)

    def route(self, url: Any, first: int) -> None:
        raise NotImplementedError

    def refuse(self, status: int, code: str, body: dict[str, Any] | None = None) -> None:
        self.reply(
            json.dumps(body or {"error": code}).encode(), status, {"X-Error-Code": code, "X-Error-Message": code}
        )

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, half: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.close_connection = True
            self.connection.close()

    def content(self, repository: Repository, path: str, first: int, headers: dict[str, str]) -> None:
        body, half = repository.files[path], False
        if self.command == "GET":
            if repository.spoiled.get(path, 0):
                repository.spoiled[path] -= 1
                body = bytes([body[0] ^ 1]) + body[1:]
            elif half := repository.dropped.get(path, 0) > 0:
                repository.dropped[path] -= 1
        if first:
            headers |= {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
        self.reply(body[first:], 206 if first else 200, headers | {"Accept-Ranges": "bytes"}, half)


class _HuggingFace(_Handler):
    def route(self, url: Any, first: int) -> None:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", url.path):
            if (repository := self.stand_in.repositories.get(match[1])) is None:
                return self.refuse(404, "RepoNotFound")
            siblings = [self._sibling(repository, path) for path in repository.files]
            repository.files |= repository.added
            return self.reply(json.dumps({"id": match[1], "sha": COMMIT, "siblings": siblings}).encode())
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path)
        repository = self.stand_in.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            return self.refuse(404, "RepoNotFound")
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(403, "GatedRepo")
        path = unquote(match[3])
        if path not in repository.files:
            return self.refuse(404, "EntryNotFound")
        etag = f'"{hashlib.sha256(repository.files[path]).hexdigest()}"'
        return self.content(repository, path, first, {"ETag": etag, "X-Repo-Commit": COMMIT})

    @staticmethod
    def _sibling(repository: Repository, path: str) -> dict[str, Any]:
        body = repository.files[path]
        size = repository.listed.get(path, len(body))
        entry = {"rfilename": path, "size": size}
        if path.endswith((".bin", ".safetensors")):
            return entry | {"lfs": {"sha256": hashlib.sha256(body).hexdigest(), "size": size, "pointerSize": 130}}
        blob = hashlib.sha1(f"blob {len(body)}\0".encode() + body, usedforsecurity=False)
        return entry | {"blobId": blob.hexdigest()}


class _ModelScope(_Handler):
    def route(self, url: Any, first: int) -> None:
        match = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", url.path)
        repository = self.stand_in.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            return self.refuse(404, "", {"Code": 10010205001, "Message": "no such model", "Success": False})
        if repository.gated and TOKEN not in self.headers.get("Cookie", "") + self.headers.get("Authorization", ""):
            return self.refuse(403, "", {"Code": 403, "Message": "forbidden", "Success": False})
        if match[2]:
            files = [
                {
                    "Path": path,
                    "Name": path,
                    "Type": "blob",
                    "Size": repository.listed.get(path, len(body)),
                    "Sha256": hashlib.sha256(body).hexdigest(),
                }
                for path, body in repository.files.items()
            ]
            repository.files |= repository.added
            body = {"Code": 200, "Data": {"Files": files}, "Success": True}
            return self.reply(json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        path = parse_qs(url.query)["FilePath"][0]
        return self.content(repository, path, first, {})


@contextmanager
def stand_in(hub: str) -> Iterator[StandIn]:
    """Runs a hub on loopback during the block. hub: huggingface or modelscope."""
    kind = _HuggingFace if hub == "huggingface" else _ModelScope
    handler = type("Handler", (kind,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running = StandIn(f"http://127.0.0.1:{server.server_address[1]}")
    handler.stand_in = running  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield running
    server.shutdown()
    server.server_close()
