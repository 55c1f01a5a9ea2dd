"""The judges see faults: in whole answers, in chunks, in events and in errors."""

import json

import pytest

from tests.judges.judge import faults_of

JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
CHUNK = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
}
COMPLETION_CHUNK = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
}
DELTA = {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "a"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
ERROR = {"error": {"message": "m", "type": "t", "param": None, "code": None}}


def events(*bodies: object) -> bytes:
    return b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies) + b"data: [DONE]\n\ndata: {"


def whole(body: object) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "right", "fault"),
    [
        ("POST", "/v1/chat/completions", 200, EVENTS, events(CHUNK), events(CHUNK, CHUNK | {"created": "1"})),
        ("POST", "/v1/completions/", 200, EVENTS, events(COMPLETION_CHUNK), events(COMPLETION_CHUNK | {"id": None})),
        (
            "POST",
            "/v1/responses",
            200,
            EVENTS,
            events(DELTA | {"sequence_number": 1, "delta": "a", "logprobs": []}),
            events(DELTA | {"sequence_number": 1}),
        ),
        (
            "POST",
            "/v1/messages",
            200,
            JSON,
            json.dumps(MESSAGE).encode(),
            json.dumps(MESSAGE | {"role": "user"}).encode(),
        ),
        ("POST", "/v1/chat/completions", 400, JSON, whole(ERROR), b'{"error": {"message": "m"}}'),
        ("GET", "/v1/models", 200, JSON, b'{"object": "list", "data": []}', b'{"object": "list"}'),
        ("POST", "/v1/rerank", 200, JSON, b"{}", b'{"error": 1}'),
    ],
)
def test_a_fault_is_seen(method: str, path: str, status: int, kind: str, right: bytes, fault: bytes) -> None:
    assert faults_of(method, path, status, kind, right) == []
    judged = path != "/v1/rerank"
    assert bool(faults_of(method, path, status, kind, fault)) == judged
