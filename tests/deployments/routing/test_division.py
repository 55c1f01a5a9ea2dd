"""How the places of a model's engines are divided between routers."""

import random

import pytest

from cluster.settings import LimitSettings, ModelSettings
from deployments.routing.capacity import RouterShare, RouterShares
from deployments.routing.demand import RouterDemand, TeamDemand
from deployments.routing.division import RouterPart, part_of
from deployments.routing.fair_queue import FairQueue
from deployments.routing.heartbeat import RouterReports


def demand(running: int = 0, **teams: int) -> RouterDemand:
    """A router's demand: requests of people by team."""
    return RouterDemand(running, {team: TeamDemand(1.0, people) for team, people in teams.items()})


def parts(places: int, demands: dict[str, RouterDemand], routers: int = 0, second: int = 0) -> dict[str, RouterPart]:
    return {name: part_of(name, places, demands, routers or len(demands), second) for name in demands}


def shared_slots(part: RouterPart) -> int:
    return part.slots - part.reserved


def test_a_router_gets_the_places_that_its_teams_are_due_wherever_their_connections_are() -> None:
    demands = {f"r{index}": demand() for index in range(8)}
    demands["r0"] = demand(0, flood=400, quiet=5)
    demands["r1"] = demand(0, other=5)
    divided = parts(80, demands)
    # 70 places are shared: the flood may have 5 in 8 of all, and what is spare is spread.
    assert shared_slots(divided["r0"]) == pytest.approx(5 + 50, abs=2)
    assert shared_slots(divided["r1"]) >= 5
    assert sum(shared_slots(part) for part in divided.values()) <= 70
    assert all(part.reserved == 1 for part in divided.values())


def test_floods_share_evenly_whether_they_are_at_one_router_or_at_all() -> None:
    demands = {f"r{index}": demand(0, everywhere=100) for index in range(4)}
    demands["r0"] = demand(0, everywhere=100, here=400)
    divided = parts(64, demands)
    assert shared_slots(divided["r0"]) == pytest.approx(28 + 7, abs=1)
    assert [shared_slots(divided[name]) for name in ("r1", "r2", "r3")] == [pytest.approx(7, abs=1)] * 3
    assert divided["r0"].elsewhere == {"everywhere": 300}
    assert divided["r1"].elsewhere == {"everywhere": 300, "here": 400}


def test_weights_and_people_before_batches() -> None:
    demands = {
        "r0": RouterDemand(0, {"heavy": TeamDemand(3.0, 500)}),
        "r1": RouterDemand(0, {"light": TeamDemand(1.0, 500)}),
        "r2": RouterDemand(0, {"nightly": TeamDemand(1.0, 0, 500)}),
    }
    divided = parts(80, demands)
    assert shared_slots(divided["r0"]) == pytest.approx(50, abs=1), "no team gets more than 5 in 8 of all places"
    assert shared_slots(divided["r1"]) == pytest.approx(20, abs=1)
    assert shared_slots(divided["r2"]) == 0
    demands["r0"] = demands["r1"] = demand()
    assert shared_slots(parts(80, demands)["r2"]) == pytest.approx(40 + 10, abs=1), "batches take half"


def test_places_in_use_are_not_given_again() -> None:
    demands = {"r0": demand(70, flood=400), "r1": demand(0, quiet=20)}
    divided = parts(80, demands)
    assert shared_slots(divided["r0"]) == 50, "it starts nothing until it has fewer than its part"
    assert shared_slots(divided["r1"]) == 0, "nothing is free but what is reserved"
    demands["r0"] = demand(60, flood=390)
    divided = parts(80, demands)
    assert (shared_slots(divided["r0"]), shared_slots(divided["r1"])) == (50, 10)


def test_with_fewer_places_than_routers_each_gets_some_in_time() -> None:
    demands = {f"r{index}": demand(0, one=10) for index in range(19)} | {"r19": demand(0, other=1)}
    got = dict.fromkeys(demands, 0)
    for second in range(200):
        divided = parts(8, demands, second=second)
        assert sum(shared_slots(part) for part in divided.values()) <= 7
        for name, part in divided.items():
            got[name] += shared_slots(part)
    # The other team is due one place, the first team the other six, spread over 19 routers.
    assert got["r19"] > 150 and all(got[f"r{index}"] > 25 for index in range(19))


def test_no_division_gives_more_than_there_is() -> None:
    chance = random.Random(7)
    for _ in range(300):
        routers, places = chance.randint(2, 12), chance.randint(1, 200)
        demands = {}
        for index in range(chance.randint(1, routers)):
            teams = {f"t{chance.randint(0, 5)}": chance.randint(0, 60) for _ in range(3)}
            demands[f"r{index}"] = demand(chance.randint(0, max(1, sum(teams.values()) // 4)), **teams)
        running = sum(one.running for one in demands.values())
        divided = parts(places, demands, routers, chance.randint(0, 10**9))
        given = sum(max(0, shared_slots(part) - demands[name].running) for name, part in divided.items())
        assert given <= max(0, places - places // 8 - running)
        assert all(part.reserved >= 1 for part in divided.values())


def share(replicas: int = 4, routers: int = 2) -> tuple[RouterShare, FairQueue]:
    queue = FairQueue()
    one = RouterShare(queue, ModelSettings(replicas=replicas, max_num_seqs=8), LimitSettings(), routers)
    one.set_replicas(replicas)
    return one, queue


def test_without_reports_the_division_is_even() -> None:
    one, queue = share()
    assert queue.part.slots == 16
    one.divide("r0", {"r0": demand(0, busy=60)}, 2, 0)
    assert queue.part.slots > 24
    one.forget_reports()
    assert queue.part.slots == 16
    one.set_replicas(2)
    assert queue.part.slots == 8, "replicas that are away have no places"
    one.set_replicas(0)
    assert queue.part.slots == 16, "they are expected back"


def test_reports_are_divided_by_application_and_those_of_other_versions_are_passed_over() -> None:
    (one, queue), (other, other_queue) = share(), share()
    shares = RouterShares()
    shares.add("engine-a", one)
    shares.add("engine-b", other)
    assert shares.report() == b""
    busy = RouterShares()
    busy_share, busy_queue = share()
    busy.add("engine-a", busy_share)
    busy_queue.demand = lambda: demand(0, busy=60)  # type: ignore[method-assign]
    reports = {"r1": busy.report(), "r2": b"\xc1"}
    shares.take(RouterReports("r0", 3, 5, reports, 3))
    assert queue.part.slots < 8 and queue.part.elsewhere == {"busy": 60}
    assert other_queue.part.slots > 8
    shares.take(None)
    assert queue.part.slots == other_queue.part.slots == 11
