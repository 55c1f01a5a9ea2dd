"""What sampling knows of one stream: its parameters, and which tokens it has had."""

import secrets
from collections.abc import Iterable, Sequence, Set
from hashlib import blake2b
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from deployments.common.messages import Sampling, StreamFinish

_COUNTER = Struct("<QQ")
_KEYS = Struct("<II")
_ABOVE_MINUS_ONE = np.nextafter(np.float32(-1), np.float32(0))
_64_BITS = 2**64 - 1
_MIN_TEMPERATURE = 1e-5
"""Below it, sampling is greedy, as in vLLM: dividing by less means nothing in 32 bits."""


class SamplingState:
    """What sampling knows of one stream.

    position: tokens so far, prompt included. completion_tokens: those generated, here or by an engine before.
    """

    __slots__ = (
        *("_bias", "_bias_ids", "_completion", "_everything", "_held_back", "_seed", "_stop_ids"),
        *("completion_tokens", "end_id", "greedy", "position", "sampling", "unchanged"),
    )

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int], generated_tokens: int, stop_ids: Set[int], vocabulary: int
    ) -> None:
        """prompt_ids: all tokens so far; the last `generated_tokens` of them belong to the completion. stop_ids: those
        of the model. vocabulary: number of logits; no token of the prompt may be outside it."""
        self.sampling = sampling
        self.position = len(prompt_ids)
        self.completion_tokens = generated_tokens
        self.end_id = min(stop_ids, default=0)
        """The token for a stream that no token can continue."""
        # ignore_eos ignores the model's own stop tokens, but not those of the request.
        self._stop_ids = {*sampling.stop_ids, *(() if sampling.ignore_eos else stop_ids)}
        self._held_back = np.array([token for token in self._stop_ids if 0 <= token < vocabulary], np.int64)
        bias = {token: value for token, value in sampling.logit_bias if 0 <= token < vocabulary}
        self._bias_ids = np.array(list(bias), np.int64)
        self._bias = np.array(list(bias.values()), np.float32)
        repeats = sampling.repetition_penalty != 1
        counts = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._everything = TokenCounts(prompt_ids) if repeats else None
        self._completion = TokenCounts(prompt_ids[len(prompt_ids) - generated_tokens :]) if counts else None
        self._seed = (secrets.randbits(64) if sampling.seed is None else sampling.seed) & _64_BITS
        self.greedy = sampling.temperature < _MIN_TEMPERATURE
        """Whether the likeliest token is chosen, rather than one drawn."""
        self.unchanged = not (repeats or counts or bias)
        """Whether neither penalties nor biases change the logits."""

    def append(self, token: int) -> None:
        """Adds a token to the completion."""
        self.position += 1
        self.completion_tokens += 1
        self._count(token)

    def finish_reason(self, token: int) -> StreamFinish:
        """Why the completion ends with this token, which is to be appended next; "" if it continues.

        A stop token is part of the completion like any other.
        """
        if token in self._stop_ids:
            return "stop"
        return "length" if self.completion_tokens + 1 >= self.sampling.max_tokens else ""

    def must_continue(self, ahead: int) -> bool:
        """Whether `min_tokens` forbids an end after this many more tokens."""
        return self.completion_tokens + ahead < self.sampling.min_tokens and self._held_back.size > 0

    def adjust(self, logits: NDArray[np.float32], ahead: Sequence[int]) -> None:
        """Applies penalties and biases to a row of logits, and holds stop tokens back until `min_tokens`.

        ahead: guessed tokens between the completion's end and the row, which count as if they were in it.
        """
        if not self.unchanged:
            for token in ahead:
                self._count(token)
            self._penalize(logits)
            for token in reversed(ahead):
                self._uncount(token)
            logits[self._bias_ids] += self._bias
        if self.must_continue(len(ahead)):
            logits[self._held_back] = -np.inf

    def exponentials(self, ahead: int, tokens: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Random numbers of the standard exponential distribution, one for each of these tokens, for the place after
        `ahead` more. Each depends on the seed, the position, and its token alone."""
        uniform = self.random_bits(ahead, tokens).astype(np.float32)
        uniform += np.float32(0.5)
        uniform *= np.float32(-(2.0**-32))
        # Of small numbers log1p keeps all digits, and the smallest are those that win for unlikely tokens.
        numbers: NDArray[np.float32] = -np.log1p(np.maximum(uniform, _ABOVE_MINUS_ONE))
        return numbers

    def random_bits(self, ahead: int, tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """What the numbers of `exponentials` are made from, each no less than its bits divided by 2**32."""
        counter = _COUNTER.pack(self._seed, self.position + ahead)
        factor, offset = _KEYS.unpack(blake2b(counter, digest_size=_KEYS.size).digest())
        hashed: NDArray[np.uint32] = tokens * np.uint32(factor | 1)
        hashed += np.uint32(offset)
        # MurmurHash3's finalizer.
        shifted = hashed >> np.uint32(16)
        for shift, multiplier in ((13, 0x85EBCA6B), (16, 0xC2B2AE35)):
            hashed ^= shifted
            hashed *= np.uint32(multiplier)
            np.right_shift(hashed, np.uint32(shift), out=shifted)
        hashed ^= shifted
        return hashed

    def _penalize(self, logits: NDArray[np.float32]) -> None:
        """Repetition: CTRL's (arXiv:1909.05858), over prompt and completion. Frequency and presence: OpenAI's, over
        the completion."""
        sampling = self.sampling
        if self._everything is not None:
            values = logits[ids := self._everything.ids]
            penalty = np.float32(sampling.repetition_penalty)
            logits[ids] = np.where(values > 0, values / penalty, values * penalty)
        if self._completion is not None:
            penalties = sampling.frequency_penalty * self._completion.counts + sampling.presence_penalty
            logits[self._completion.ids] -= penalties.astype(np.float32)

    def _count(self, token: int) -> None:
        for counts in (self._everything, self._completion):
            if counts is not None:
                counts.add(token)

    def _uncount(self, token: int) -> None:
        for counts in (self._everything, self._completion):
            if counts is not None:
                counts.undo(token)


class TokenCounts:
    """How often each token occurs, for the tokens that do: a text has far fewer than a vocabulary."""

    __slots__ = ("_counts", "_ids", "_index", "_size")

    def __init__(self, tokens: Iterable[int]) -> None:
        self._ids, self._counts = np.unique(np.fromiter(tokens, np.int64), return_counts=True)
        self._index = {token: index for index, token in enumerate(self._ids.tolist())}
        self._size = self._ids.size

    @property
    def ids(self) -> NDArray[np.int64]:
        """The tokens that occur, each once."""
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of `ids` occurs."""
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        """Counts one more."""
        index = self._index.setdefault(token, self._size)
        if index == self._size:
            if index == self._ids.size:
                room = np.zeros(max(16, index), np.int64)
                self._ids, self._counts = np.append(self._ids, room), np.append(self._counts, room)
            self._ids[index], self._counts[index] = token, 0
            self._size += 1
        self._counts[index] += 1

    def undo(self, token: int) -> None:
        """Takes the token back that was added last."""
        index = self._index[token]
        self._counts[index] -= 1
        if not self._counts[index]:
            self._size -= 1
            del self._index[token]
