"""When a prompt may join the running batch: never while it would share an incomplete KV block with another sequence.

OpenVINO GenAI 2026.4 gives a new prompt whole cached blocks, but also a partly filled block in which another sequence
ended or is still writing. Two sequences that continue from the same partly filled block both write into it. In
addition, a block is registered under all its tokens before they are computed. Both faults produced wrong texts, and
then wrong texts for every later prompt with that prefix. So a prompt waits here for a few steps:

- while a running sequence is a prefix of it that ends within a block;
- while a sequence in its prefill continues from the same partly filled block as it would;
- while a sequence in its prefill shares whole blocks with it that are not cached yet, so they are computed only once;
- while the next step is full.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from deployments.common.prefix import BLOCK_TOKENS, PrefixMirror, block_keys, keys_of


class RunningSequence(Protocol):
    """A sequence in the pipeline.

    tokens: prompt and generated tokens. keys: block keys of the prompt. prefilled: whether a token was generated.
    namespace: of the request.
    """

    tokens: list[int]
    keys: list[bytes]
    prefilled: bool
    namespace: str


class Admission:
    """Decides when a prompt may join, from the cached blocks and the running sequences."""

    def __init__(self, blocks: int, step_tokens: int) -> None:
        """blocks: capacity of the KV cache. step_tokens: maximum tokens in one step."""
        self._prefixes = PrefixMirror(blocks)
        self._own_prefixes = PrefixMirror(blocks)
        """The same blocks, each under the namespaces that have used it."""
        self._tails = _PartialBlocks(blocks)
        self._step_tokens = step_tokens
        self._prefill_backlog = 0

    @property
    def full(self) -> bool:
        """Whether the next step has no room for another prompt."""
        return self._prefill_backlog >= self._step_tokens

    def must_wait(self, prompt: Sequence[int], keys: Sequence[bytes], running: Iterable[RunningSequence]) -> bool:
        """Whether the prompt must wait for one of the running sequences. keys: its block keys."""
        return any(
            _ends_within_block_of(prompt, sequence)
            or (not sequence.prefilled and self._conflicts_with_prefill(prompt, keys, sequence))
            for sequence in running
        )

    def _conflicts_with_prefill(self, prompt: Sequence[int], keys: Sequence[bytes], sequence: RunningSequence) -> bool:
        blocks = _common_prefix(keys, sequence.keys)
        start = blocks * BLOCK_TOKENS
        if start > self._prefixes.match(keys[:blocks]):
            return True
        common = start + _common_prefix(prompt[start:], sequence.tokens[start:])
        return self._tails.within(prompt[:common], keys[:blocks])

    def joined(self, prompt: Sequence[int], keys: Sequence[bytes], namespace: str) -> tuple[int, int]:
        """Records that the prompt joined; returns how many of its tokens are cached, and how many of these its
        namespace has used before."""
        keys = keys if len(prompt) % BLOCK_TOKENS else keys[:-1]
        cached = self._prefixes.match(keys)
        self._prefill_backlog += len(prompt) - cached
        return cached, min(cached, self._own_prefixes.match(keys_of(namespace, keys)))

    def stepped(self, running: Iterable[RunningSequence]) -> int:
        """Records a step of the pipeline over these sequences; returns how many prompt tokens it computed."""
        decoding = [sequence.prefilled for sequence in running]
        if all(decoding):
            self._prefill_backlog = 0
            return 0
        computed = min(self._prefill_backlog, max(1, self._step_tokens - sum(decoding)))
        self._prefill_backlog -= computed
        return computed

    def prefilled(self, sequence: RunningSequence) -> None:
        """Records that the sequence's prompt is computed."""
        self._add(sequence, sequence.keys)

    def left(self, sequence: RunningSequence) -> None:
        """Records that the sequence ended. Its last token was never computed."""
        content = sequence.tokens[:-1]
        keys = block_keys(content)
        self._add(sequence, keys)
        self._tails.add(content, keys)

    def _add(self, sequence: RunningSequence, keys: Sequence[bytes]) -> None:
        self._prefixes.add(keys)
        self._own_prefixes.add(keys_of(sequence.namespace, keys))


class _PartialBlocks:
    """Partly filled blocks that ended sequences left behind: their tokens, by the key of the block before."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._tails: OrderedDict[tuple[bytes, tuple[int, ...]], None] = OrderedDict()
        self._by_previous: dict[bytes, dict[tuple[int, ...], None]] = {}

    def add(self, content: Sequence[int], keys: Sequence[bytes]) -> None:
        tail = tuple(content[len(keys) * BLOCK_TOKENS :])
        if not tail:
            return
        previous = keys[-1] if keys else b""
        self._tails[previous, tail] = None
        self._tails.move_to_end((previous, tail))
        self._by_previous.setdefault(previous, {})[tail] = None
        if len(self._tails) > self._capacity:
            (previous, tail), _ = self._tails.popitem(last=False)
            del self._by_previous[previous][tail]
            if not self._by_previous[previous]:
                del self._by_previous[previous]

    def within(self, tokens: Sequence[int], keys: Sequence[bytes]) -> bool:
        """Whether these tokens contain one of the partial blocks at its place. keys: block keys of the tokens."""
        for block, previous in enumerate((b"", *keys)):
            start = block * BLOCK_TOKENS
            for tail in self._by_previous.get(previous, ()):
                if tuple(tokens[start : start + len(tail)]) == tail:
                    return True
        return False


def _ends_within_block_of(prompt: Sequence[int], sequence: RunningSequence) -> bool:
    """Whether the sequence's computed tokens are a prefix of the prompt that ends within a block."""
    computed = len(sequence.tokens) - sequence.prefilled
    return computed % BLOCK_TOKENS != 0 and list(prompt[:computed]) == sequence.tokens[:computed]


def _common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """Length of the longest common prefix."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
