"""A team with 50 times its share beside others, over several routers, in simulated time: the router's own code runs."""

from dataclasses import replace

import pytest

from benchmarks.fair_routers import FEW, FLOOD, Scenario, p95, simulate, with_own_engines

SMALL = Scenario(routers=8, replicas=32, teams=32, load=0.6, warm_up_s=20.0, seconds=40.0)


# Without the flood, engines are 60 % full, and with it nearly full, which alone makes first tokens later by a third.
@pytest.mark.parametrize(
    ("case", "ratio"),
    [
        pytest.param(SMALL, 1.7, id="flood-at-two-routers"),
        pytest.param(replace(SMALL, spread=1, flood_spread=1), 1.9, id="each-team-at-one-router"),
        pytest.param(replace(SMALL, flood_spread=8), 1.7, id="flood-at-all-routers"),
        pytest.param(replace(SMALL, leaving=0.1), 2.5, id="replicas-come-and-go"),
    ],
)
def test_a_flood_delays_only_itself_whatever_routers_it_is_at(case: Scenario, ratio: float) -> None:
    alone, flooded = simulate(replace(case, flood=0.0)), simulate(case)
    assert len(flooded.others) > 200
    assert p95(flooded.others) <= ratio * p95(alone.others)
    assert flooded.refused.total() == flooded.refused[FLOOD]
    assert flooded.tokens[FLOOD] > 0.2 * flooded.tokens.total(), "it gets what the others leave"


def test_the_simulation_shows_what_equal_parts_for_all_routers_cost() -> None:
    alone, flooded = simulate(replace(SMALL, flood=0.0)), simulate(replace(SMALL, together=False))
    assert p95(flooded.others) > 5 * p95(alone.others)


def test_with_fewer_places_than_routers_teams_wait_less_than_on_engines_of_their_own() -> None:
    case = replace(FEW, warm_up_s=50.0, seconds=250.0)
    flooded, own = simulate(case), simulate(with_own_engines(case))
    assert len(flooded.others) > 30 and len(own.others) > 200
    assert p95(flooded.others) < p95(own.others) / 2
