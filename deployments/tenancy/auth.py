"""Authentication: every router holds all teams and keys in memory and checks for changes several times a second.

So a key costs no call to Redis and stays valid while Redis is away; a revoked one is refused everywhere in a second.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cluster.records.teams import KEYS, TEAMS, VERSION, Registry, Team, UnknownKey, registry_of
from cluster.settings import is_loopback
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.routing.fair_queue import ANYONE

log = logging.getLogger("dray.teams")

_REFRESH_S = 0.3
_SHARED_NAMESPACE = "shared"
_MAX_LABELS = 20
OTHER = "other"
"""The metrics label of all teams that have no series of their own."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. team: None for an admin key, and where no key is needed. namespace: of its cached answers."""

    team: Team | None
    namespace: str
    admin: bool = False
    label: str = ANYONE
    """The team's label in metrics."""

    @property
    def name(self) -> str:
        """The team's name."""
        return self.team.name if self.team else ANYONE

    @property
    def weight(self) -> float:
        """The team's share under load."""
        return self.team.weight if self.team else 1.0

    def may_use(self, names: tuple[str, ...]) -> bool:
        """Whether the team may use the model that has these names."""
        allowed = self.team.models if self.team else ()
        return not allowed or any(name in allowed for name in names)


class Authenticator:
    """Finds the caller of a request, by teams and keys that are a fraction of a second old."""

    def __init__(self, store: RedisStore, host: str, namespace: str, metrics_teams: Sequence[str] = ()) -> None:
        """host: the address that Dray listens on; on loopback no key is needed until one exists. namespace: of the
        cached answers of callers without a key. metrics_teams: as the settings have it."""
        self._store = store
        self._keyless = Caller(None, namespace)
        self._local = is_loopback(host)
        self._registry: Registry | None = None
        self._metrics_teams = metrics_teams
        self._labels: frozenset[str] = frozenset()

    async def refresh_forever(self) -> None:
        """Loads changes until cancelled."""
        while True:
            # While Redis is away nobody can revoke a key either: what is loaded stays valid.
            with suppress(RedisUnavailable):
                await self.refresh()
            await asyncio.sleep(_REFRESH_S)

    async def refresh(self) -> None:
        """Loads teams and keys if they have changed. Raises RedisUnavailable."""
        version = int(await self._store.get(VERSION) or 0)
        if self._registry is not None and self._registry.version == version:
            return
        teams, keys = await self._store.execute("HGETALL", TEAMS), await self._store.execute("HGETALL", KEYS)
        self._registry = registry_of(str(version).encode(), teams, keys)
        self._labels = metric_labels(self._registry.teams.values(), self._metrics_teams)
        log.info("teams and keys loaded", extra={"version": version, "teams": len(teams), "keys": len(keys)})

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request. headers: names in lower case. Raises ApiError 401, and 503 until keys are loaded."""
        registry = self._registry
        if registry is None:
            message = "Teams and keys are not loaded yet: their Redis has not answered. Try again shortly."
            raise ApiError(503, message, code="teams_unknown", kind="server_error", retry_after_s=1)
        if not registry.keys and self._local:
            return self._keyless
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        presented = presented.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not presented:
            raise _unauthorized(
                "An API key is required. Send it as Authorization: Bearer KEY."
                if registry.keys
                else "An API key is required, and none exists yet. Create one: dray keys create TEAM"
            )
        try:
            _, team = registry.owner(presented, time.time())
        except UnknownKey as error:
            raise _unauthorized(str(error)) from None
        if team is None:
            return Caller(None, self._keyless.namespace, admin=True)
        label = team.name if team.name in self._labels else OTHER
        return Caller(team, _SHARED_NAMESPACE if team.shares_answers else f"team.{team.name}", label=label)


def metric_labels(teams: Iterable[Team], chosen: Sequence[str]) -> frozenset[str]:
    """Teams that have metrics series of their own: those chosen, else the oldest 20. All routers agree on these, and
    they stay the same when teams are added."""
    oldest = sorted(teams, key=lambda team: (team.created, team.name))
    return frozenset(chosen) or frozenset(team.name for team in oldest[:_MAX_LABELS])


def _unauthorized(message: str) -> ApiError:
    error = ApiError(401, message, code="invalid_api_key")
    error.headers["WWW-Authenticate"] = "Bearer"
    return error
