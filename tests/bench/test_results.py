"""Distributions in bounded memory, and the tokens and requests that count for a load."""

import random
from statistics import quantiles

import pytest

from cluster.bench.client import Outcome
from cluster.bench.load import Load
from cluster.bench.results import Distribution, RunStats


def outcome(began: float, first: float, last: float, tokens: int, error: str = "") -> Outcome:
    return Outcome(began, first, last, last, prompt=5, completion=tokens, pieces=tokens, error=error)


def test_percentiles_are_exact_to_one_percent() -> None:
    rng, distribution = random.Random(0), Distribution()
    values = [rng.lognormvariate(-2, 1.5) for _ in range(20_000)]
    for value in values:
        distribution.add(value)
    exact = quantiles(values, n=100)
    for share in (50, 95, 99):
        assert distribution.at(share / 100) == pytest.approx(exact[share - 1], rel=0.01)


def test_a_percentile_of_few_values_is_one_of_them() -> None:
    distribution = Distribution()
    assert distribution.at(0.5) == 0
    for value in (0.1, 0.2, 0.3):
        distribution.add(value)
    assert distribution.at(0.5) == pytest.approx(0.2, rel=0.003)
    assert distribution.at(0.99) == pytest.approx(0.3, rel=0.003)


def test_tokens_count_when_they_arrive_and_requests_when_they_begin() -> None:
    stats = RunStats(Load("concurrency", 1), began=10, until=20)
    stats.add(outcome(8, 9, 11, 20))  # began before the load; half of its tokens arrived in time
    stats.add(outcome(12, 13, 15, 10))
    stats.add(outcome(18, 19, 23, 40))  # a quarter of its tokens arrived in time
    stats.add(outcome(21, 22, 23, 99))
    stats.add(outcome(14, 15, 15, 0, error="500: no"))
    assert stats.tokens == pytest.approx(10 + 10 + 10)
    assert stats.tokens_per_s == pytest.approx(3.0)
    assert (stats.ok, stats.failed, stats.ended) == (2, 1, 2)
    assert stats.requests_per_s == pytest.approx(0.2)
    assert stats.ttft.count == 2 and stats.ttft.at(0.5) == pytest.approx(1, rel=0.003)
    assert stats.tpot.at(0.99) == pytest.approx(2 / 9, rel=0.003)


def test_kinds_of_errors_are_bounded() -> None:
    stats = RunStats(Load("concurrency", 1), began=0, until=10)
    for number in range(1000):
        stats.add(outcome(1, 2, 2, 0, error=f"error {number}"))
    assert stats.failed == 1000 and len(stats.errors) <= 21
