"""The teams that asked lately: they share the engines by their weights."""

import time
from collections.abc import Callable

_ACTIVE_S = 60.0
"""A team counts as active for this long after its last request."""


class ActiveTeams:
    """The time of each team's last request, and its weight. Kept for a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._teams: dict[str, tuple[float, float]] = {}
        """By team: when it asked, and its weight; the latest last."""

    def note(self, team: str, weight: float) -> None:
        """The team has just asked."""
        self._teams.pop(team, None)
        self._teams[team] = (self._clock(), weight)

    def forget_inactive(self) -> None:
        """Drops the teams that have not asked for a minute."""
        earliest = self._clock() - _ACTIVE_S
        while self._teams and self._teams[team := next(iter(self._teams))][0] < earliest:
            del self._teams[team]

    def weights(self) -> dict[str, float]:
        """The weight of each of them."""
        self.forget_inactive()
        return {team: weight for team, (_, weight) in self._teams.items()}

    @property
    def anybody(self) -> bool:
        """Whether any team has asked within the last minute."""
        self.forget_inactive()
        return bool(self._teams)

    def share_of(self, team: str) -> float:
        """The share, from 0 to 1, that its weight gives the team among the active ones."""
        _, own = self._teams.get(team, (0.0, 0.0))
        others = sum(weight for _, weight in self._teams.values()) - own
        return own / (own + others) if others else 1.0
