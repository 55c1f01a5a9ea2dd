"""A profile: how long an engine's steps take on one kind of machine, as measured, and a fit for all other steps.

A step's time is modelled as the sum of four parts: the rows that go through the weights (one for each decoding stream
and for each prompt token; interpolated between measured numbers of rows), a part for each decoding stream, and two
parts for attention: over the context of the streams, and over the tokens before the prompt tokens.
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
_NO_LIMIT = 1e9
_RIDGE = 1e-4
_LINEAR_PARTS = 3
"""Parts of a step's time besides that of its rows."""


class ProfileError(Exception):
    """The file is no profile, or none can be measured; the message says why."""


class ProfileRequest(msgspec.Struct, frozen=True):
    """Which model (its settings) to measure, and on which logical CPUs."""

    model: dict[str, object]
    models_dir: str
    cpus: tuple[int, ...]
    data_dir: str


class ProfiledEngine(msgspec.Struct, frozen=True):
    """The engine that was measured. decode_slowdown: as the setting of that name; older profiles are of
    engines without a limit."""

    model: str
    cores: int
    weights_bytes: int
    kv_cache_mb: int
    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    decode_slowdown: float = _NO_LIMIT


class MeasuredStep(msgspec.Struct, frozen=True):
    """A kind of step. decoding: streams. context: tokens of all these streams so far. prefill: prompt tokens. behind:
    for each prompt token the tokens before it in its prompt, added up."""

    decoding: int
    context: int
    prefill: int
    behind: int
    seconds: float


class Profile(msgspec.Struct, frozen=True):
    """The content of a profile file. machine: the names of its CPUs. measured: when."""

    engine: ProfiledEngine
    points: list[MeasuredStep]
    machine: str = ""
    measured: str = ""
    format: int = _FORMAT


def read_profile(path: Path) -> Profile:
    """Reads a profile file. Raises ProfileError, OSError."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except msgspec.DecodeError as error:
        raise ProfileError(f"{path} is no profile: {error}") from None
    if profile.format != _FORMAT or not profile.points:
        raise ProfileError(f"{path} is no profile of this version; create one with `dray plan measure`")
    return profile


@dataclass(frozen=True)
class StepTimes:
    """Predicts the seconds of a step. rows, row_s: numbers of rows, and the times fitted for them. decoding_s,
    context_s, behind_s: seconds for each unit of these."""

    rows: tuple[float, ...]
    row_s: tuple[float, ...]
    decoding_s: float
    context_s: float
    behind_s: float
    error: float
    """Median relative error of the fit over the measured steps."""

    @cached_property
    def _table(self) -> list[float]:
        last = int(self.rows[-1])
        return [float(seconds) for seconds in np.interp(range(last + 1), self.rows, self.row_s)]

    def _seconds_of_rows(self, rows: int) -> float:
        table = self._table
        if rows < len(table):
            return table[rows]
        slope = (self.row_s[-1] - self.row_s[-2]) / (self.rows[-1] - self.rows[-2])
        return table[-1] + slope * (rows - len(table) + 1)

    def step(self, decoding: int, context: int, prefill: int = 0, behind: int = 0) -> float:
        """Seconds of one step, described as in `Point`."""
        rows_s = self._seconds_of_rows(decoding + prefill)
        return rows_s + self.decoding_s * decoding + self.context_s * context + self.behind_s * behind

    def decode(self, decoding: int, context: int, steps: int) -> float:
        """Seconds of consecutive steps that only decode: each adds a token to each stream's context."""
        added_context = decoding * steps * (steps - 1) / 2
        return steps * self.step(decoding, context) + self.context_s * added_context


def fit(points: Sequence[MeasuredStep]) -> StepTimes:
    """Fits step times by least squares over relative errors; a linear part that would be negative is left out.

    Raises ProfileError where the points are too few.
    """
    max_rows = max(point.decoding + point.prefill for point in points)
    knots = [knot for knot in (2**power for power in range(20)) if knot < max_rows] + [max_rows]
    if len(knots) < 2:
        raise ProfileError("a profile needs steps of at least two sizes")
    seconds = np.array([point.seconds for point in points])
    full = np.array(list(_equations(points, knots))) / seconds[:, None]
    used = list(range(_LINEAR_PARTS))
    while True:
        columns = [*range(len(knots)), *(len(knots) + part for part in used)]
        solution = _solve(full[:, columns])
        negative = [part for index, part in enumerate(used) if solution[len(knots) + index] < 0]
        if not negative:
            break
        used.remove(negative[0])
    parts = [0.0] * _LINEAR_PARTS
    for index, part in enumerate(used):
        parts[part] = float(solution[len(knots) + index])
    # More rows never take less time: a measurement that says so is noise.
    row_s = np.maximum.accumulate(solution[: len(knots)])
    coefficients = np.concatenate([row_s, parts])
    error = float(np.median(np.abs(full @ coefficients - 1)))
    return StepTimes(tuple(map(float, knots)), tuple(map(float, row_s)), parts[0], parts[1], parts[2], error)


def _equations(points: Sequence[MeasuredStep], knots: list[int]) -> Iterator[list[float]]:
    """The coefficients of each point: its rows as shares of the two knots around them, then the linear parts."""
    for point in points:
        rows = [0.0] * len(knots)
        size = point.decoding + point.prefill
        upper = max(1, bisect_left(knots, size))
        share = (size - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
        rows[upper - 1], rows[upper] = 1 - share, share
        yield [*rows, float(point.decoding), float(point.context), float(point.behind)]


def _solve(equations: _Matrix) -> _Matrix:
    # Ridge regression: where rows and decoding streams cannot be told apart, it prefers small parts.
    scale = np.linalg.norm(equations, axis=0)
    scale[scale == 0] = 1.0
    scaled = equations / scale
    count = equations.shape[1]
    left = scaled.T @ scaled + _RIDGE * np.eye(count)
    right = scaled.T @ np.ones(len(equations))
    return np.asarray(np.linalg.solve(left, right) / scale)
