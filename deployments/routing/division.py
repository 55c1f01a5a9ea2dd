"""Divides a model's engines between routers by what their teams ask for.

So teams share the engines whatever routers their connections are at. Every router computes this from the same reports,
so they agree without a further word: teams get weighted max-min fair shares of the places (Bertsekas and Gallager, Data
Networks, 6.5.2), and a router gets, of each team's share, what it has of the team's requests. Where there are fewer
places than routers, chance decides which of them fills the next free one, anew every second.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deployments.routing.demand import RouterDemand

RESERVED_DIVISOR = 8
"""One place in 8 is reserved for teams that have nothing running."""
MAX_TEAM_SHARE = 5 / 8
"""Share of the places that one team may have while others ask too, unless its weight entitles it to more."""
BATCH_DIVISOR = 2
"""Batches take at most one place in 2."""
_RESERVED_FOR_PEOPLE = 2
"""At least as many slots batches leave free when nobody has asked lately."""
_ROUNDING = 1e-6
"""Sums of shares may be a little below the whole number that they are."""
_STEP = (math.sqrt(5) - 1) / 2
"""Multiples of the golden ratio spread evenly over the numbers between 0 and 1."""


@dataclass(frozen=True, slots=True)
class RouterPart:
    """What one router gets.

    slots: requests that run at a time, the reserved ones included. reserved: for teams that have nothing running, or
    less than a fair share.
    max_team_slots: of one team while others ask too, unless its weight entitles it to more. elsewhere: requests of each
    team at the other routers. min_weight: the least part of its weight that a team has here. fair_share: requests that
    a team of weight 1 may have at all routers together and still use the reserved slots.
    """

    slots: int
    reserved: int
    max_team_slots: float
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    min_weight: float = 1.0
    fair_share: float = 0.0

    @classmethod
    def even(cls, slots: int) -> "RouterPart":
        """These slots, without regard to other routers."""
        slots = max(1, slots)
        return cls(slots, slots // RESERVED_DIVISOR, slots * MAX_TEAM_SHARE)

    def max_batches(self, *, people_ask: bool) -> int:
        """Slots that batches may have. people_ask: whether any have asked lately."""
        if people_ask:
            return max(1, self.slots // BATCH_DIVISOR)
        return max(1, self.slots - max(_RESERVED_FOR_PEOPLE, self.slots // RESERVED_DIVISOR))


@dataclass(slots=True)
class _Team:
    """A team's requests at all routers, and how many of them may run."""

    weight: float = 0.0
    people: int = 0
    batches: int = 0
    running_people: float = 0.0
    running_batches: float = 0.0


def part_of(own: str, places: int, demands: Mapping[str, RouterDemand], routers: int, second: int) -> RouterPart:
    """This router's part of the places.

    own: its name. demands: of the routers that have requests, by name. places: requests that all engines decode at a
    time. routers: how many there are, at least 2. second: of a clock that all routers agree on.
    """
    demands = {own: RouterDemand(), **demands}
    # Of few places a larger part: how many the others ask for at a time varies with the square root of their number.
    reserved = max(places // RESERVED_DIVISOR, math.isqrt(places))
    teams = _totals(demands.values())
    spare = _share_out(places, places - reserved, teams) / routers
    due = {name: spare + _due(demands[name], teams) for name in sorted(demands)}
    lacking = {name: max(0.0, number - demands[name].running) for name, number in due.items()}
    free = places - reserved - sum(demand.running for demand in demands.values())
    slots = math.floor(due[own] + _ROUNDING)
    if lacking[own]:
        slots = demands[own].running + _drawn(own, lacking, max(0, free), second)
    reserved = max(1, reserved // routers)
    return RouterPart(
        slots=slots + reserved,
        reserved=reserved,
        max_team_slots=slots + reserved,  # each team has been limited already
        elsewhere=_elsewhere(demands[own], teams),
        min_weight=1 / routers,
        fair_share=max((team.running_people / team.weight for team in teams.values()), default=0.0),
    )


def _share_out(places: int, shared: int, teams: Mapping[str, _Team]) -> float:
    """Decides how many requests of each team may run: people's first. Returns how many places are left."""
    weights = sum(team.weight for team in teams.values())
    most = places * MAX_TEAM_SHARE if len(teams) > 1 else places
    people, batches = {}, {}
    for name, team in teams.items():
        people[name] = team.weight, min(team.people, max(most, places * team.weight / weights))
        batches[name] = team.weight, float(team.batches)
    left = float(shared)
    for name, number in _fill(left, people).items():
        teams[name].running_people = number
        left -= number
    for name, number in _fill(min(left, places // BATCH_DIVISOR), batches).items():
        teams[name].running_batches = number
        left -= number
    return left


def _due(demand: RouterDemand, teams: Mapping[str, _Team]) -> float:
    """How many of a router's requests may run: of each team's the router's part."""
    number = 0.0
    for name, one in demand.teams.items():
        team = teams[name]
        number += one.people * team.running_people / (team.people or 1)
        number += one.batches * team.running_batches / (team.batches or 1)
    return number


def _elsewhere(own: RouterDemand, teams: Mapping[str, _Team]) -> dict[str, int]:
    """The requests of each team at all other routers."""
    here = {name: one.requests for name, one in own.teams.items()}
    counts = ((name, team.people + team.batches - here.get(name, 0)) for name, team in teams.items())
    return {name: count for name, count in counts if count}


def _totals(demands: Iterable[RouterDemand]) -> dict[str, _Team]:
    teams: dict[str, _Team] = {}
    for demand in demands:
        for name, one in demand.teams.items():
            if (team := teams.get(name)) is None:
                team = teams[name] = _Team()
            team.weight = max(team.weight, one.weight)
            team.people += one.people
            team.batches += one.batches
    return teams


def _fill(places: float, wanted: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Weighted max-min fair shares: no team gets more than it wants, and what it leaves goes to the others by weight.

    wanted: weight and number of each team.
    """
    weights = sum(weight for weight, _ in wanted.values())
    shares = {}
    for name, (weight, number) in sorted(wanted.items(), key=lambda item: item[1][1] / item[1][0]):
        shares[name] = min(number, places * weight / weights)
        places -= shares[name]
        weights = max(weights - weight, 1e-9)
    return shares


def _drawn(own: str, lacking: Mapping[str, float], free: int, second: int) -> int:
    """This router's part of the free places, in whole ones: on average its exact part (systematic sampling)."""
    total = sum(lacking.values())
    scale = min(1.0, free / total) if total else 0.0
    before = second * _STEP % 1.0
    for name, number in lacking.items():
        if name == own:
            return math.floor(before + number * scale) - math.floor(before)
        before += number * scale
    return 0
