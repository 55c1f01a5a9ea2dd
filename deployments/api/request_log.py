"""The request log: who asked which model what, and the answer, without secrets and personal data. Off by default.

A file of JSON Lines for each day (UTC) in a private folder of data_dir. Files go when they are older than the settings
say, or when all together are too large. Every router of a machine appends to the same files, a line in one write.
"""

import asyncio
import logging
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from cluster.private_files import private_folder
from cluster.redaction import redacted
from cluster.settings import RequestLogSettings
from deployments.common.types import GenerationResult
from deployments.generation.context import RequestContext
from deployments.observability.logs import request_id

log = logging.getLogger("dray.request_log")

REQUESTS_FOLDER = "requests"
"""In data_dir."""
_FLUSH_S = 1.0
_MAX_WAITING = 10_000
_MAX_CHARACTERS = 8_000
"""Of a question, and of an answer."""
_NAME = "requests-{:%Y-%m-%d}.jsonl"


class LoggedRequest(msgspec.Struct, frozen=True):
    """A line of the log. how: as X-Dray-Cache says it. seconds: until the answer was complete."""

    time: str
    request_id: str
    team: str
    model: str
    how: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    question: str
    answer: str


class RequestLog:
    """One router's part of the log. Lines wait in memory for a moment: redaction is no work for the event loop."""

    def __init__(self, settings: RequestLogSettings, folder: Path) -> None:
        """folder: made when the first line is written."""
        self._settings = settings
        self._folder = folder
        self._waiting: list[LoggedRequest] = []
        self._left_out = 0

    def note(self, context: RequestContext, result: GenerationResult, how: str) -> None:
        """Takes an answered request; too many at once are counted instead."""
        if len(self._waiting) >= _MAX_WAITING:
            self._left_out += 1
            return
        request, choice, usage = context.request, result.choices[0], result.usage
        prompt = request.prompt if isinstance(request.prompt, str) else ""
        question = request.messages[-1].content if request.messages else prompt
        self._waiting.append(
            LoggedRequest(
                datetime.now(UTC).isoformat(timespec="milliseconds"),
                request_id.get(),
                context.caller.name,
                context.endpoint.model.name,
                how,
                round(time.perf_counter() - context.started, 3),
                usage.prompt_tokens,
                usage.completion_tokens,
                choice.finish_reason,
                question[: 2 * _MAX_CHARACTERS],
                choice.text[: 2 * _MAX_CHARACTERS],
            )
        )

    async def write_forever(self) -> None:
        """Writes what is noted, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Writes what is noted. A full disk loses lines, which the log stream says."""
        waiting, self._waiting = self._waiting, []
        left_out, self._left_out = self._left_out, 0
        try:
            if waiting:
                await asyncio.to_thread(self._write, waiting)
        except OSError:
            log.exception("the request log cannot be written")
            left_out += len(waiting)
        if left_out:
            log.warning("requests are missing in the request log", extra={"requests": left_out})

    def _write(self, lines: list[LoggedRequest]) -> None:
        private_folder(self._folder)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        for line in lines:
            path = self._folder / _NAME.format(datetime.fromisoformat(line.time))
            descriptor = os.open(path, flags, 0o600)
            try:
                os.write(descriptor, msgspec.json.encode(_without_secrets(line)) + b"\n")
            finally:
                os.close(descriptor)
        self._remove_old()

    def _remove_old(self) -> None:
        """Removes the files of days that are over, and the oldest ones while all are too large."""
        first = _NAME.format(datetime.now(UTC) - timedelta(days=self._settings.keep_days))
        files = sorted(self._folder.glob("requests-*.jsonl"))
        size = sum(path.stat().st_size for path in files)
        for path in files:
            if path.name >= first and size <= self._settings.max_mb * 2**20:
                return
            size -= path.stat().st_size
            path.unlink(missing_ok=True)


def _without_secrets(line: LoggedRequest) -> LoggedRequest:
    # Cut afterwards: half of a number is not recognized.
    question, answer = (redacted(text)[:_MAX_CHARACTERS] for text in (line.question, line.answer))
    return msgspec.structs.replace(line, question=question, answer=answer)
