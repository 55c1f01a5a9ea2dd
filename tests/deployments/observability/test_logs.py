"""The format of log lines."""

import json
import logging

from deployments.observability.logs import JsonLines, LineLimit, request_id, safe_id


def test_a_line_is_one_json_object_with_the_request_and_the_extra_fields() -> None:
    record = logging.makeLogRecord({"name": "dray.x", "levelname": "WARNING", "msg": "line\nbreak %s", "args": ("é",)})
    record.model = "m"
    record._ray_timestamp_ns = 1
    token = request_id.set("r-1")
    try:
        text = JsonLines().format(record)
    finally:
        request_id.reset(token)
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "dray.x",
        "message": "line\nbreak é",
        "request_id": "r-1",
        "model": "m",
    }
    assert "request_id" not in json.loads(JsonLines().format(record))


def test_lines_are_limited_and_those_left_out_counted() -> None:
    now = [0.0]
    limit = LineLimit(3, 1.0, clock=lambda: now[0])
    assert [limit.admit() for _ in range(5)] == [0, 0, 0, None, None]
    now[0] = 1.0
    assert [limit.admit() for _ in range(2)] == [2, None]
    now[0] = 100.0
    assert [limit.admit() for _ in range(4)] == [1, 0, 0, None], "a quiet time allows no more than the first burst"


def test_an_id_from_a_client_cannot_fill_or_forge_a_log() -> None:
    assert safe_id(b"req-1_a.b:c") == "req-1_a.b:c"
    assert safe_id(b"x" * 8000) == "x" * 64
    assert safe_id(b'a\n{"level": "error"}\xe9') == "alevel:error"
