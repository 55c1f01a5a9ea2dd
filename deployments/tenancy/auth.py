"""Who asks: keys are held against all teams and keys, which every router knows by heart and looks up anew each moment.

So a key costs no call to Redis, and goes on holding while Redis is away; a revoked one is refused everywhere within a
second.
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

_LOOK_S = 0.3
_SHARED_NAMESPACE = "shared"
_MOST_LABELS = 20
OTHER = "other"
"""What metrics call all teams beyond those that have series of their own."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. team: None without keys, and for those who administer."""

    team: Team | None
    namespace: str
    admin: bool = False
    label: str = ANYONE
    """What metrics call the team."""

    @property
    def name(self) -> str:
        """The team's name."""
        return self.team.name if self.team else ANYONE

    @property
    def weight(self) -> float:
        """Its share under load."""
        return self.team.weight if self.team else 1.0

    def may_use(self, names: tuple[str, ...]) -> bool:
        """Whether it may ask the model that goes by these names."""
        allowed = self.team.models if self.team else ()
        return not allowed or any(name in allowed for name in names)


class Authenticator:
    """Knows all teams and keys, as of a moment ago."""

    def __init__(self, store: RedisStore, host: str, namespace: str, on_metrics: Sequence[str] = ()) -> None:
        """host: the address that Dray listens on. namespace: of the answers of those who need no key. on_metrics: as
        the settings have it."""
        self._store = store
        self._anyone = Caller(None, namespace)
        self._local = is_loopback(host)
        self._registry: Registry | None = None
        self._on_metrics = on_metrics
        self._labels: frozenset[str] = frozenset()

    async def refresh_forever(self) -> None:
        """Looks for changes until cancelled."""
        while True:
            with suppress(RedisUnavailable):  # what is known holds; who can change nothing can revoke nothing
                await self.refresh()
            await asyncio.sleep(_LOOK_S)

    async def refresh(self) -> None:
        """Takes what has changed. Raises StoreAway."""
        version = int(await self._store.get(VERSION) or 0)
        if self._registry is not None and self._registry.version == version:
            return
        teams, keys = await self._store.execute("HGETALL", TEAMS), await self._store.execute("HGETALL", KEYS)
        self._registry = registry_of(str(version).encode(), teams, keys)
        self._labels = metric_labels(self._registry.teams.values(), self._on_metrics)
        log.info("teams and keys", extra={"version": version, "teams": len(teams), "keys": len(keys)})

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Whose request this is. Raises ApiError 401, and 503 while nobody can be known."""
        registry = self._registry
        if registry is None:
            message = "The Redis that keeps teams and keys has not answered yet."
            raise ApiError(503, message, code="teams_unknown", kind="server_error", retry_after_s=1)
        if not registry.keys and self._local:
            return self._anyone
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        presented = presented.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not presented:
            what = "No API key was given: send it as Authorization: Bearer KEY."
            raise _unauthorized(what if registry.keys else "No key exists yet; make one with `dray keys create`.")
        try:
            _, team = registry.owner(presented, time.time())
        except UnknownKey as error:
            raise _unauthorized(str(error)) from None
        if team is None:
            return Caller(None, self._anyone.namespace, admin=True)
        label = team.name if team.name in self._labels else OTHER
        return Caller(team, _SHARED_NAMESPACE if team.shares_answers else f"team.{team.name}", label=label)


def metric_labels(teams: Iterable[Team], chosen: Sequence[str]) -> frozenset[str]:
    """Teams that have series of their own: those chosen; without a choice the oldest ones, on which all routers agree
    and which stay the same when others come."""
    oldest = sorted(teams, key=lambda team: (team.created, team.name))
    return frozenset(chosen) or frozenset(team.name for team in oldest[:_MOST_LABELS])


def _unauthorized(message: str) -> ApiError:
    error = ApiError(401, message, code="invalid_api_key")
    error.headers["WWW-Authenticate"] = "Bearer"
    return error
