"""Streams that lose their engine: when they are resumed, from where, and when they are given up."""

import pytest

from deployments.common.messages import (
    KILLED_FROM_OUTSIDE,
    EngineRequest,
    Grammar,
    Sampling,
    TokenBatch,
    TokenLogprobs,
)
from deployments.routing.stream_progress import StreamProgress
from tests.deployments.routing.clock import Clock

CRASHED = ""
"""The reason of a loss whose engine died by itself."""


def progress_of(grammar: Grammar | None = None, clock: Clock | None = None) -> StreamProgress:
    request = EngineRequest([1, 2, 3], Sampling(100, min_tokens=5, grammar=grammar), prefix_replica="r9")
    return StreamProgress(request, clock=clock or Clock())


def lose(progress: StreamProgress, reason: str, *tokens: int, replica: str = "") -> None:
    """Runs an attempt that delivers these tokens and is lost."""
    progress.next_attempt()
    if tokens or replica:
        progress.deliver(TokenBatch(list(tokens), replica=replica))
    progress.lost(reason)


def status(progress: StreamProgress) -> int:
    error = progress.give_up_error()
    return error.status if error else 0


def test_the_next_engine_continues_behind_the_tokens_delivered() -> None:
    progress = progress_of()
    assert progress.next_attempt().prompt_ids == [1, 2, 3] and not progress.resumed
    assert progress.deliver(TokenBatch([], replica="r1")) is None, "an empty batch only shows that the engine lives"
    assert progress.deliver(TokenBatch([7, 8], cached_tokens=2)) == TokenBatch([7, 8], cached_tokens=2, replica="r1")
    assert progress.deliver(TokenBatch([9])) == TokenBatch([9])
    progress.lost(KILLED_FROM_OUTSIDE)
    rest = progress.next_attempt()
    assert (rest.prompt_ids, rest.generated_tokens) == ([1, 2, 3, 7, 8, 9], 3)
    assert (rest.sampling.max_tokens, rest.sampling.min_tokens) == (100, 5), "limits count what is generated already"
    assert rest.max_new_tokens == 97
    assert rest.avoid_replicas == ("r1",) and rest.prefix_replica == "r9" and progress.resumed
    # The new prompt contains the completion so far, so its cached tokens mean nothing to the client.
    assert progress.deliver(TokenBatch([10], cached_tokens=32, replica="r2")) == TokenBatch([10], replica="r2")


def test_tokens_delivered_by_another_router_count() -> None:
    progress = StreamProgress(EngineRequest([1], Sampling(3)), [4, 5])
    assert progress.resumed and progress.next_attempt().prompt_ids == [1, 4, 5]
    progress.deliver(TokenBatch([6]))
    assert progress.complete


def test_the_prompts_log_probabilities_are_requested_until_the_first_token() -> None:
    progress = StreamProgress(EngineRequest([1, 2], Sampling(9, top_logprobs=0), prompt_logprobs=True), clock=Clock())
    lose(progress, CRASHED)
    assert progress.next_attempt().prompt_logprobs
    progress.deliver(TokenBatch([5], prompt_logprobs=[TokenLogprobs(-1.0)]))
    progress.lost(CRASHED)
    assert not progress.next_attempt().prompt_logprobs


def test_a_stream_with_a_grammar_continues_like_any_other() -> None:
    progress = progress_of(Grammar("root ::= [0-9]+"))
    lose(progress, CRASHED, 7, 8, 9)
    again = progress.next_attempt()
    assert (again.prompt_ids, again.generated_tokens) == ([1, 2, 3, 7, 8, 9], 3)
    assert again.sampling == progress_of(Grammar("root ::= [0-9]+")).next_attempt().sampling
    batch = TokenBatch([10], logprobs=[TokenLogprobs(-1.0)])
    assert progress.deliver(batch) == batch


def test_two_crashes_in_a_row_end_the_request_but_kills_from_outside_do_not() -> None:
    progress = progress_of()
    for _ in range(20):
        lose(progress, KILLED_FROM_OUTSIDE)
    assert not progress.suspect and status(progress) == 0
    lose(progress, CRASHED)
    assert progress.suspect and status(progress) == 0
    lose(progress, CRASHED)
    assert status(progress) == 500


def test_a_new_token_clears_the_request_until_the_fifth_crash() -> None:
    progress = progress_of()
    for number in range(4):
        lose(progress, CRASHED, number)
        assert not progress.suspect and status(progress) == 0
    lose(progress, CRASHED, 4)
    assert status(progress) == 500


def test_a_stream_ends_after_a_minute_without_a_new_token() -> None:
    clock = Clock()
    progress = progress_of(clock=clock)
    lose(progress, KILLED_FROM_OUTSIDE)
    clock.now += 60
    lose(progress, KILLED_FROM_OUTSIDE)
    assert status(progress) == 0
    clock.now += 1
    lose(progress, KILLED_FROM_OUTSIDE)
    assert status(progress) == 503
    lose(progress, KILLED_FROM_OUTSIDE, 5)
    assert status(progress) == 0, "after a new token the minute starts again"


def test_pauses_double_up_to_two_seconds() -> None:
    progress, pauses = progress_of(), []
    for _ in range(7):
        lose(progress, KILLED_FROM_OUTSIDE)
        pauses.append(progress.pause_s)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    lose(progress, KILLED_FROM_OUTSIDE, 5)
    assert progress.pause_s == pytest.approx(0.1)


def test_the_last_five_replicas_are_avoided() -> None:
    progress = progress_of()
    for number in range(7):
        lose(progress, KILLED_FROM_OUTSIDE, replica=f"r{number}")
    assert progress.next_attempt().avoid_replicas == ("r2", "r3", "r4", "r5", "r6")
