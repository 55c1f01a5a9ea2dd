"""Authentication: every router holds all teams and keys in memory and reads their changes twice a second.

So a key costs no call to Redis and stays valid while Redis is away; a revoked one is refused everywhere in a second.
Tokens of single sign-on are accepted beside the keys where the settings name their issuer.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cluster.records.team_records import Team, UnknownKey
from cluster.records.teams import Registry
from cluster.settings import is_loopback
from deployments.common.errors import ApiError, shortened
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.routing.fair_queue import ANYONE
from deployments.tenancy.identity import Identities, Identity, is_token
from deployments.tenancy.registry_reader import RegistryReader
from deployments.tenancy.sessions import is_session

log = logging.getLogger("dray.teams")

_REFRESH_S = 0.5
_MAX_READS = 5
SHARED_NAMESPACE = "shared"
"""Of the cached answers of all teams that share theirs."""
TEAM = "team."
"""Beginning of the owner that a team is."""
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
    key_id: str = ""
    """Of the key that was presented; empty where none is needed."""
    subject: str = ""
    """Whose token of single sign-on was presented; empty for a key."""

    @property
    def actor(self) -> str:
        """Who acts, as the audit log names them."""
        return f"sign-on:{self.subject}" if self.subject else f"key:{self.key_id}"

    in_batch: bool = False
    """Whether a batch of the team asks, and not a program that waits."""

    @property
    def name(self) -> str:
        """The team's name."""
        return self.team.name if self.team else ANYONE

    @property
    def owner(self) -> str:
        """Whose what it stores is: the team's own, even if it shares answers."""
        return f"{TEAM}{self.team.name}" if self.team else self.namespace

    @property
    def weight(self) -> float:
        """The team's share under load."""
        return self.team.weight if self.team else 1.0

    def existed(self, at: int) -> bool:
        """Whether this very team existed at a time, in whole Unix seconds: an earlier one may have had its name."""
        return self.team is None or int(self.team.created) <= at

    def may_use(self, names: tuple[str, ...]) -> bool:
        """Whether the team may use the model that has these names."""
        allowed = self.team.models if self.team else ()
        return not allowed or any(name in allowed for name in names)


class Authenticator:
    """Finds the caller of a request, by teams and keys that are a fraction of a second old."""

    def __init__(
        self,
        store: RedisStore,
        host: str,
        namespace: str,
        metrics_teams: Sequence[str] = (),
        sign_on: Identities | None = None,
        sessions: Identities | None = None,
    ) -> None:
        """host: the address that Dray listens on; on loopback no key is needed until one is created, or sign_on is
        given. namespace: of the cached answers of callers without a key. metrics_teams: as the settings have it.
        sign_on: knows tokens; sessions: those of the console. None: there are none."""
        self._reader = RegistryReader(store)
        self._keyless = Caller(None, namespace)
        self._local = is_loopback(host) and sign_on is None
        self._sign_on = sign_on
        self._sessions = sessions
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
        """Loads what has changed of teams and keys; at first, and where that is no longer known, all of them.

        Raises RedisUnavailable.
        """
        before, version = self._registry, await self._reader.version()
        if before is not None and before.version == version:
            return
        teams = dict(before.teams) if before is not None else {}
        registry = await self._reader.read_changes(before, version) if before is not None else None
        registry = registry or await self._read_all()
        if before is not None and before.locked and registry.version < before.version:
            # Redis has lost its data, and nobody has decided that keys are no longer needed.
            registry = replace(registry, locked=True)
        self._registry = registry
        if registry.teams != teams or before is None:
            self._labels = metric_labels(registry.teams.values(), self._metrics_teams)
        counts = {"teams": len(registry.teams), "keys": len(registry.keys)}
        log.info("teams and keys loaded", extra={"version": registry.version, **counts})

    async def _read_all(self) -> Registry:
        """All teams and keys, of one version."""
        for _ in range(_MAX_READS):
            registry = await self._reader.read_all()
            if (current := await self._reader.read_changes(registry, await self._reader.version())) is not None:
                return current
        raise RedisUnavailable("teams and keys change too fast to be read")

    def has_label(self, team: str) -> bool:
        """Whether the team has metrics series of its own."""
        return team in self._labels

    @property
    def needs_key(self) -> bool:
        """Whether requests are known to need a key: one was created at some time, other machines can connect, or
        people sign on."""
        return not self._local or (self._registry is not None and self._registry.locked)

    def check_loaded(self) -> Registry:
        """The teams and keys. Raises ApiError 503 until they are loaded."""
        if self._registry is None:
            message = "Teams and keys are not loaded yet: their Redis has not answered. Try again shortly."
            raise ApiError(503, message, code="teams_unknown", kind="server_error", retry_after_s=1)
        return self._registry

    async def prepare(self, headers: Mapping[str, str]) -> None:
        """Fetches what `authenticate` needs to know of a token or a session, as it cannot wait itself.

        headers: names in lower case.
        """
        if self._sign_on is None:
            return
        presented = _presented(headers)
        if is_token(presented):
            await self._sign_on.prepare(presented)
        elif self._sessions is not None and is_session(presented):
            await self._sessions.prepare(presented)

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request. headers: names in lower case. Raises ApiError 401, 503 until keys are loaded, and
        403 where a token names no team."""
        registry = self.check_loaded()
        if not self.needs_key:
            return self._keyless
        presented = _presented(headers)
        if not presented:
            raise _unauthorized(_key_required(registry, tokens=self._sign_on is not None))
        if self._sign_on is not None and is_token(presented):
            return self._signed_on(self._sign_on.identity(presented), registry)
        if self._sessions is not None and is_session(presented):
            return self._signed_on(self._sessions.identity(presented), registry)
        try:
            key, team = registry.owner(presented, time.time())
        except UnknownKey as error:
            raise _unauthorized(str(error)) from None
        if team is None:
            return Caller(None, self._keyless.namespace, admin=True, key_id=key.id)
        return self._caller(team, key.id)

    def caller_of(self, owner: str, created: int) -> Caller | None:
        """Whose something is that an owner, as `Caller.owner` names it, created at this Unix time.

        None for a team that was removed, even if there is another one of its name by now, and for callers without a key
        where one is needed. Raises ApiError 503 until keys are loaded.
        """
        registry = self.check_loaded()
        if owner == self._keyless.owner and not self.needs_key:
            return self._keyless
        team = registry.teams.get(owner.removeprefix(TEAM)) if owner.startswith(TEAM) else None
        caller = self._caller(team) if team is not None else None
        return caller if caller is not None and caller.existed(created) else None

    def _caller(self, team: Team, key_id: str = "") -> Caller:
        return Caller(team, _namespace(team), label=self._label(team), key_id=key_id)

    def _signed_on(self, identity: Identity, registry: Registry) -> Caller:
        """The caller with a token. An admin may do without a team, and create it."""
        team = registry.teams.get(identity.team)
        if team is not None:
            return Caller(team, _namespace(team), identity.admin, self._label(team), subject=identity.subject)
        if identity.admin:
            return Caller(None, self._keyless.namespace, admin=True, subject=identity.subject)
        if not identity.team:
            message = "The sign-on token is valid, but its claims name no team of Dray. Ask an admin to put you into a "
            message += "group that sign_on.teams lists (the claim is the setting sign_on.team_claim)."
            raise ApiError(403, message, code="no_team")
        message = f"The sign-on token is of team {shortened(identity.team)}, which does not exist in Dray. An admin "
        raise ApiError(403, f"{message}can create it: dray teams add {shortened(identity.team)}.", code="unknown_team")

    def _label(self, team: Team) -> str:
        return team.name if team.name in self._labels else OTHER


def metric_labels(teams: Iterable[Team], chosen: Sequence[str]) -> frozenset[str]:
    """Teams that have metrics series of their own: those chosen, else the oldest 20. All routers agree on these, and
    they stay the same when teams are added."""
    oldest = sorted(teams, key=lambda team: (team.created, team.name))
    return frozenset(chosen) or frozenset(team.name for team in oldest[:_MAX_LABELS])


def _namespace(team: Team) -> str:
    return SHARED_NAMESPACE if team.shares_answers else f"{TEAM}{team.name}"


def _presented(headers: Mapping[str, str]) -> str:
    """The key or token of a request; empty if it has none."""
    scheme, _, presented = headers.get("authorization", "").partition(" ")
    return presented.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _key_required(registry: Registry, tokens: bool) -> str:
    if tokens:
        return "An API key or a sign-on token is required. Send it as Authorization: Bearer KEY_OR_TOKEN."
    if registry.keys:
        return "An API key is required. Send it as Authorization: Bearer KEY."
    reason = "all have been removed" if registry.locked else "none exists yet"
    return f"An API key is required, and {reason}. Create one: dray keys create TEAM"


def _unauthorized(message: str) -> ApiError:
    error = ApiError(401, message, code="invalid_api_key")
    error.headers["WWW-Authenticate"] = "Bearer"
    return error
