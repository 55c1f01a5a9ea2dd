"""Distributions in bounded memory, and which tokens count."""

import random
from statistics import quantiles

import pytest

from cluster.bench.client import Outcome
from cluster.bench.load import Load
from cluster.bench.results import Distribution, RunStats


def outcome(began: float, first: float, last: float, tokens: int, error: str = "") -> Outcome:
    return Outcome(began, first, last, last, prompt=5, completion=tokens, pieces=tokens, error=error)


def test_percentiles_are_those_of_all_values_whatever_their_number() -> None:
    chance, spread = random.Random(0), Distribution()
    values = [chance.lognormvariate(-2, 1.5) for _ in range(20_000)]
    for value in values:
        spread.add(value)
    exact = quantiles(values, n=100)
    for share in (50, 95, 99):
        assert spread.at(share / 100) == pytest.approx(exact[share - 1], rel=0.01)


def test_of_few_values_a_percentile_is_one_of_them() -> None:
    spread = Distribution()
    assert spread.at(0.5) == 0
    for value in (0.1, 0.2, 0.3):
        spread.add(value)
    assert spread.at(0.5) == pytest.approx(0.2, rel=0.003) and spread.at(0.99) == pytest.approx(0.3, rel=0.003)


def test_tokens_count_where_they_came_and_requests_where_they_began() -> None:
    measured = RunStats(Load("concurrency", 1), began=10, until=20)
    measured.add(outcome(8, 9, 11, 20))  # half of its tokens came in time; it began before
    measured.add(outcome(12, 13, 15, 10))
    measured.add(outcome(18, 19, 23, 40))  # a quarter came in time
    measured.add(outcome(21, 22, 23, 99))
    measured.add(outcome(14, 15, 15, 0, error="500: no"))
    assert measured.tokens == pytest.approx(10 + 10 + 10)
    assert measured.tokens_per_s == pytest.approx(3.0)
    assert (measured.ok, measured.failed, measured.ended) == (2, 1, 2)
    assert measured.requests_per_s == pytest.approx(0.2)
    assert measured.ttft.count == 2 and measured.ttft.at(0.5) == pytest.approx(1, rel=0.003)
    assert measured.tpot.at(0.99) == pytest.approx(2 / 9, rel=0.003)


def test_kinds_of_errors_are_bounded() -> None:
    measured = RunStats(Load("concurrency", 1), began=0, until=10)
    for number in range(1000):
        measured.add(outcome(1, 2, 2, 0, error=f"error {number}"))
    assert measured.failed == 1000 and len(measured.errors) <= 21
