"""Generated requests: lengths, repetition, shared prefixes, and how a seed fixes them."""

import random
from collections import Counter
from statistics import median

import pytest

from cluster.bench.lengths import Lengths, parse_lengths
from cluster.bench.workload import Scale, Workload, WorkloadSampler

PLAIN = Scale(fixed=4, per_word=1)


@pytest.mark.parametrize(
    ("text", "low", "high", "middle"),
    [("200", 200, 200, 200), ("100-400", 100, 400, 250), ("lognormal:200:0.5", 25, 1500, 200)],
)
def test_lengths_have_the_given_distribution(text: str, low: int, high: int, middle: int) -> None:
    lengths, rng = parse_lengths(text), random.Random(1)
    drawn = [lengths.draw(rng) for _ in range(4000)]
    assert low <= min(drawn) and max(drawn) <= high
    assert median(drawn) == pytest.approx(middle, rel=0.05)
    assert sum(drawn) / len(drawn) == pytest.approx(lengths.mean, rel=0.05)
    assert str(lengths) == text


@pytest.mark.parametrize("text", ["", "0", "5-3", "ten", "lognormal:200", "-5", "lognormal:200:-1"])
def test_wrong_lengths_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no length"):
        parse_lengths(text)


def test_servers_get_the_same_lengths_in_different_words() -> None:
    workload = Workload(Lengths(10, 90), Lengths(5, 50), repeated=0.3)
    first, same_seed, other_seed = (
        WorkloadSampler(workload, seed, words, PLAIN) for seed, words in ((1, "a"), (1, "b"), (2, "a"))
    )
    requests = [(first.next(), same_seed.next(), other_seed.next()) for _ in range(50)]
    assert [(a.prompt, a.output, a.question) for a, _, _ in requests] == [
        (b.prompt, b.output, b.question) for _, b, _ in requests
    ]
    assert [a.prompt for a, _, _ in requests] != [c.prompt for _, _, c in requests]
    assert not any(a.messages == b.messages for a, b, _ in requests)


def test_words_match_the_requested_number_of_tokens() -> None:
    sampler = WorkloadSampler(Workload(Lengths(101, 101), Lengths(1, 1)), 0, "", Scale(fixed=5, per_word=2))
    assert len(sampler.next().messages[0]["content"].split()) == 48  # (101 - 5) / 2


def test_repeated_questions_are_equal_word_for_word() -> None:
    sampler = WorkloadSampler(Workload(Lengths(50, 100), Lengths(1, 1), repeated=0.4), 3, "", PLAIN)
    requests = [sampler.next() for _ in range(1000)]
    by_question: dict[int, set[str]] = {}
    for request in requests:
        by_question.setdefault(request.question, set()).add(request.messages[-1]["content"])
    assert len(by_question) == pytest.approx(600, abs=50)
    assert all(len(texts) == 1 for texts in by_question.values())
    assert len(set().union(*by_question.values())) == len(by_question)


def test_system_prompts_are_shared_and_all_of_them_used() -> None:
    sampler = WorkloadSampler(Workload(Lengths(9, 9), Lengths(1, 1), prefix=40, prefixes=3), 0, "", PLAIN)
    systems = Counter(sampler.next().messages[0]["content"] for _ in range(90))
    assert len(systems) == 3 and min(systems.values()) > 15
    assert {len(system.split()) for system in systems} == {40}


def test_a_conversation_continues_with_its_earlier_messages() -> None:
    sampler = WorkloadSampler(Workload(Lengths(9, 9), Lengths(1, 1), turns=3), 0, "", PLAIN)
    first = sampler.next()
    session = first.session
    sampler.answered(first, "one")
    second = sampler.next()
    assert second.session == session
    assert [message["role"] for message in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1]["content"] == "one"
    sampler.answered(second, "two")
    sampler.answered(sampler.next(), "three")
    assert sampler.next().session != session
