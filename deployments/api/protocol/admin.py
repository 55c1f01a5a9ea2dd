"""What teams, keys and usage look like over HTTP."""

from typing import Annotated, Literal

import msgspec

from cluster.records.teams import Key, Quota, Team
from cluster.records.usage import UsageRow

Seconds = Annotated[float, msgspec.Meta(le=3_153_600_000)]
"""Up to a century: Unix times far beyond it cannot be shown as dates."""


class CreateTeamRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that makes a team. models: those it may ask; none: all. weight: its share under load."""

    name: str
    models: tuple[str, ...] = ()
    weight: float = 1.0
    shares_answers: bool = False
    quota: Quota = Quota()


class UpdateTeamRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that changes a team; what it does not name stays."""

    models: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    weight: float | msgspec.UnsetType = msgspec.UNSET
    shares_answers: bool | msgspec.UnsetType = msgspec.UNSET
    quota: Quota | msgspec.UnsetType = msgspec.UNSET


class CreateKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that makes a key. expires_in_s: 0 for never."""

    team: str
    label: str = ""
    expires_in_s: Seconds = 0.0


class RotateKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that rotates a key. grace_s: how long the old key still works. The new one expires when the old one
    would have."""

    grace_s: Seconds = 86_400.0


class KeyResponse(msgspec.Struct, frozen=True):
    """A key, without what is secret in it. ends: Unix time; 0: never. team: empty for one that administers."""

    id: str
    team: str
    label: str
    created: float
    ends: float
    replaced_by: str = ""
    """The id of the key that replaced it in a rotation."""
    key: str | msgspec.UnsetType = msgspec.UNSET
    """All of it, in the answer that makes it."""

    @classmethod
    def of(cls, key: Key, secret: str | msgspec.UnsetType = msgspec.UNSET) -> "KeyResponse":
        return cls(**key.shown(), key=secret)


class TeamsResponse(msgspec.Struct, frozen=True):
    """All teams."""

    data: list[Team]


class KeysResponse(msgspec.Struct, frozen=True):
    """All keys."""

    data: list[KeyResponse]


class TeamDeletedResponse(msgspec.Struct, frozen=True):
    """A team that was taken away, and how many keys with it."""

    deleted: str
    keys: int


class UsageResponse(msgspec.Struct, frozen=True):
    """What was used, by day, team and model."""

    data: list[UsageRow]
    object: Literal["list"] = "list"
