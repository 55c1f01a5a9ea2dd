"""A profile: how long an engine's steps take on one kind of machine, measured, and fitted for all that was not.

A step's time is taken for the sum of four parts: the rows that go through the weights (a decoding stream is one row, a
prompt token too; straight lines between measured numbers of rows), a part for each stream that decodes, and two parts
for attention, over the context of the streams and over what stands before the prompt tokens.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

_Matrix = np.ndarray[Any, np.dtype[np.float64]]

_FORMAT = 1
_RIDGE = 1e-4
_STEADY = 3
"""Parts of a step's time beside that of its rows."""


class ProfileError(Exception):
    """The file is no profile; the message says what is wrong."""


class ProfileRequest(msgspec.Struct, frozen=True):
    """What is to be measured: a model (its settings), on these logical CPUs."""

    model: dict[str, object]
    models_dir: str
    cpus: tuple[int, ...]


class Header(msgspec.Struct, frozen=True):
    """The engine that was measured."""

    model: str
    cores: int
    weights_bytes: int
    kv_cache_mb: int
    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int


class Point(msgspec.Struct, frozen=True):
    """A kind of step. decoding: streams. context: tokens behind all of them. prefill: prompt tokens. behind: of each
    prompt token, the tokens before it in its prompt, added up."""

    decoding: int
    context: int
    prefill: int
    behind: int
    seconds: float


class Profile(msgspec.Struct, frozen=True):
    """As a file holds it. machine: its CPUs, in words."""

    engine: Header
    points: list[Point]
    machine: str = ""
    measured: str = ""
    format: int = _FORMAT


def read_profile(path: Path) -> Profile:
    """Raises ProfileError, OSError."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except msgspec.DecodeError as error:
        raise ProfileError(f"{path} is no profile: {error}") from None
    if profile.format != _FORMAT or not profile.points:
        raise ProfileError(f"{path} is no profile of this version; make one with `dray plan measure`")
    return profile


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step. rows, row_s: measured numbers of rows and their times."""

    rows: tuple[float, ...]
    row_s: tuple[float, ...]
    decoding_s: float
    context_s: float
    behind_s: float
    error: float
    """Median relative error of the fit over what was measured."""

    @cached_property
    def _table(self) -> list[float]:
        last = int(self.rows[-1])
        return [float(one) for one in np.interp(range(last + 1), self.rows, self.row_s)]

    def _of_rows(self, rows: int) -> float:
        table = self._table
        if rows < len(table):
            return table[rows]
        slope = (self.row_s[-1] - self.row_s[-2]) / (self.rows[-1] - self.rows[-2])
        return table[-1] + slope * (rows - len(table) + 1)

    def step(self, decoding: int, context: int, prefill: int = 0, behind: int = 0) -> float:
        """As `Point` has them."""
        rows = self._of_rows(decoding + prefill)
        return rows + self.decoding_s * decoding + self.context_s * context + self.behind_s * behind

    def decode(self, decoding: int, context: int, steps: int) -> float:
        """So many steps one after the other, in which nothing but decoding is done: each adds a token to each
        stream's context."""
        grown = decoding * steps * (steps - 1) / 2
        return steps * self.step(decoding, context) + self.context_s * grown


def fit(points: Sequence[Point]) -> StepTimes:
    """Least squares over relative errors; a part that would come out negative is left out."""
    most = max(point.decoding + point.prefill for point in points)
    knots = [knot for knot in (2**power for power in range(20)) if knot < most] + [most]
    if len(knots) < 2:
        raise ProfileError("a profile needs steps of two sizes at least")
    seconds = np.array([point.seconds for point in points])
    full = np.array(list(_equations(points, knots))) / seconds[:, None]
    kept = list(range(_STEADY))
    while True:
        columns = [*range(len(knots)), *(len(knots) + part for part in kept)]
        found = _solve(full[:, columns])
        negative = [part for place, part in enumerate(kept) if found[len(knots) + place] < 0]
        if not negative:
            break
        kept.remove(negative[0])
    parts = [0.0] * _STEADY
    for place, part in enumerate(kept):
        parts[part] = float(found[len(knots) + place])
    # More rows never take less time; what says otherwise is noise.
    row_s = np.maximum.accumulate(found[: len(knots)])
    solved = np.concatenate([row_s, parts])
    error = float(np.median(np.abs(full @ solved - 1)))
    return StepTimes(tuple(map(float, knots)), tuple(map(float, row_s)), parts[0], parts[1], parts[2], error)


def _equations(points: Sequence[Point], knots: list[int]) -> Iterator[list[float]]:
    for point in points:
        rows = [0.0] * len(knots)
        size = point.decoding + point.prefill
        upper = max(1, bisect_left(knots, size))
        share = (size - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
        rows[upper - 1], rows[upper] = 1 - share, share
        yield [*rows, float(point.decoding), float(point.context), float(point.behind)]


def _solve(equations: _Matrix) -> _Matrix:
    # Where rows and decoding streams cannot be told apart, the smaller parts are taken.
    scale = np.linalg.norm(equations, axis=0)
    scale[scale == 0] = 1.0
    scaled = equations / scale
    count = equations.shape[1]
    left = scaled.T @ scaled + _RIDGE * np.eye(count)
    right = scaled.T @ np.ones(len(equations))
    return np.asarray(np.linalg.solve(left, right) / scale)
