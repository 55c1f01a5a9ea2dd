"""Decides in each step which guesses to check, and keeps count of how they did."""

from deployments.engine.drafts import MAX_GUESSES, MAX_MATCH, CompletionStore, worthwhile
from deployments.engine.grammar import GrammarError, Matcher
from deployments.engine.pace import StepPace
from deployments.engine.sequence import Sequence

_MAX_STREAMS = 8
"""With more streams than this a step has enough to compute without guesses, and finding them would hold it up."""
_STORED_TOKENS = 1 << 16
"""Of earlier completions, to guess from."""


class Drafter:
    """Guesses for all streams of an engine. guessed, accepted: guesses checked so far, and those that were right."""

    def __init__(self, pace: StepPace) -> None:
        self.guessed = self.accepted = 0
        self._pace = pace
        self._completions = CompletionStore(_STORED_TOKENS)

    def guess(self, streams: list[Sequence]) -> dict[int, tuple[int, ...]]:
        """Guesses that are worth checking in the next step, by stream. streams: all that decode."""
        if len(streams) > _MAX_STREAMS:
            return {}
        guesses = [self._guesses(sequence) for sequence in streams]
        if not any(guesses):
            return {}
        acceptances = [sequence.draft.acceptance if sequence.draft else 0.0 for sequence in streams]
        lengths = worthwhile(acceptances, [len(tokens) for tokens in guesses], self._pace)
        return {
            sequence.number: tuple(tokens[:length])
            for sequence, tokens, length in zip(streams, guesses, lengths, strict=True)
            if length
        }

    def _guesses(self, sequence: Sequence) -> list[int]:
        limit = min(MAX_GUESSES, sequence.left - 1)
        if sequence.draft is None or limit <= 0:
            return []
        if sequence.matcher is not None and (forced := _forced(sequence.matcher)):
            return sequence.draft.force(forced[:limit])
        end = sequence.tokens[-MAX_MATCH:]
        return sequence.draft.guess(end, self._completions, sequence.request.namespace, limit)

    def checked(self, sequence: Sequence, guessed: int, accepted: int) -> None:
        """Records a step of a stream: how many guesses it checked, and how many were right."""
        self.guessed += guessed
        self.accepted += accepted
        if sequence.draft is not None:
            sequence.draft.checked(guessed, accepted)

    def ended(self, sequence: Sequence) -> None:
        """Remembers the completion of a stream that has ended."""
        if sequence.draft is not None:
            self._completions.add(sequence.request.namespace, sequence.tokens[sequence.prompt_length :])


def _forced(matcher: Matcher) -> list[int]:
    """The tokens that the grammar forces next; none if it fails, which its mask will show too."""
    try:
        return matcher.forced()
    except GrammarError:
        return []
