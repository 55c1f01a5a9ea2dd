"""When a prompt may join those that run: never beside one with which it would share a KV block that is not yet whole.

OpenVINO GenAI 2026.4 gives a prompt not only whole blocks that it finds in its cache, but also the begun block in which
another one ended, or now writes. Two that go on from the same begun block write into it both, and a block is known by
all its tokens before they have been computed. Both have made wrong texts, and then of every later prompt with this
beginning. So a prompt waits here for a step or a few:

- while a running one's tokens are all its own beginning, up to a place within a block;
- while one whose prompt is being computed goes on from the same begun block as it would;
- while one whose prompt is being computed shares whole blocks with it that nobody has yet: they are computed once;
- while the next step is full.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from deployments.common.prefix import BLOCK_TOKENS, PrefixMirror, block_keys


class RunningSequence(Protocol):
    """A stream in the pipeline. tokens: its prompt and what it has made. keys: of its prompt's whole blocks.
    announced: whether it has made one."""

    tokens: list[int]
    keys: list[bytes]
    announced: bool


class Admission:
    """Decides it, from the blocks that the pipeline holds and those that run in it."""

    def __init__(self, blocks: int, step_tokens: int) -> None:
        """blocks: that the KV cache has. step_tokens: that one step can compute."""
        self._prefixes = PrefixMirror(blocks)
        self._ends = _Ends(blocks)
        self._step_tokens = step_tokens
        self._owed = 0

    @property
    def full(self) -> bool:
        """Whether the next step has enough to compute."""
        return self._owed >= self._step_tokens

    def clashes(self, prompt: Sequence[int], keys: Sequence[bytes], running: Iterable[RunningSequence]) -> bool:
        """Whether this prompt has to wait for one of them."""
        return any(
            _continues(prompt, one) or (not one.announced and self._clashes_with_prompt(prompt, keys, one))
            for one in running
        )

    def _clashes_with_prompt(self, prompt: Sequence[int], keys: Sequence[bytes], one: RunningSequence) -> bool:
        whole = _common(keys, one.keys)
        if whole * BLOCK_TOKENS > self._prefixes.match(keys[:whole]):
            return True
        common = whole * BLOCK_TOKENS + _common(prompt[whole * BLOCK_TOKENS :], one.tokens[whole * BLOCK_TOKENS :])
        return self._ends.within(prompt[:common], keys[:whole])

    def begun(self, prompt: Sequence[int], keys: Sequence[bytes]) -> int:
        """Notes that this one has joined; gives how many of its tokens are cached."""
        cached = self._prefixes.match(keys if len(prompt) % BLOCK_TOKENS else keys[:-1])
        self._owed += len(prompt) - cached
        return cached

    def stepped(self, running: Iterable[RunningSequence]) -> int:
        """Notes that the pipeline has made a step with these; gives how many prompt tokens were in it."""
        decoding = [one.announced for one in running]
        computed = 0 if all(decoding) else min(self._owed, max(1, self._step_tokens - sum(decoding)))
        self._owed = 0 if all(decoding) else self._owed - computed
        return computed

    def computed(self, one: RunningSequence) -> None:
        """Notes that its prompt has been computed."""
        self._prefixes.add(one.keys)

    def ended(self, one: RunningSequence) -> None:
        """Notes that it has left; its last token was never computed."""
        content = one.tokens[:-1]
        keys = block_keys(content)
        self._prefixes.add(keys)
        self._ends.add(content, keys)


class _Ends:
    """The begun blocks that streams have left behind: the tokens in each, by the key of the block before it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tails: OrderedDict[tuple[bytes, tuple[int, ...]], None] = OrderedDict()
        self._after: dict[bytes, dict[tuple[int, ...], None]] = {}

    def add(self, content: Sequence[int], keys: Sequence[bytes]) -> None:
        tail = tuple(content[len(keys) * BLOCK_TOKENS :])
        if not tail:
            return
        before = keys[-1] if keys else b""
        self._tails[before, tail] = None
        self._tails.move_to_end((before, tail))
        self._after.setdefault(before, {})[tail] = None
        if len(self._tails) > self._most:
            (before, tail), _ = self._tails.popitem(last=False)
            del self._after[before][tail]
            if not self._after[before]:
                del self._after[before]

    def within(self, tokens: Sequence[int], keys: Sequence[bytes]) -> bool:
        """Whether one of them is a part of these tokens. keys: of their whole blocks."""
        for place, before in enumerate((b"", *keys)):
            start = place * BLOCK_TOKENS
            for tail in self._after.get(before, ()):
                if tuple(tokens[start : start + len(tail)]) == tail:
                    return True
        return False


def _continues(prompt: Sequence[int], one: RunningSequence) -> bool:
    computed = len(one.tokens) - one.announced
    return computed % BLOCK_TOKENS != 0 and list(prompt[:computed]) == one.tokens[:computed]


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many of their first members are equal."""
    for place, (mine, its) in enumerate(zip(one, other, strict=False)):
        if mine != its:
            return place
    return min(len(one), len(other))
