"""A recorded load in columns, so that a day of ten million requests fits into memory."""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cluster.plan.load import LoadError, TraceRequest

_MAX_NUMBER_DIGITS = 18
_TOGETHER = 10_000
"""Requests that are put into the columns together: a step for each column, not for each request."""
_READ_BYTES = 1 << 20
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Integers = np.ndarray[Any, np.dtype[np.int64]]
_Keys = np.ndarray[Any, np.dtype[np.uint64]]


class _Logged(TraceRequest, frozen=True):
    """A line of `dray bench --log`. Lines with an error or of the server are left out."""

    error: str = ""
    server: int = 0


class Trace:
    """Requests, sorted by time. Questions, sessions and prefixes are kept as 64-bit keys; 0 for none."""

    def __init__(self, requests: Iterable[TraceRequest]) -> None:
        """requests: in any order; at least one."""
        at, columns = array("d"), [array(kind) for kind in ("i", "i", "i", "q", "q", "q")]
        prompts, outputs, prefix_tokens, questions, sessions, prefixes = columns
        left = iter(requests)
        while some := list(islice(left, _TOGETHER)):
            at.extend([request.at for request in some])
            prompts.extend([request.prompt for request in some])
            outputs.extend([request.output for request in some])
            prefix_tokens.extend([request.prefix_tokens for request in some])
            questions.extend(_keys([request.question for request in some]))
            sessions.extend(_keys([request.session for request in some]))
            prefixes.extend(_keys([request.prefix for request in some]))
        order = np.argsort(np.frombuffer(at), kind="stable")
        self.at: _Floats = np.frombuffer(at)[order]
        """Seconds."""
        self._prompt, self._output, self._prefix_tokens = (
            np.frombuffer(column, np.int32)[order] for column in columns[:3]
        )
        self._question, self._session, self._prefix = (np.frombuffer(column, np.int64)[order] for column in columns[3:])
        self._place = self._places()

    def __len__(self) -> int:
        return len(self.at)

    @property
    def bytes_per_request(self) -> int:
        """Memory that a request takes."""
        return sum(column.itemsize for column in vars(self).values())

    def requests(self, begin: float, end: float, share: float = 1.0) -> Iterator[TraceRequest]:
        """A share of the requests between two times: all requests of a question or a conversation, or none."""
        first, last = np.searchsorted(self.at, begin, "left"), np.searchsorted(self.at, end, "right")
        chosen: Iterable[int] = range(first, last)
        if share < 1:
            chosen = first + np.flatnonzero(self._place[first:last] < share)
        for row in chosen:
            yield TraceRequest(
                float(self.at[row]),
                int(self._prompt[row]),
                int(self._output[row]),
                int(self._question[row]) or "",
                int(self._session[row]) or "",
                int(self._prefix[row]) or "",
                int(self._prefix_tokens[row]),
            )

    def busiest_stretch(self, seconds: float) -> tuple[float, float]:
        """Start and end of the stretch of this length with the most tokens."""
        total = np.concatenate([[0], np.cumsum(self._prompt + self._output, dtype=np.int64)])
        first = np.searchsorted(self.at, self.at - seconds, "left")
        begin = float(self.at[first[np.argmax(total[1:] - total[first])]])
        return begin, begin + seconds

    def _places(self) -> _Floats:
        """For each request a number from 0 to 1, which requests of one question or one conversation have in common."""
        with np.errstate(over="ignore"):
            numbers = np.arange(len(self), dtype=np.int64) - np.iinfo(np.int64).max // 2
            groups = np.where(self._question != 0, self._question, numbers)
            if (rows := np.flatnonzero(self._session)).size:
                # A conversation belongs where its first request does.
                _, first, inverse = np.unique(self._session[rows], return_index=True, return_inverse=True)
                groups[rows] = groups[rows[first]][inverse]
            return _mixed(groups.astype(np.uint64)) / float(2**64)


def _mixed(keys: _Keys) -> _Keys:
    """Numbers without a pattern from numbers that may have one (the finalizer of splitmix64)."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _key(name: int | str) -> int:
    """A number for a name; 0 for "". Numbers and their texts have the same."""
    if name == "":
        return 0
    if isinstance(name, int) and 0 <= name < 10**_MAX_NUMBER_DIGITS:
        return name + 1
    text = str(name)
    if text.isascii() and text.isdigit() and len(text) <= _MAX_NUMBER_DIGITS:
        return int(text) + 1
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True) or 1


def _keys(names: Sequence[int | str]) -> list[int]:
    """A number for each name. Most columns of a trace have one name for all requests, or none."""
    if len(different := set(names)) == 1:
        return [_key(different.pop())] * len(names)
    return [_key(name) for name in names]


def read_trace(path: Path) -> Trace:
    """Reads JSON Lines, as `dray bench --log` writes them or with `at`, `prompt` and `output` alone, without failed
    requests.

    Raises LoadError, OSError.
    """
    trace = Trace(_requests(path))
    if not len(trace):
        raise LoadError(f"{path} contains no requests")
    return trace


def _requests(path: Path) -> Iterator[TraceRequest]:
    """Decodes many lines at once: one after the other takes three times as long."""
    decoder, before = msgspec.json.Decoder(_Logged), 0
    with path.open("rb") as file:
        while lines := file.readlines(_READ_BYTES):
            try:
                requests = decoder.decode_lines(b"".join(lines))
            except msgspec.DecodeError:
                raise _first_error(path, lines, before, decoder) from None
            requests = [request for request in requests if not request.error and not request.server]
            if not all(map(_is_possible, requests)):
                raise _first_error(path, lines, before, decoder)
            yield from requests
            before += len(lines)


def _is_possible(request: TraceRequest) -> bool:
    return request.prompt >= 1 and request.output >= 1 and 0 <= request.at < math.inf


def _first_error(path: Path, lines: list[bytes], before: int, decoder: msgspec.json.Decoder[_Logged]) -> LoadError:
    """What is wrong with the first faulty line of some. before: lines before these."""
    for number, line in enumerate(lines, before + 1):
        try:
            request = decoder.decode(line) if line.strip() else None
        except msgspec.DecodeError as error:
            return LoadError(f"{path}, line {number}: {error}")
        if request and not request.error and not request.server and not _is_possible(request):
            return LoadError(f"{path}, line {number}: prompt and output must be at least 1 token, and `at` at least 0")
    return LoadError(f"{path}: the lines from {before + 1} to {before + len(lines)} cannot be read")
