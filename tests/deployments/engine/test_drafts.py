"""Guesses: where they come from, and when they are worth a longer step."""

from deployments.common.prefix import BLOCK_TOKENS
from deployments.engine.drafts import MAX_GUESSES, CompletionStore, Draft, SuffixIndex, worthwhile
from deployments.engine.pace import StepPace


def test_the_longest_match_counts_and_of_equal_ones_the_latest() -> None:
    index = SuffixIndex()
    index.extend([1, 2, 3, 4, 9, 2, 3, 5, 7, 2, 3, 6])
    assert index.continuation([2, 3], 3) == (2, [6])
    assert index.continuation([1, 2, 3], 3) == (3, [4, 9, 2])
    assert index.continuation([9, 2, 3], 2) == (3, [5, 7])
    assert index.continuation([8, 8], 3) == (0, []) == index.continuation([3], 3)


def test_the_end_of_the_text_itself_is_no_match() -> None:
    index = SuffixIndex()
    index.extend([1, 2, 3])
    assert index.continuation([2, 3], 4) == (0, [])


def test_completions_are_known_only_in_their_namespace_and_not_for_ever() -> None:
    store = CompletionStore(100)
    store.add("a", [1, 2, 3, 4])
    assert store.continuation("a", [1, 2], 8) == (2, [3, 4]), "a guess ends with the completion"
    assert store.continuation("b", [1, 2], 8) == (0, [])
    for _ in range(5):
        store.add("b", [7] * 30)
    assert store.continuation("a", [1, 2], 8) == (0, [])
    store.add("a", list(range(1000)))
    assert store.continuation("a", [997, 998], 8) == (2, [999]), "of a long one the end is kept"
    assert store.continuation("a", [10, 11], 8) == (0, [])


def test_a_longer_match_in_an_earlier_completion_counts_more_than_the_text_itself() -> None:
    store = CompletionStore(1000)
    store.add("a", [5, 6, 7, 8])
    draft = Draft([6, 7, 1, 5, 6, 7])
    assert draft.guess([5, 6, 7], store, "a", 3) == [8]
    assert draft.guess([5, 6, 7], store, "b", 3) == [1, 5, 6]


def pace(*seconds: float) -> StepPace:
    """Steps of 1, 2, 4, 8 ... tokens take this long."""
    steps = StepPace(2.0, 512, BLOCK_TOKENS)
    for size, time in enumerate(seconds):
        steps.observe(1 << size, 0, time)
    return steps


def test_as_many_guesses_are_checked_as_pay() -> None:
    free, dear, steep = pace(1.0, 1.0, 1.0, 1.0, 1.0), pace(1.0, 1.9, 3.7, 7.3, 14.0), pace(1.0, 1.1, 1.2, 3.0, 9.0)
    assert worthwhile([0.9], [MAX_GUESSES], free) == [MAX_GUESSES]
    assert worthwhile([0.5], [MAX_GUESSES], dear) == [0]
    assert worthwhile([0.8], [MAX_GUESSES], steep) == [6], "7 tokens still cost as little as 4"
    assert worthwhile([0.1, 0.9], [4, 4], steep) == [1, 4], "seven tokens cost what six do"
    assert worthwhile([0.9, 0.9], [0, 3], free) == [0, 3]


TEXT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]
SHORT, LONG = [1, 2], [1, 2, 3, 4, 5, 6, 7, 8]


def test_streams_whose_guesses_are_wrong_guess_less_and_try_again_later() -> None:
    draft, store, steps = Draft(TEXT), CompletionStore(100), pace(1.0, 1.2, 1.4, 1.6)

    def checks(end: list[int]) -> int:
        tokens = draft.guess(end, store, "", 4)
        return worthwhile([draft.acceptance], [len(tokens)], steps)[0]

    first, after_a_long_match = checks(SHORT), checks(LONG)
    assert 0 < first <= after_a_long_match
    draft.guess(SHORT, store, "", 4)
    for _ in range(20):
        draft.checked(3, 0)
    assert checks(SHORT) == 0 and checks(LONG) == after_a_long_match
    draft.guess(SHORT, store, "", 4)
    for _ in range(500):
        draft.checked(0, 0)
    assert checks(SHORT) == first
    for _ in range(20):
        draft.checked(3, 3)
    assert draft.acceptance > 0.9


def test_what_a_grammar_forces_is_certain() -> None:
    draft = Draft(TEXT)
    assert draft.force([7, 8]) == [7, 8] and draft.acceptance == 1
    draft.checked(2, 1)
    assert draft.acceptance == 1
