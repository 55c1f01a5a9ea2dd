"""What is asked: lengths, repetition, shared beginnings, and how a seed fixes them."""

import random
from collections import Counter
from statistics import median

import pytest

from cluster.bench.lengths import Lengths, parse_lengths
from cluster.bench.workload import Scale, Workload, WorkloadSampler

PLAIN = Scale(fixed=4, per_word=1)


@pytest.mark.parametrize(
    ("text", "least", "most", "middle"),
    [("200", 200, 200, 200), ("100-400", 100, 400, 250), ("lognormal:200:0.5", 25, 1500, 200)],
)
def test_lengths_are_drawn_as_they_are_written(text: str, least: int, most: int, middle: int) -> None:
    lengths, chance = parse_lengths(text), random.Random(1)
    drawn = [lengths.draw(chance) for _ in range(4000)]
    assert least <= min(drawn) and max(drawn) <= most
    assert median(drawn) == pytest.approx(middle, rel=0.05)
    assert sum(drawn) / len(drawn) == pytest.approx(lengths.mean, rel=0.05)
    assert str(lengths) == text


@pytest.mark.parametrize("text", ["", "0", "5-3", "ten", "lognormal:200", "-5", "lognormal:200:-1"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no length"):
        parse_lengths(text)


def test_another_server_is_asked_the_same_lengths_in_other_words() -> None:
    workload = Workload(Lengths(10, 90), Lengths(5, 50), repeated=0.3)
    here, there, other = (
        WorkloadSampler(workload, seed, words, PLAIN) for seed, words in ((1, "a"), (1, "b"), (2, "a"))
    )
    asked = [(here.next(), there.next(), other.next()) for _ in range(50)]
    assert [(a.prompt, a.output, a.question) for a, _, _ in asked] == [
        (b.prompt, b.output, b.question) for _, b, _ in asked
    ]
    assert [a.prompt for a, _, _ in asked] != [c.prompt for _, _, c in asked]
    assert not any(a.messages == b.messages for a, b, _ in asked)


def test_words_make_the_tokens_that_were_asked_for() -> None:
    drawn = WorkloadSampler(Workload(Lengths(101, 101), Lengths(1, 1)), 0, "", Scale(fixed=5, per_word=2))
    assert len(drawn.next().messages[0]["content"].split()) == 48  # (101 - 5) / 2


def test_the_share_that_repeats_repeats_word_for_word() -> None:
    drawn = WorkloadSampler(Workload(Lengths(50, 100), Lengths(1, 1), repeated=0.4), 3, "", PLAIN)
    asked = [drawn.next() for _ in range(1000)]
    by_question: dict[int, set[str]] = {}
    for one in asked:
        by_question.setdefault(one.question, set()).add(one.messages[-1]["content"])
    assert len(by_question) == pytest.approx(600, abs=50)
    assert all(len(texts) == 1 for texts in by_question.values())
    assert len(set().union(*by_question.values())) == len(by_question)


def test_system_prompts_are_shared_and_all_are_used() -> None:
    drawn = WorkloadSampler(Workload(Lengths(9, 9), Lengths(1, 1), prefix=40, prefixes=3), 0, "", PLAIN)
    systems = Counter(drawn.next().messages[0]["content"] for _ in range(90))
    assert len(systems) == 3 and min(systems.values()) > 15
    assert {len(system.split()) for system in systems} == {40}


def test_a_conversation_goes_on_with_all_that_was_said() -> None:
    drawn = WorkloadSampler(Workload(Lengths(9, 9), Lengths(1, 1), turns=3), 0, "", PLAIN)
    first = drawn.next()
    session = first.session
    drawn.answered(first, "one")
    second = drawn.next()
    assert second.session == session
    assert [one["role"] for one in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1]["content"] == "one"
    drawn.answered(second, "two")
    drawn.answered(drawn.next(), "three")
    assert drawn.next().session != session
