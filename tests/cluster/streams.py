"""Streams as different OpenAI-compatible servers send them, and a small HTTP server that sends any."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any

import msgspec

USAGE = '{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"prompt_tokens_details":null}}'


def event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def delta(content: str) -> str:
    return f'{{"choices":[{{"index":0,"delta":{content},"finish_reason":null}}]}}'


END = event('{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
DONE = event("[DONE]")


@contextmanager
def serving(
    *pieces: bytes | Callable[[], Iterator[bytes]],
    status: int = 200,
    break_off: bool = False,
    models: tuple[str | dict[str, Any], ...] = ("m", "other"),
    asked: list[dict[str, Any]] | None = None,
    headers: list[dict[str, str]] | None = None,
) -> Iterator[str]:
    """Runs a server that answers every request with these pieces, one chunk each; yields its base URL.

    pieces: a function makes its pieces anew for each request. models: that it lists; their names,
    or all that is said of them. asked, headers: get the requests' bodies and headers, these by names in lower case.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if asked is not None:
                asked.append(json.loads(body))
            if headers is not None:
                headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(BrokenPipeError):  # a client that went away
                for piece in chain.from_iterable([each] if isinstance(each, bytes) else each() for each in pieces):
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                if not break_off:
                    self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def do_GET(self) -> None:
            entries = [{"id": model} if isinstance(model, str) else model for model in models]
            content = msgspec.json.encode({"data": entries})
            self.send_response(200 if self.path == "/v1/models" and models else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


KINDS = {
    # Dray, SGLang: every field, null where it does not apply.
    "content null": [
        event(delta('{"role":"assistant","content":null,"reasoning_content":null,"tool_calls":null}')),
        event(delta('{"content":null,"reasoning_content":"hm"}')),
        event(delta('{"content":"so it","reasoning_content":null}')),
        END,
    ],
    # Newer vLLM, Ollama.
    "reasoning": [
        event(delta('{"role":"assistant","content":""}')),
        event(delta('{"content":"","reasoning":"hm"}')),
        event(delta('{"content":"so it"}')),
        END,
    ],
    # Dray with router.thinking_field: both.
    "both fields": [
        event(delta('{"reasoning_content":"hm","reasoning":"hm"}')),
        event(delta('{"content":"so it"}')),
        END,
    ],
    # A first chunk without choices; choices or deltas that are null or missing.
    "no choices": [
        event('{"choices":[],"prompt_filter_results":[]}'),
        event('{"object":"chat.completion.chunk"}'),
        event('{"choices":null}'),
        event('{"choices":[{"index":0,"delta":null,"finish_reason":null}]}'),
        event('{"choices":[{"index":0}]}'),
        event(delta('{"reasoning":"hm"}')),
        event(delta('{"content":"so it"}')),
        END,
    ],
    "comments and other fields": [
        b": OPENROUTER PROCESSING\n\n",
        b"event: message\nid: 1\nretry: 5\n" + event(delta('{"reasoning":"hm"}')),
        b":\n\n\n\n",
        event(delta('{"content":"so it"}')).replace(b"data: ", b"data:").replace(b"\n", b"\r\n"),
        END,
    ],
    "without [DONE]": [event(delta('{"reasoning":"hm"}')), event(delta('{"content":"so it"}')), END],
}
