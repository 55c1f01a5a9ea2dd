"""Sizes and counts as people read them."""

import pytest

from cluster.units import plural


@pytest.mark.parametrize(("count", "text"), [(0, "0 replicas"), (1, "1 replica"), (2, "2 replicas")])
def test_a_count_and_its_noun_agree(count: int, text: str) -> None:
    assert plural(count, "replica") == text
