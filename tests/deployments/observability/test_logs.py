"""The format of log lines."""

import json
import logging

from deployments.observability.logs import JsonLines, request_id


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
