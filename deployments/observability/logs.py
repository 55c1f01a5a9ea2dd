"""Logs: one JSON object a line on standard error, with the request's id and the id of its trace."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar

from deployments.observability.tracing import current, trace_id

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this task serves; empty outside of requests."""

_MAX_ID_CHARS = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9._:-]")
_LOGGERS = ("dray", "opentelemetry")
"""Dray's own, and the one that reports why traces could not be exported."""
_RECORD_FIELDS = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
"""Attributes that every log record has; all others were passed as `extra`."""


class LineLimit:
    """Lets a number of lines through at once and then some per second, so that clients cannot fill the disk."""

    def __init__(self, burst: int, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._allowed, self._at = float(burst), clock()
        self._left_out = 0

    def admit(self) -> int | None:
        """None to leave the line out; otherwise the number of lines that were left out since the last one."""
        now = self._clock()
        self._allowed = min(self._burst, self._allowed + (now - self._at) * self._per_s)
        self._at = now
        if self._allowed < 1:
            self._left_out += 1
            return None
        self._allowed -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out


def safe_id(sent: bytes) -> str:
    """A request's id as its client sent it, without what does not belong into a log: at most 64 plain characters."""
    return _UNSAFE.sub("", sent[:_MAX_ID_CHARS].decode("latin-1"))


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, and the fields passed as `extra`.

    Callers never pass a prompt, an answer or an API key; `log_prompts` is the one exception, and a setting.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := request_id.get():
            line["request_id"] = identity
        if trace := trace_id(current.get()):
            line["trace_id"] = trace
        # Ray adds a private field to every record.
        extra = {
            name: value for name, value in record.__dict__.items() if name not in _RECORD_FIELDS and name[0] != "_"
        }
        line |= extra
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str) -> None:
    """Sends this process's `dray` and `opentelemetry` logs to standard error as JSON lines.

    level: the lowest level to log, such as "info".
    """
    # Serve replaces sys.stderr by a buffer of a thousand records (ray 2.60, throughput mode).
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonLines())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
