"""Log probabilities of tokens, as the model itself gives them: before temperature, penalties, biases and masks.

So they are comparable between requests, and say something of greedy answers too. vLLM's default is the same.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deployments.common.messages import TokenLogprobs

_LOWEST = -9999.0
"""Stands for impossible, as in vLLM: JSON has no infinity."""
_LONG = 4096
_ROWS = 64
_EIGHT = np.arange(8)
_LARGEST = float(np.finfo(np.float32).max)


def token_logprobs(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprobs:
    """Of a token, and of the `top` most likely ones, the most likely first. logits: one row; unchanged."""
    if not np.isfinite(likeliest := logits.max()):
        logits = np.nan_to_num(logits, nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)
        likeliest = logits.max()
    with np.errstate(over="ignore"):
        total = float(np.exp(logits - likeliest).sum())
    normalizer = float(likeliest) + float(np.log(total))

    def logprob(index: int) -> float:
        return max(float(logits[index]) - normalizer, _LOWEST)

    best = largest(logits, top).tolist() if top else []
    best.sort(key=lambda index: (-logits[index], index))
    return TokenLogprobs(logprob(token), tuple((index, logprob(index)) for index in best))


def next_token_logprobs(logits: NDArray[np.float32], tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Of the token that follows each row, and of the `top` most likely ones there. logits: [rows, vocabulary];
    unchanged."""
    return [token_logprobs(row, token, top) for row, token in zip(logits, tokens, strict=True)]


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The indices of the largest values, in ascending order; of equal values, those of the lowest index."""
    if count >= values.size:
        return np.arange(values.size)
    # Of a table of all values, `count` columns have a value that is not below this one, so the largest are not either.
    columns = values[: values.size - values.size % _ROWS].reshape(_ROWS, -1)
    if values.size >= _LONG and count < columns.shape[1]:
        maxima = columns.max(axis=0)
        near = positions(values >= np.partition(maxima, maxima.size - count)[maxima.size - count])
        if near.size < values.size:
            return near[largest(values[near], count)]
    return not_below(np.partition(values, values.size - count)[values.size - count], values, count)


def not_below(limit: np.float32, values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The same where the smallest of the largest values is known."""
    kept = positions(values >= limit)
    if kept.size > count:
        surplus = kept[values[kept] == limit][count - kept.size :]
        kept = np.setdiff1d(kept, surplus, assume_unique=True)
    return kept


def positions(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where the array is true. Fast where that is rare: skips eight at a time."""
    if chosen.size % 8 or chosen.size < _LONG:
        return chosen.nonzero()[0]
    words = (chosen.view(np.uint64) != 0).nonzero()[0]
    if words.size * 8 > chosen.size // 4:
        return chosen.nonzero()[0]
    near: NDArray[np.int64] = (words[:, np.newaxis] * 8 + _EIGHT).ravel()
    found: NDArray[np.int64] = near[chosen[near]]
    return found
