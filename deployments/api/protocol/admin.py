"""Teams, keys and usage in the admin API, and GET /v1/usage."""

from typing import Annotated, Literal

import msgspec

from cluster.records.team_records import Key, Quota, Team
from cluster.records.usage import UsageRow

Seconds = Annotated[float, msgspec.Meta(le=3_153_600_000)]
"""Up to a century: Unix times far beyond it cannot be shown as dates."""


class CreateTeamRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that creates a team. models: those it may use; empty: all. weight: its share of capacity under load.
    cost_per_month: how much money it may spend; 0: unlimited."""

    name: str
    models: tuple[str, ...] = ()
    weight: float = 1.0
    shares_answers: bool = False
    quota: Quota = Quota()
    cost_per_month: float = 0.0


class UpdateTeamRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that changes a team. Fields that it does not have stay as they are."""

    models: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    weight: float | msgspec.UnsetType = msgspec.UNSET
    shares_answers: bool | msgspec.UnsetType = msgspec.UNSET
    quota: Quota | msgspec.UnsetType = msgspec.UNSET
    cost_per_month: float | msgspec.UnsetType = msgspec.UNSET


class CreateKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that creates a key. expires_in_s: seconds; 0: never."""

    team: str
    label: str = ""
    expires_in_s: Seconds = 0.0


class RotateKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that rotates a key. grace_s: seconds that the old key stays valid. The new key expires when the old one
    would have."""

    grace_s: Seconds = 86_400.0


class KeyResponse(msgspec.Struct, frozen=True):
    """A key. ends: Unix time; 0: never. team: empty for an admin key. key: only in the response that creates it.
    kept: only in the response that revokes it; false where the disk of data_dir is full: then the key is valid again if
    Dray restarts before there is room."""

    id: str
    team: str
    label: str
    created: float
    ends: float
    replaced_by: str = ""
    """The id of the key that replaced it in a rotation."""
    key: str | msgspec.UnsetType = msgspec.UNSET
    kept: bool | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(
        cls,
        key: Key,
        secret: str | msgspec.UnsetType = msgspec.UNSET,
        kept: bool | msgspec.UnsetType = msgspec.UNSET,
    ) -> "KeyResponse":
        return cls(**key.public_fields(), key=secret, kept=kept)


class LoginRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a login: no fields."""


class LoginResponse(msgspec.Struct, frozen=True):
    """Who has opened the console, as the audit log names them."""

    actor: str
    object: Literal["login"] = "login"


class TeamsResponse(msgspec.Struct, frozen=True):
    """All teams."""

    data: list[Team]


class KeysResponse(msgspec.Struct, frozen=True):
    """All keys, without their secrets."""

    data: list[KeyResponse]


class TeamDeletedResponse(msgspec.Struct, frozen=True):
    """A team that was deleted. keys: how many keys were deleted with it."""

    deleted: str
    keys: int


class UsageResponse(msgspec.Struct, frozen=True):
    """Usage by day, team and model."""

    data: list[UsageRow]
    object: Literal["list"] = "list"
