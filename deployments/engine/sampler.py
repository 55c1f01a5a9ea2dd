"""Chooses the next token of each stream from the model's logits.

In this order: penalties, biases, and masks; then temperature, min-p, top-k and top-p, each over what the one before has
left (as in vLLM, except that vLLM adds biases before the penalties); then one draw.

A draw is a race: each token gets an exponential random number, which is divided by the token's probability, and the
smallest quotient wins (the Gumbel-max trick). The numbers depend on seed, position and token alone. So a stream that
continues on another replica, or whose guesses are checked, draws what it would have drawn. It nearly always does so too
where logits differ by rounding, because the batch is another one. One number, compared with the running sum of the
probabilities, drew other tokens 6 to 70 times as often in a simulation, as each rounding shifts all limits after it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deployments.common.messages import Sampling, TokenLogprobs
from deployments.engine.logprobs import largest, not_below, positions, token_logprobs
from deployments.engine.sampling_state import SamplingState

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_NEGLIGIBLE = 28.0
"""Tokens this far below the likeliest one, after temperature, are never drawn: all of a large vocabulary's together
are less likely than 1 in 10 million."""
_SORTABLE = 512
"""So few candidates are sorted at once; of more, the unlikely ones are dropped first."""
_WORTHWHILE = 0.75
"""Candidates are dropped for as long as no more than this share of them stays."""
_FEW = 0.01
"""Of a vocabulary: so few candidates are picked out before anything is computed of them."""
_MANY = 4096
"""Of so many random numbers it is quicker to find those that matter first."""
_ROUNDING = np.float32(2**32 * 1.0001)
"""More than rounding changes a quotient by, times 2**32."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Row:
    """Of which stream a row of logits is, and where.

    ahead: guessed tokens between the stream's end and this row. mask: bits of the tokens that a grammar allows, in
    words of 32 (llguidance's format); None: it allows all.
    """

    state: SamplingState
    ahead: Sequence[int] = ()
    mask: NDArray[np.uint32] | None = None

    @property
    def plain(self) -> bool:
        """Whether the largest logit's token is all that is wanted."""
        state = self.state
        return (
            state.greedy
            and state.unchanged
            and self.mask is None
            and state.sampling.top_logprobs is None
            and not state.must_continue(len(self.ahead))
        )


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token of a row. logprobs: of the model itself, before any sampling parameter; None if not requested."""

    token: int
    logprobs: TokenLogprobs | None = None


def sample(logits: Floats, rows: Sequence[Row]) -> list[Sampled]:
    """The next token of each row. A row's token does not depend on the other rows.

    logits: [rows, vocabulary]; changed in place. NaN counts as unlikeliest. Where nothing is allowed, or the model has
    computed nothing but NaN, the token is still one that the mask allows, or else the stream's `end_id`.
    """
    if all(row.plain for row in rows):
        tokens = logits.argmax(axis=1)
        # The argmax of a row with NaN is the first NaN.
        if not np.isnan(logits[np.arange(len(rows)), tokens]).any():
            return [Sampled(token) for token in tokens.tolist()]
    # Infinite logits and penalties of any size are handled, and no reason to warn.
    with np.errstate(all="ignore"):
        return [_sample(values, row) for values, row in zip(logits, rows, strict=True)]


def _sample(logits: Floats, row: Row) -> Sampled:
    state, ahead, sampling = row.state, len(row.ahead), row.state.sampling
    raw = None if sampling.top_logprobs is None else logits.copy()
    state.adjust(logits, row.ahead)
    token = _choose_allowed(logits, row.mask, state, ahead)
    if raw is None or sampling.top_logprobs is None:
        return Sampled(token)
    return Sampled(token, token_logprobs(raw, token, sampling.top_logprobs))


def _choose_allowed(logits: Floats, mask: NDArray[np.uint32] | None, state: SamplingState, ahead: int) -> int:
    if mask is None:
        return _choose(logits, None, state, ahead)
    allowed = np.unpackbits(mask.view(np.uint8), count=logits.size, bitorder="little").view(np.bool_)
    count = np.count_nonzero(allowed)
    if not count:
        return state.end_id
    # Whichever is quicker: to pick out the allowed ones, or to strike the others.
    if count * 2 < logits.size:
        ids = positions(allowed)
        return _choose(logits[ids], ids, state, ahead)
    logits[positions(~allowed)] = -np.inf
    token = _choose(logits, None, state, ahead)
    return token if allowed[token] else int(allowed.argmax())


def _choose(logits: Floats, tokens: Ids | None, state: SamplingState, ahead: int) -> int:
    """The chosen one of these tokens; if it is not drawn, the first of those with equal logits. May change the logits.

    tokens: None: all.
    """
    likeliest = float(logits.max())
    if not math.isfinite(likeliest):
        np.nan_to_num(logits, copy=False, nan=-np.inf, posinf=_LARGEST, neginf=-np.inf)
        likeliest = float(logits.max())
    if state.greedy or likeliest == -math.inf:
        index = int(logits.argmax())
        return index if tokens is None else int(tokens[index])
    candidates, weights = _candidates(logits, likeliest, state.sampling)
    if candidates is not None:
        tokens = candidates if tokens is None else tokens[candidates]
    drawn = _all_tokens(weights.size) if tokens is None else tokens.astype(np.uint32)
    return int(_winner(state, ahead, drawn, weights))


@lru_cache(2)
def _all_tokens(vocabulary: int) -> NDArray[np.uint32]:
    return np.arange(vocabulary, dtype=np.uint32)


def _winner(state: SamplingState, ahead: int, tokens: NDArray[np.uint32], weights: Floats) -> np.uint32:
    """The token with the smallest quotient of its random number and its weight."""
    if tokens.size >= _MANY:
        # Of most tokens it is enough to know that their quotients, times 2**32, are not below these.
        least = state.random_bits(ahead, tokens).astype(np.float32)
        least /= weights
        first = np.array([least.argmin()])
        limit = state.exponentials(ahead, tokens[first]) / weights[first]
        near = positions(least <= limit * _ROUNDING)
        tokens, weights = tokens[near], weights[near]
    winner: np.uint32 = tokens[(state.exponentials(ahead, tokens) / weights).argmin()]
    return winner


def _candidates(logits: Floats, likeliest: float, sampling: Sampling) -> tuple[Ids | None, Floats]:
    """The indices that may be drawn, in ascending order, and their probabilities relative to the likeliest's. None: any
    may be.

    likeliest: the largest logit, which is finite.
    """
    below = _NEGLIGIBLE if sampling.min_p == 0 else min(_NEGLIGIBLE, -math.log(sampling.min_p))
    near = logits >= likeliest - below * sampling.temperature
    candidates = None
    # To pick out most of them takes longer than to go on with all.
    if sampling.min_p or np.count_nonzero(near) < _FEW * logits.size:
        candidates = positions(near)
        logits = logits[candidates]
    if 0 < sampling.top_k < logits.size:
        candidates, logits = _reduced(candidates, logits, largest(logits, sampling.top_k))
    weights = logits - np.float32(likeliest)
    weights *= np.float32(1 / sampling.temperature)
    np.exp(weights, out=weights)
    if sampling.top_p < 1:
        candidates, weights = _nucleus(candidates, weights, sampling.top_p)
    return candidates, weights


def _nucleus(candidates: Ids | None, weights: Floats, top_p: float) -> tuple[Ids | None, Floats]:
    """The fewest candidates of the largest weights that make up this share of all."""
    total = float(weights.sum())
    needed = top_p * total
    while weights.size > _SORTABLE:
        # What is lighter than this weighs less together than may be left out, so all of it is outside.
        kept = positions(weights >= (total - needed) / weights.size)
        if kept.size > _WORTHWHILE * weights.size:
            break
        candidates, weights = _reduced(candidates, weights, kept)
        total = float(weights.sum())
    descending = np.sort(weights)[::-1]
    count = int(descending.cumsum(dtype=np.float64).searchsorted(needed)) + 1
    if count >= weights.size:
        return candidates, weights
    return _reduced(candidates, weights, not_below(descending[count - 1], weights, count))


def _reduced(candidates: Ids | None, values: Floats, kept: Ids) -> tuple[Ids, Floats]:
    return kept if candidates is None else candidates[kept], values[kept]
