"""Guesses of the next tokens, from texts that went on this way before: the prompt, the completion, earlier completions.

A step checks guesses beside the token that it computes anyway. How many are worth it depends on how often a stream's
guesses are right, and on how much longer a step takes with them on this machine; both are measured all the time.
Published as prompt lookup, inference with reference (arXiv:2304.04487) and SuffixDecoding (arXiv:2411.04975).
"""

from collections.abc import Sequence

from deployments.engine.pace import StepPace

MAX_GUESSES = 8
_MIN_MATCH, MAX_MATCH = 2, 8
"""Tokens at the end of the text that must have occurred before, and that are compared at most."""
_MAX_PLACES = 16
"""Places that are remembered of each pair of tokens."""
_SEPARATOR = -1
_MAX_CHECKED = 16
"""Guesses that a step checks at most, of all streams."""
_FIRST_ACCEPTANCES = (0.4, 0.6, 0.8, 1.0)
"""How likely a guess is right at first: after a match of 2 or 3 tokens, of 4 to 7, of 8, and where it is certain."""
_CERTAIN = 3
_ACCEPTANCE_WEIGHT = 0.1
_RECOVERY = 0.01
"""By how much the acceptance goes back to the first one in a step without guesses, so that they are tried again."""


class SuffixIndex:
    """Finds where the end of a text occurred in this one or in another."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, int], list[int]] = {}
        """After which positions each pair of tokens has occurred, the latest last."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends to the text."""
        for token in tokens:
            if self._tokens:
                ends = self._ends.setdefault((self._tokens[-1], token), [])
                ends.append(len(self._tokens) + 1)
                if len(ends) > _MAX_PLACES:
                    del ends[0]
            self._tokens.append(token)

    def continuation(self, end: Sequence[int], limit: int) -> tuple[int, list[int]]:
        """How many tokens of `end` the longest match has, and at most `limit` tokens that followed it.

        (0, []) if fewer than two tokens match. Of equally long matches the latest counts.
        """
        best, place = 0, 0
        for candidate in reversed(self._ends.get((end[-2], end[-1]), ()) if len(end) >= _MIN_MATCH else ()):
            if candidate < len(self._tokens) and (length := self._match(end, candidate)) > best:
                best, place = length, candidate
                if best == MAX_MATCH:
                    break
        return best, self._tokens[place : place + limit] if best else []

    def _match(self, end: Sequence[int], place: int) -> int:
        length = _MIN_MATCH
        limit = min(len(end), place, MAX_MATCH)
        while length < limit and end[-length - 1] == self._tokens[place - length - 1]:
            length += 1
        return length


class CompletionStore:
    """Recent completions, by the namespace of those who may see them. It forgets the oldest ones."""

    def __init__(self, max_tokens: int) -> None:
        """max_tokens: of all namespaces together."""
        self._max_generation = max(1, max_tokens // 2)
        self._new: dict[str, SuffixIndex] = {}
        self._old: dict[str, SuffixIndex] = {}
        self._new_tokens = 0

    def add(self, namespace: str, tokens: Sequence[int]) -> None:
        """Remembers a completion."""
        if self._new_tokens + len(tokens) > self._max_generation:
            self._old, self._new, self._new_tokens = self._new, {}, 0
        tokens = tokens[-self._max_generation :]
        index = self._new.setdefault(namespace, SuffixIndex())
        index.extend((*tokens, _SEPARATOR))
        self._new_tokens += len(tokens) + 1

    def continuation(self, namespace: str, end: Sequence[int], limit: int) -> tuple[int, list[int]]:
        """As `SuffixIndex.continuation`, over the completions of this namespace."""
        best: tuple[int, list[int]] = (0, [])
        for generation in (self._new, self._old):
            if (index := generation.get(namespace)) is not None:
                length, tokens = index.continuation(end, limit)
                if _SEPARATOR in tokens:
                    tokens = tokens[: tokens.index(_SEPARATOR)]
                if tokens and length > best[0]:
                    best = length, tokens
        return best


class Draft:
    """What one stream guesses, and how often its guesses are right.

    Guesses after a long match are right more often than after a short one, so they are counted apart.
    """

    __slots__ = ("_acceptances", "_index", "_kind", "_unread")

    def __init__(self, prompt: Sequence[int]) -> None:
        self._index = SuffixIndex()
        self._unread = list(prompt)
        """Tokens that are not in the index yet: where many streams run nobody asks, and a prompt may be long."""
        self._acceptances = [*_FIRST_ACCEPTANCES]
        self._kind = 0
        """Of the present guesses: their place in `_acceptances`."""

    @property
    def acceptance(self) -> float:
        """How likely the next one of the present guesses is right, if those before it are."""
        return self._acceptances[self._kind]

    def append(self, tokens: Sequence[int]) -> None:
        """Tokens that were generated."""
        self._unread += tokens

    def guess(self, end: Sequence[int], store: CompletionStore, namespace: str, limit: int) -> list[int]:
        """At most `limit` guesses of what follows. end: the text's last tokens, at least MAX_MATCH where it has them.

        The longer match of this text and of the earlier completions counts; of equal ones, this text's.
        """
        self._index.extend(self._unread)
        self._unread.clear()
        length, tokens = self._index.continuation(end, limit)
        if length < MAX_MATCH:
            other, others = store.continuation(namespace, end, limit)
            if other > length:
                length, tokens = other, others
        self._kind = max(0, length.bit_length() - _MIN_MATCH.bit_length())
        return tokens

    def force(self, tokens: list[int]) -> list[int]:
        """Guesses these tokens, which are certain."""
        self._kind = _CERTAIN
        return tokens

    def checked(self, guessed: int, accepted: int) -> None:
        """Records that so many of the present guesses were right."""
        if self._kind == _CERTAIN:
            return
        acceptance = self.acceptance
        if not guessed:
            acceptance += (_FIRST_ACCEPTANCES[self._kind] - acceptance) * _RECOVERY
        for _ in range(accepted):
            acceptance += (1 - acceptance) * _ACCEPTANCE_WEIGHT
        if accepted < guessed:
            acceptance -= acceptance * _ACCEPTANCE_WEIGHT
        self._acceptances[self._kind] = acceptance


def worthwhile(acceptances: Sequence[float], lengths: Sequence[int], pace: StepPace) -> list[int]:
    """How many guesses of each stream to check: as many as bring the most tokens a second, perhaps none.

    acceptances: how likely each guess of a stream is right. lengths: how many guesses there are; 0 for streams without.
    """
    streams = len(lengths)
    chosen = [0] * streams
    gain = 0.0
    best, best_rate = list(chosen), streams / (pace.decode_s(streams) or 1.0)
    # One guess at a time, always the likeliest; each is only reached if all before it are right.
    chances = [acceptance if length else 0.0 for acceptance, length in zip(acceptances, lengths, strict=True)]
    for _ in range(min(sum(lengths), _MAX_CHECKED)):
        index = max(range(streams), key=chances.__getitem__)
        if chances[index] <= 0:
            break
        gain += chances[index]
        chosen[index] += 1
        chances[index] = chances[index] * acceptances[index] if chosen[index] < lengths[index] else 0.0
        rate = (streams + gain) / (pace.decode_s(streams + sum(chosen)) or 1.0)
        if rate > best_rate:
            best, best_rate = list(chosen), rate
    return best
