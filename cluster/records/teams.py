"""Teams and their API keys, a record each in Redis.

A key is `dray-ID-SECRET`. Its id and a digest are stored; the key itself is shown once, when it is created. Secrets are
random and long, so one round of a fast hash protects them.
"""

import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec
from redis.exceptions import ResponseError

from cluster.records.client import BlockingRedis
from cluster.records.team_records import ADMIN, AlreadyExists, CreatedKey, Key, NotFound, Team, TeamsError, UnknownKey
from cluster.records.team_tables import KEYS, TEAMS, Contended, Edit, Tables, edit_tables, read_tables

T = TypeVar("T")

_ID_CHARACTERS = string.ascii_lowercase + string.digits
_ID_LENGTH = 10
_KEY = re.compile(r"dray-([a-z0-9]{10})-([A-Za-z0-9_-]{43})")
REFUSES_WRITES = "MISCONF"
"""Redis' code for: the last write to the disk failed."""
_NO_DIGEST = "0" * 64
"""Compared with where there is no such key, so that this takes the same time."""


@dataclass(frozen=True, slots=True)
class Registry:
    """All teams and keys at one version. locked: a key was created at some time, so every request needs one."""

    version: int = 0
    teams: dict[str, Team] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    locked: bool = False

    def owner(self, presented: str, now: float) -> tuple[Key, Team | None]:
        """The stored key and its team; no team for an admin key. Takes the same time whatever the secret.

        Raises UnknownKey.
        """
        parts = _KEY.fullmatch(presented)
        key = self.keys.get(parts[1]) if parts else None
        same = hmac.compare_digest(_digest(presented), key.digest if key else _NO_DIGEST)
        if key is None or not same:
            raise UnknownKey("Incorrect API key provided.")
        if not key.is_valid(now):
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


def read_registry(client: BlockingRedis) -> Registry:
    """All teams and keys, read in one transaction."""
    return registry_of(read_tables(client))


def registry_of(tables: Tables) -> Registry:
    """Decodes what was read. Leaves out records of another format: one of them must not lock everybody out."""
    return Registry(
        int(tables.version or 0),
        decode_teams(tables.teams),
        decode_keys(tables.keys),
        # An earlier version stored no lock.
        bool(tables.locked or tables.keys),
    )


def decode_teams(records: Mapping[bytes, bytes]) -> dict[str, Team]:
    """The teams in these records, by name; without those of another format."""
    return {team.name: team for team in _readable(records, _decode_team)}


def decode_keys(records: Mapping[bytes, bytes]) -> dict[str, Key]:
    """The keys in these records, by id; without those of another format."""
    return {key.id: key for key in _readable(records, _decode_key)}


def apply_change(registry: Registry, version: int, records: Mapping[bytes, bytes]) -> Registry:
    """The registry at the next version. Its tables become those of the new one.

    records: of an entry of the stream CHANGES, by table and name; empty ones are deleted.
    """
    locked = registry.locked
    for place, record in records.items():
        table, _, name = place.decode().partition(" ")
        if table == TEAMS:
            _replace(registry.teams, name, decode_teams({b"": record}))
        elif table == KEYS:
            locked = True
            _replace(registry.keys, name, decode_keys({b"": record}))
    return replace(registry, version=version, locked=locked)


def _replace(table: dict[str, T], name: str, decoded: dict[str, T]) -> None:
    table.pop(name, None)
    table.update(decoded)


def add_team(client: BlockingRedis, team: Team) -> None:
    """Raises AlreadyExists where a team of this name exists."""

    def add(edit: Edit) -> None:
        if edit.read(TEAMS, team.name) is not None:
            raise AlreadyExists(f"team {team.name} already exists")
        edit.put(TEAMS, team.name, _encode(team))

    _edit(client, add)


def change_team(client: BlockingRedis, name: str, **changes: object) -> Team:
    """Changes these fields of the team and returns it. Raises TeamsError."""

    def change(edit: Edit) -> Team:
        team = msgspec.structs.replace(_team(edit, name), **changes)
        team.__post_init__()
        edit.put(TEAMS, team.name, _encode(team))
        return team

    return _edit(client, change)


def remove_team(client: BlockingRedis, name: str) -> int:
    """Deletes the team with all its keys; returns how many. Raises NotFound."""

    def remove(edit: Edit) -> int:
        _team(edit, name)
        edit.delete(TEAMS, name)
        keys = [key.id for key in _readable(edit.read_all(KEYS), _decode_key) if key.team == name]
        for key_id in keys:
            edit.delete(KEYS, key_id)
        return len(keys)

    return _edit(client, remove)


@dataclass(frozen=True, slots=True)
class RevokedKey:
    """kept: the change is on disk. Otherwise the key is valid again if the server restarts before there is room."""

    key: Key
    kept: bool


def create_key(client: BlockingRedis, team: str, label: str = "", expires_in_s: float = 0.0) -> CreatedKey:
    """Creates a key of a team, or (ADMIN) an admin key. expires_in_s: 0: never. Raises NotFound."""
    created = _new_key(team, label, time.time() + expires_in_s if expires_in_s else 0.0)

    def create(edit: Edit) -> CreatedKey:
        if team != ADMIN:
            _team(edit, team)
        edit.put(KEYS, created.key.id, _encode(created.key))
        return created

    return _edit(client, create)


def rotate_key(client: BlockingRedis, key_id: str, grace_s: float) -> CreatedKey:
    """Replaces a key. The new key has the same team, label and expiry; the old one ends after grace_s, unless it
    expires before.

    Raises TeamsError where there is no such key, or it has ended, or a rotation has replaced it already.
    """

    def rotate(edit: Edit) -> CreatedKey:
        old, now = _key(edit, key_id), time.time()
        if not old.is_valid(now):
            raise TeamsError(f"key {key_id} has expired or was revoked: create a new key instead")
        if old.replaced_by:
            # Its end is that of its grace, and the new key's would be too.
            raise TeamsError(f"key {key_id} was already replaced by key {old.replaced_by}: rotate that one")
        created = _new_key(old.team, old.label, old.ends)
        edit.put(KEYS, created.key.id, _encode(created.key))
        ended = msgspec.structs.replace(old, ends=_earlier(old.ends, now + grace_s), replaced_by=created.key.id)
        edit.put(KEYS, key_id, _encode(ended))
        return created

    return _edit(client, rotate)


def end_key(client: BlockingRedis, key_id: str) -> Key:
    """Ends the key now, unless it has ended before. Raises NotFound."""

    def end(edit: Edit) -> Key:
        key = _key(edit, key_id)
        key = msgspec.structs.replace(key, ends=_earlier(key.ends, time.time()))
        edit.put(KEYS, key_id, _encode(key))
        return key

    return _edit(client, end)


def remove_key(client: BlockingRedis, key_id: str) -> None:
    """Deletes the record of a key that has expired or was revoked. Raises TeamsError."""

    def remove(edit: Edit) -> None:
        if _key(edit, key_id).is_valid(time.time()):
            raise TeamsError(f"key {key_id} is still valid: revoke it first, or let it expire")
        edit.delete(KEYS, key_id)

    _edit(client, remove)


def revoke_key(client: BlockingRedis, key_id: str) -> RevokedKey:
    """Ends the key at once, even where the disk is full. Raises NotFound."""
    try:
        key = end_key(client, key_id)
    except Exception as error:
        if REFUSES_WRITES not in str(error):
            raise
        # The server refuses changes that it cannot write down. A key that must go is worth more than that.
        client.config_set("appendonly", "no")
        key = end_key(client, key_id)
    return RevokedKey(key, kept=not _gave_up_writing(client))


def _gave_up_writing(client: BlockingRedis) -> bool:
    """Whether the server keeps changes in memory only, since an earlier one was worth more than the disk."""
    try:
        persistence = client.info("persistence")
    except ResponseError:
        return False  # a server of somebody else's may forbid the question
    return persistence.get("aof_enabled") == 0 and persistence.get("aof_last_write_status") == "err"


def read_team(client: BlockingRedis, name: str) -> Team:
    """Raises NotFound where no team has this name."""
    return _team(Edit(client), name)


def read_key(client: BlockingRedis, key_id: str) -> Key:
    """Raises NotFound where no key has this id."""
    return _key(Edit(client), key_id)


def _team(edit: Edit, name: str) -> Team:
    if (record := edit.read(TEAMS, name)) is None:
        raise NotFound(f"no team is named {name}")
    return _decode_team(record)


def _key(edit: Edit, key_id: str) -> Key:
    if (record := edit.read(KEYS, key_id)) is None:
        raise NotFound(f"no key has the id {key_id}")
    return _decode_key(record)


def _new_key(team: str, label: str, ends: float) -> CreatedKey:
    key_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    secret = f"dray-{key_id}-{secrets.token_urlsafe(32)}"
    return CreatedKey(secret, Key(key_id, team, _digest(secret), time.time(), label, ends))


def _earlier(ends: float, limit: float) -> float:
    """The earlier of two ends; 0 is never."""
    return min(ends or limit, limit)


def _edit(client: BlockingRedis, change: Callable[[Edit], T]) -> T:
    """Makes a change as if nobody else changed anything meanwhile. Raises TeamsError."""
    try:
        return edit_tables(client, change)
    except Contended:
        raise TeamsError("others keep changing teams and keys: try again") from None


def _readable(records: Mapping[bytes, bytes], decode: Callable[[bytes], T]) -> Iterator[T]:
    for record in records.values():
        try:
            yield decode(record)
        except (msgspec.MsgspecError, TeamsError):
            continue


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
