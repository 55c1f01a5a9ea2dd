"""Sampling: each parameter against a slow and obvious reference, the draws' distribution, and what they depend on."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deployments.common.messages import Sampling
from deployments.engine.logprobs import next_token_logprobs
from deployments.engine.sampler import Row, Sampled, sample
from deployments.engine.sampling_state import SamplingState, TokenCounts

VOCABULARY = 40
STOP = frozenset({1, 2})
LARGE = 151_936


def state_of(sampling: Sampling, prompt: Sequence[int] = (3,), generated: int = 0, size: int = VOCABULARY) -> Any:
    return SamplingState(sampling, list(prompt), generated, STOP, size)


def mask_of(allowed: set[int], size: int = VOCABULARY) -> NDArray[np.uint32]:
    words = np.zeros(-(-size // 32), np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words


def choose(logits: Sequence[float] | NDArray[np.float32], row: Row) -> Sampled:
    [sampled] = sample(np.array([logits], np.float32), [row])
    return sampled


def drawn(logits: Sequence[float], sampling: Sampling, **more: Any) -> int:
    return choose(logits, Row(state_of(sampling, **more))).token


class Ambiguous(Exception):
    """Rounding decides what belongs to the nucleus."""


def distribution(
    logits: Sequence[float], sampling: Sampling, prompt: list[int], completion: list[int], allowed: set[int]
) -> dict[int, float]:
    """The probability of each token that may be drawn, step by step as the parameters are defined."""
    values = {token: float(value) for token, value in enumerate(logits)}
    for token in {*prompt, *completion}:
        factor = sampling.repetition_penalty
        values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
    for token in completion:
        values[token] -= sampling.frequency_penalty
    for token in set(completion):
        values[token] -= sampling.presence_penalty
    for token, bias in sampling.logit_bias:
        values[token] += bias
    ends = set(sampling.stop_ids) | (set() if sampling.ignore_eos else STOP)
    held_back = ends if len(completion) < sampling.min_tokens else set()
    values = {token: values[token] for token in sorted(allowed - held_back)}
    if not values:
        return {min(allowed): 1.0}
    if sampling.temperature == 0:
        return {max(values, key=lambda token: (values[token], -token)): 1.0}
    likeliest = max(values.values())
    chances = normalized({t: math.exp((value - likeliest) / sampling.temperature) for t, value in values.items()})
    if sampling.min_p:
        least = sampling.min_p * max(chances.values())
        if any(abs(chance - least) < 1e-6 for chance in chances.values()):
            raise Ambiguous
        chances = normalized({token: chance for token, chance in chances.items() if chance >= least})
    order = sorted(chances, key=lambda token: (-values[token], token))
    order = order[: sampling.top_k or None]
    chances = normalized({token: chances[token] for token in order})
    if sampling.top_p < 1:
        total, nucleus = 0.0, []
        for token in order:
            if abs(total - sampling.top_p) < 1e-5:
                raise Ambiguous
            if total >= sampling.top_p:
                break
            total += chances[token]
            nucleus.append(token)
        chances = normalized({token: chances[token] for token in nucleus})
    return dict(sorted(chances.items()))


def normalized(weights: dict[int, float]) -> dict[int, float]:
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def check_draw(token: int, chances: dict[int, float], state: SamplingState, ahead: int = 0) -> None:
    """The token is the one whose random number, divided by its probability, is the smallest; but for rounding."""
    assert token in chances
    numbers = state.exponentials(ahead, np.array(list(chances), np.uint32)).tolist()
    times = {other: number / chance for (other, chance), number in zip(chances.items(), numbers, strict=True)}
    assert times[token] <= min(times.values()) * (1 + 1e-4)


# Equal logits are then equal in the reference too, and others are far enough apart.
eighths = st.integers(-80, 80).map(lambda n: n / 8)
samplings = st.builds(
    Sampling,
    max_tokens=st.just(100),
    temperature=st.sampled_from([0.0, 0.3, 0.6, 1.0, 2.0]),
    top_p=st.just(1.0) | st.floats(0.05, 0.99),
    seed=st.integers(-(2**63), 2**63 - 1),
    top_k=st.integers(0, 12),
    min_p=st.just(0.0) | st.floats(0.001, 0.9),
    repetition_penalty=st.sampled_from([1.0, 1.25, 2.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    presence_penalty=st.sampled_from([0.0, 0.75, -1.0]),
    min_tokens=st.integers(0, 4),
    ignore_eos=st.booleans(),
    stop_ids=st.sampled_from([(), (5,), (2, 7)]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), eighths, max_size=3).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
)
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=5)
logit_rows = st.lists(eighths, min_size=VOCABULARY, max_size=VOCABULARY)


@settings(max_examples=200, deadline=None)
@given(
    samplings, logit_rows, tokens, tokens, st.none() | st.sets(st.integers(0, VOCABULARY - 1), min_size=1), st.data()
)
def test_every_parameter_does_what_the_reference_does(
    sampling: Sampling, logits: list[float], prompt: list[int], completion: list[int], allowed: Any, data: Any
) -> None:
    try:
        chances = distribution(logits, sampling, [3, *prompt], completion, allowed or set(range(VOCABULARY)))
    except Ambiguous:
        assume(False)
    ahead = data.draw(st.integers(0, len(completion)))
    generated = data.draw(st.integers(0, len(completion) - ahead))
    begun = len(completion) - ahead
    state = state_of(sampling, [3, *prompt, *completion[:generated]], generated)
    for token in completion[generated:begun]:
        state.append(token)
    row = Row(state, completion[begun:], mask_of(allowed) if allowed else None)
    token = choose(logits, row).token
    if sampling.temperature == 0:
        assert [token] == list(chances)
    else:
        check_draw(token, chances, state, ahead)
    assert choose(logits, row).token == token, "guesses ahead leave no trace"


def chi_square(counts: Counter[int], chances: dict[int, float]) -> float:
    """Standard deviations above the expected chi-square statistic."""
    total, freedom = counts.total(), len(chances) - 1
    assert set(counts) <= set(chances)
    statistic = sum((counts[token] - total * chance) ** 2 / (total * chance) for token, chance in chances.items())
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "more",
    [{}, {"temperature": 2.0}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}, {"logit_bias": ((0, 1.5),)}],
    ids=str,
)
def test_draws_have_the_right_distribution_over_seeds_and_over_positions(more: dict[str, Any]) -> None:
    logits = [0.3, -5.0, -5.0, 1.9, 1.2, 0.1, -0.7, 0.9]
    sampling = Sampling(10**6, **{"temperature": 1.0, **more})
    chances = distribution(logits, sampling, [3], [], set(range(len(logits))))
    seeded = [Row(state_of(Sampling(9, **{"temperature": 1.0, "seed": n, **more}), size=8)) for n in range(4000)]
    over_seeds = Counter(sampled.token for sampled in sample(np.array([logits] * len(seeded), np.float32), seeded))
    one = state_of(Sampling(10**6, **{"temperature": 1.0, "seed": 7, **more}), size=8)
    over_positions: Counter[int] = Counter()
    for _ in range(4000):
        over_positions[choose(logits, Row(one)).token] += 1
        one.append(0)
    assert chi_square(over_seeds, chances) < 4 and chi_square(over_positions, chances) < 4
    assert over_seeds != over_positions


def logits_after(text: Sequence[int], size: int = VOCABULARY) -> NDArray[np.float32]:
    """A model of a sort: its logits depend on all tokens so far."""
    return (np.random.default_rng(list(text)).normal(size=size) * 3).astype(np.float32)


def generate(sampling: Sampling, prompt: list[int], count: int, generated: int = 0) -> list[int]:
    """The tokens that a stream generates alone."""
    state, text = state_of(sampling, prompt, generated), list(prompt)
    for _ in range(count):
        token = choose(logits_after(text), Row(state)).token
        state.append(token)
        text.append(token)
    return text[len(prompt) :]


STREAMS = [
    Sampling(99, 1.0, seed=1),
    Sampling(99, 1.0, seed=1),
    Sampling(99, 1.5, 0.9, seed=2),
    Sampling(99),
    Sampling(99, 1.0, seed=3, repetition_penalty=1.3, min_tokens=12),
    Sampling(99, frequency_penalty=1.5),
    Sampling(99, 0.8, seed=4, frequency_penalty=0.5, presence_penalty=0.5, top_k=20),
]
PROMPTS = [[3, number] for number in range(len(STREAMS))]


def test_a_stream_generates_the_same_beside_any_other_in_any_row() -> None:
    alone = [generate(sampling, prompt, 20) for sampling, prompt in zip(STREAMS, PROMPTS, strict=True)]
    assert alone[0] != alone[1], "the prompts differ"
    rng = np.random.default_rng(0)
    states = [state_of(sampling, prompt) for sampling, prompt in zip(STREAMS, PROMPTS, strict=True)]
    texts = [list(prompt) for prompt in PROMPTS]
    for _ in range(20):
        order = rng.permutation(len(STREAMS))
        logits = np.array([logits_after(texts[index]) for index in order])
        for index, sampled in zip(order, sample(logits, [Row(states[index]) for index in order]), strict=True):
            states[index].append(sampled.token)
            texts[index].append(sampled.token)
    assert [text[2:] for text in texts] == alone


@pytest.mark.parametrize("stream", range(len(STREAMS)))
def test_a_stream_generates_the_same_when_it_is_carried_on_or_guesses_are_checked(stream: int) -> None:
    sampling, prompt = STREAMS[stream], PROMPTS[stream]
    whole = generate(sampling, prompt, 20)
    for cut in (1, 11, 19):
        assert generate(sampling, prompt + whole[:cut], 20 - cut, cut) == whole[cut:]
        # Rows of one step: after no guess, after the first, after the first two, and so on; all guesses are right.
        state = state_of(sampling, prompt + whole[:cut], cut)
        rows = [Row(state, whole[cut:end]) for end in range(cut, 20)]
        logits = np.array([logits_after(prompt + whole[:end]) for end in range(cut, 20)])
        assert [sampled.token for sampled in sample(logits, rows)] == whole[cut:]


def number_of(sampling: Sampling, prompt: Sequence[int] = (3,), ahead: int = 0, token: int = 5) -> float:
    return float(state_of(sampling, prompt).exponentials(ahead, np.array([token], np.uint32))[0])


def test_seeds_positions_and_tokens_give_different_numbers_and_no_seed_a_random_one() -> None:
    numbers = [
        number_of(Sampling(9, 1.0, seed=seed), (3,), ahead, token)
        for seed in range(-25, 25)
        for ahead in range(10)
        for token in (0, 1, 2, 40, LARGE)
    ]
    assert len(set(numbers)) > 2490 and min(numbers) > 0 and max(numbers) < 20
    assert np.mean(numbers) == pytest.approx(1, abs=0.1) and np.var(numbers) == pytest.approx(1, abs=0.2)
    assert number_of(Sampling(9, 1.0)) != number_of(Sampling(9, 1.0))
    assert number_of(Sampling(9, 1.0, seed=5), [1, 2, 3]) == number_of(Sampling(9, 1.0, seed=5), ahead=2)


def test_rounding_of_the_logits_rarely_changes_a_draw() -> None:
    """As in another batch: with inverse sampling, a sixth of these draws would change."""
    rng = np.random.default_rng(3)
    changed = 0
    for seed in range(400):
        logits = (rng.normal(size=2000) * 2.5).astype(np.float32)
        rounded = logits + (rng.normal(size=2000) * 0.01).astype(np.float32)
        row = Row(state_of(Sampling(9, 1.5, seed=seed), size=2000))
        changed += choose(logits, row) != choose(rounded, row)
    assert changed < 12


def test_of_equal_logits_the_lowest_id_wins() -> None:
    logits = [0.0, 7.0, 3.0, 7.0, 7.0]
    for sampling in (Sampling(9), Sampling(9, 1.0, top_k=1), Sampling(9, 1e-300, seed=2, top_k=1), Sampling(9, 1e-9)):
        assert drawn(logits, sampling, size=5) == 1
    assert choose(logits, Row(state_of(Sampling(9), size=5), mask=mask_of({0, 3, 4}, 5))).token == 3
    assert {drawn(logits, Sampling(9, 1.0, seed=n, top_k=2), size=5) for n in range(40)} == {1, 3}


@pytest.mark.parametrize("scale", [0.2, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("top_p", [0.1, 0.95, 0.999])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort(scale: float, top_p: float) -> None:
    logits = (np.random.default_rng(5).normal(size=LARGE) * scale).astype(np.float32)
    chances = np.exp(logits.astype(np.float64) / 0.6)
    chances /= chances.sum()
    order = np.argsort(-chances, kind="stable")
    nucleus = np.sort(order[: int(chances[order].cumsum().searchsorted(top_p)) + 1])
    inside = dict(zip(nucleus.tolist(), chances[nucleus].tolist(), strict=True))
    for seed in range(20):
        state = state_of(Sampling(9, 0.6, top_p, seed=seed), size=LARGE)
        check_draw(choose(logits, Row(state)).token, inside, state)


def test_a_bias_bans_and_forces_and_ids_outside_the_vocabulary_have_none() -> None:
    logits = logits_after([0])
    banned = tuple((token, -100.0) for token in range(VOCABULARY) if token != 9)
    for sampling in (Sampling(9, logit_bias=banned), Sampling(9, 1.0, logit_bias=((9, 100.0),))):
        assert drawn(logits.tolist(), sampling) == 9
    outside = Sampling(9, logit_bias=((VOCABULARY, 100.0), (10**9, 100.0)), stop_ids=(VOCABULARY + 5,), min_tokens=3)
    assert drawn([1.0] * 3 + [5.0] + [0.0] * 36, outside) == 3


def test_a_mask_is_never_left_and_min_tokens_yields_to_it() -> None:
    logits = logits_after([0])
    for allowed in ({0}, {31}, {32, 39}, {1, 2}):
        for sampling in (Sampling(9), Sampling(9, 2.0, seed=1), Sampling(9, 2.0, seed=2, min_tokens=5)):
            assert choose(logits, Row(state_of(sampling), mask=mask_of(allowed))).token in allowed
    assert choose(logits, Row(state_of(Sampling(9)), mask=mask_of(set()))).token == min(STOP), "the stream ends"


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_a_mask_of_a_large_vocabulary_holds_for_every_draw(share: float) -> None:
    rng = np.random.default_rng(1)
    allowed = rng.random(LARGE) < share
    mask = np.packbits(allowed, bitorder="little").view(np.uint32)
    flat, broken = np.zeros(LARGE, np.float32), np.full(LARGE, np.nan, np.float32)
    expected = np.flatnonzero(allowed)
    for seed in range(30):
        state = state_of(Sampling(9, 1.0, seed=seed, logit_bias=((int(expected[3]), -50.0),)), size=LARGE)
        token = choose(flat, Row(state, mask=mask)).token
        # All allowed ones but one are equally likely, so the smallest number wins.
        others = np.delete(expected, 3)
        assert token == others[state.exponentials(0, others.astype(np.uint32)).argmin()]
        assert choose(broken, Row(state, mask=mask)).token == expected[0]


@pytest.mark.parametrize("size", [VOCABULARY, LARGE])
def test_a_token_without_weight_is_never_drawn(size: int) -> None:
    logits = np.full(size, -np.inf, np.float32)
    logits[[3, size - 5]] = -1e30, 7.0
    for seed in range(50):
        for more in ({}, {"top_p": 0.999}, {"top_k": 30}, {"min_p": 0.01}):
            assert choose(logits, Row(state_of(Sampling(9, 2.0, seed=seed, **more), size=size))).token == size - 5


def test_finish_reasons_count_what_was_generated_before() -> None:
    plain = Sampling(3, stop_ids=(8,))
    state = state_of(plain, [3, 4, 5], 1)
    assert [state.finish_reason(token) for token in (1, 2, 8, 9)] == ["stop", "stop", "stop", ""]
    state.append(9)
    assert [state.finish_reason(token) for token in (8, 9)] == ["stop", "length"]
    ignoring = state_of(Sampling(3, stop_ids=(8,), ignore_eos=True))
    assert [ignoring.finish_reason(token) for token in (1, 8)] == ["", "stop"]


def test_stop_tokens_are_held_back_until_min_tokens() -> None:
    logits = [0.0, 9.0, 8.0, 1.0, 5.0] + [0.0] * 35
    state = state_of(Sampling(9, min_tokens=3, stop_ids=(4,)), [3, 5], 1)
    assert choose(logits, Row(state)).token == 3 and choose(logits, Row(state, (3, 3))).token == 1
    state.append(3)
    assert choose(logits, Row(state)).token == 3
    state.append(3)
    assert choose(logits, Row(state)).token == 1
    assert drawn(logits, Sampling(9, min_tokens=3, ignore_eos=True)) == 1, "the model's stop tokens are like any other"


BROKEN = [
    [math.nan] * VOCABULARY,
    [-math.inf] * VOCABULARY,
    [math.inf] * VOCABULARY,
    [math.nan, math.inf, -math.inf, 3e38] * 10,
    [-3e38] * (VOCABULARY - 1) + [3e38],
    [1.0] * 20 + [math.nan] * 20,
]


@pytest.mark.parametrize("logits", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 1e-300, "top_p": 1e-9},
        {"temperature": 1.0, "top_p": 0.5, "top_k": 3, "min_p": 0.5},
        {"temperature": 2.0, "repetition_penalty": 1e-300, "frequency_penalty": 2.0, "logit_bias": ((4, 100.0),)},
    ],
    ids=range(5),
)
def test_broken_logits_break_no_stream(logits: list[float], more: dict[str, Any], recwarn: Any) -> None:
    sampling = Sampling(9, seed=1, min_tokens=2, top_logprobs=3, **more)
    rows = [
        Row(state_of(sampling, [3, 4, 5], 1)),
        Row(state_of(sampling), (4, 5), mask_of({4, 39})),
        Row(state_of(STREAMS[0])),
    ]
    good = logits_after([7])
    results = sample(np.array([logits, logits, good], np.float32), rows)
    assert 0 <= results[0].token < VOCABULARY and results[1].token in (4, 39)
    assert results[2] == choose(good, Row(state_of(STREAMS[0])))
    for sampled in results[:2]:
        assert sampled.logprobs is not None and len(sampled.logprobs.top) == 3
        assert all(-10_000 < value <= 0 for value in (sampled.logprobs.chosen, *(v for _, v in sampled.logprobs.top)))
    assert not recwarn.list


def test_nan_is_never_likelier_than_a_number() -> None:
    logits = [math.nan] * 30 + [2.0] + [math.nan] * 9
    for sampling in (
        Sampling(9),
        Sampling(9, 2.0, seed=1),
        Sampling(9, 2.0, top_k=2),
        Sampling(9, frequency_penalty=1.0),
    ):
        assert drawn(logits, sampling) == 30


@pytest.mark.parametrize("size", [VOCABULARY, 5000])
def test_logprobs_are_the_models_own(size: int) -> None:
    """Whatever the sampling parameters: compared with a log-softmax of the logits as they come."""
    logits = logits_after([1], size)
    expected = logits.astype(np.float64)
    expected -= expected.max()
    expected -= np.log(np.exp(expected).sum())
    best = np.argsort(-expected, kind="stable")[:20]
    for more in ({}, {"temperature": 1.5, "seed": 4}, {"repetition_penalty": 2.0, "logit_bias": ((7, 50.0),)}):
        for top in (0, 1, 20):
            state = state_of(Sampling(9, top_logprobs=top, **more), [3, int(best[0])], 1, size)
            token, logprobs = (sampled := choose(logits, Row(state))).token, sampled.logprobs
            assert logprobs is not None and logprobs.chosen == pytest.approx(expected[token], abs=1e-5)
            assert [token for token, _ in logprobs.top] == best[:top].tolist()
            assert [value for _, value in logprobs.top] == pytest.approx(expected[best[:top]].tolist(), abs=1e-5)
    assert choose(logits, Row(state_of(Sampling(9), size=size))).logprobs is None


def test_next_tokens_are_reported_row_by_row() -> None:
    logits = np.array([logits_after([n]) for n in range(4)])
    reported = next_token_logprobs(logits, [5, 6, 7, 8], 2)
    for row, token, logprobs in zip(logits, [5, 6, 7, 8], reported, strict=True):
        chances = np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
        assert logprobs.chosen == pytest.approx(math.log(chances[token]), abs=1e-5)
        assert [other for other, _ in logprobs.top] == np.argsort(-chances)[:2].tolist()


def test_alternatives_with_equal_logits_come_by_their_ids() -> None:
    logits = [1.0, 2.0, 1.0, 2.0] + [1.0] * 36
    logprobs = choose(logits, Row(state_of(Sampling(9, top_logprobs=4)))).logprobs
    assert logprobs is not None and [token for token, _ in logprobs.top] == [1, 3, 0, 2]


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9), max_size=40), st.integers(0, 40))
def test_counts_are_those_of_a_counter_and_can_be_undone(first: list[int], added: list[int], undone: int) -> None:
    counts = TokenCounts(first)
    for token in added:
        counts.add(token)
    kept = max(0, len(added) - undone)
    for token in reversed(added[kept:]):
        counts.undo(token)
    counted = dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))
    assert counted == Counter(first + added[:kept]) and len(counts.ids) == len(counted)
