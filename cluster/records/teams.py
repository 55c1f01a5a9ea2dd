"""Teams and their keys, as they lie in Redis: a record each, and a version that counts every change.

A key is `dray-ID-SECRET`. Stored is its id and a digest; the key itself is shown once, when it is made. Secrets are
random and long, so one round of a fast hash is enough to keep them.
"""

import hashlib
import hmac
import re
import secrets
import string
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

TEAMS, KEYS, VERSION = "dray:{teams}:teams", "dray:{teams}:keys", "dray:{teams}:version"
ADMIN = ""
"""The team of keys that administer teams and keys, and ask no model."""
_ID_CHARACTERS = string.ascii_lowercase + string.digits
_ID_LENGTH = 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY = re.compile(r"dray-([a-z0-9]{10})-([A-Za-z0-9_-]{43})")


class TeamsError(ValueError):
    """What was asked cannot be done with the teams and keys there are; the message says why."""


class NotThere(TeamsError):
    """No such team or key."""


class AlreadyThere(TeamsError):
    """A team of this name."""


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a team may use. 0: no bound."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    requests_at_a_time: int = 0
    tokens_per_month: int = 0

    def __post_init__(self) -> None:
        if min(msgspec.structs.astuple(self)) < 0:
            raise TeamsError("a quota is a number from 0, which is no bound")

    @property
    def bounded(self) -> bool:
        return any(msgspec.structs.astuple(self))


class Team(msgspec.Struct, frozen=True):
    """A team. models: names it may ask for; empty: all. weight: its share under load, beside the others'.
    shares_answers: it reads and writes answers that all such teams have in common, instead of its own."""

    name: str
    created: float
    models: tuple[str, ...] = ()
    weight: float = 1.0
    shares_answers: bool = False
    quota: Quota = Quota()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TeamsError("a team's name is letters, digits, dots, dashes and underscores, at most 64")
        if not 0.01 <= self.weight <= 100:
            raise TeamsError("a team's weight is from 0.01 to 100")


class Key(msgspec.Struct, frozen=True):
    """A key as it is kept. ends: Unix time from which it does not hold; 0: never. label: what it is for."""

    id: str
    team: str
    digest: str
    created: float
    label: str = ""
    ends: float = 0.0

    def holds(self, now: float) -> bool:
        return not self.ends or now < self.ends

    def shown(self) -> dict[str, Any]:
        """The key as it may be shown."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if name != "digest"}


class KeyMade(msgspec.Struct, frozen=True):
    """A new key. secret: all of it, to be shown this once."""

    secret: str
    key: Key


class UnknownKey(Exception):
    """No such key, or it holds no more. The message says no more than its owner may know."""


@dataclass(frozen=True, slots=True)
class Registry:
    """All teams and keys at one version."""

    version: int = 0
    teams: dict[str, Team] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)

    def owner(self, presented: str, now: float) -> tuple[Key, Team | None]:
        """Whose key this is; no team for a key that administers. Raises UnknownKey. In time that tells nothing of the
        secret."""
        parts = _KEY.fullmatch(presented)
        key = self.keys.get(parts[1]) if parts else None
        same = hmac.compare_digest(_digest(presented), key.digest if key else _NOBODY)
        if key is None or not same:
            raise UnknownKey("Incorrect API key provided.")
        if not key.holds(now):
            raise UnknownKey("This API key has expired or was revoked.")
        if key.team == ADMIN:
            return key, None
        team = self.teams.get(key.team)
        if team is None:
            raise UnknownKey("Incorrect API key provided.")
        return key, team


_encode = msgspec.json.Encoder().encode
_decode_team = msgspec.json.Decoder(Team).decode
_decode_key = msgspec.json.Decoder(Key).decode


def read_registry(client: Any) -> Registry:
    """Everything, as of one moment. client: a Redis client that blocks; so for all below."""
    with client.pipeline(transaction=True) as pipe:
        pipe.get(VERSION)
        pipe.hgetall(TEAMS)
        pipe.hgetall(KEYS)
        return registry_of(*pipe.execute())


def registry_of(version: bytes | None, teams: dict[bytes, bytes], keys: dict[bytes, bytes]) -> Registry:
    """What was read, in its types. A record of another format is left out: it must not lock everybody out."""
    return Registry(
        int(version or 0),
        {team.name: team for team in _readable(teams, _decode_team)},
        {key.id: key for key in _readable(keys, _decode_key)},
    )


def add_team(client: Any, team: Team) -> None:
    """Raises TeamsError where there is one of this name."""
    if not client.hsetnx(TEAMS, team.name, _encode(team)):
        raise AlreadyThere(f"there is a team {team.name}")
    client.incr(VERSION)


def change_team(client: Any, name: str, **changes: Any) -> Team:
    """The team with these changes. Raises TeamsError where there is none."""
    team = msgspec.structs.replace(read_team(client, name), **changes)
    team.__post_init__()
    _write(client, TEAMS, name, _encode(team))
    return team


def remove_team(client: Any, name: str) -> int:
    """Takes the team away with all of its keys; gives how many. Raises TeamsError where there is none."""
    read_team(client, name)
    keys = [key.id for key in read_registry(client).keys.values() if key.team == name]
    with client.pipeline(transaction=True) as pipe:
        pipe.hdel(TEAMS, name)
        if keys:
            pipe.hdel(KEYS, *keys)
        pipe.incr(VERSION)
        pipe.execute()
    return len(keys)


def create_key(client: Any, team: str, label: str = "", holds_s: float = 0.0) -> KeyMade:
    """A new key of a team, or (ADMIN) one that administers. holds_s: seconds until it ends; 0: never."""
    if team != ADMIN:
        read_team(client, team)
    now = time.time()
    number = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    secret = f"dray-{number}-{secrets.token_urlsafe(32)}"
    key = Key(number, team, _digest(secret), now, label, now + holds_s if holds_s else 0.0)
    _write(client, KEYS, number, _encode(key))
    return KeyMade(secret, key)


def rotate_key(client: Any, number: str, grace_s: float) -> KeyMade:
    """A new key in place of this one, which ends after grace_s. Raises TeamsError."""
    old = read_key(client, number)
    made = create_key(client, old.team, old.label)
    end_key(client, number, grace_s)
    return made


def end_key(client: Any, number: str, grace_s: float = 0.0) -> Key:
    """The key ends after grace_s, unless it ends before. Raises TeamsError where there is none."""
    key, ends = read_key(client, number), time.time() + grace_s
    key = msgspec.structs.replace(key, ends=min(key.ends or ends, ends))
    _write(client, KEYS, number, _encode(key))
    return key


def _write(client: Any, where: str, name: str, record: bytes) -> None:
    with client.pipeline(transaction=True) as pipe:
        pipe.hset(where, name, record)
        pipe.incr(VERSION)
        pipe.execute()


def read_team(client: Any, name: str) -> Team:
    """Raises TeamsError where there is none of this name."""
    found = client.hget(TEAMS, name)
    if found is None:
        raise NotThere(f"there is no team {name}")
    return _decode_team(found)


def read_key(client: Any, number: str) -> Key:
    """Raises TeamsError where there is none of this id."""
    found = client.hget(KEYS, number)
    if found is None:
        raise NotThere(f"there is no key {number}")
    return _decode_key(found)


def _readable(records: dict[bytes, bytes], decode: Any) -> list[Any]:
    found = []
    for record in records.values():
        try:
            found.append(decode(record))
        except (msgspec.MsgspecError, TeamsError):
            continue
    return found


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_NOBODY = "0" * 64
