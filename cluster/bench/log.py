"""A log of requests, one line of JSON each. `dray plan --trace` reads it."""

import json
from typing import TextIO

from cluster.bench.client import Outcome
from cluster.bench.load import Load
from cluster.bench.workload import Conversation


class RequestLog:
    """Writes finished requests to a file."""

    def __init__(self, file: TextIO, prefix_tokens: int) -> None:
        """prefix_tokens: length of the workload's system prompts."""
        self._file, self._prefix_tokens = file, prefix_tokens
        self._start: float | None = None

    def begin(self, start: float) -> None:
        """A run begins at `start`, on the clock of time.perf_counter; times count from the first one."""
        if self._start is None:
            self._start = start

    def write(self, conversation: Conversation, outcome: Outcome, server: int, load: Load) -> None:
        """Adds a request. Times in seconds; server: its index."""
        tpot = outcome.tpot_s
        line = {
            "at": round(outcome.began - (self._start or 0.0), 6),
            "prompt": outcome.prompt,
            "output": outcome.completion,
            # Only the first turn of a conversation can be repeated by another one.
            "question": "" if len(conversation.prompts) > 1 and conversation.turn else conversation.question,
            "session": conversation.session,
            "prefix": conversation.prefix,
            "prefix_tokens": self._prefix_tokens,
            "server": server,
            "load": str(load),
            "ttft_s": round(outcome.ttft_s, 6),
            "tpot_s": None if tpot is None else round(tpot, 6),
            "seconds": round(outcome.seconds, 6),
            "hit": outcome.hit,
            "error": outcome.error,
        }
        self._file.write(json.dumps(line) + "\n")
