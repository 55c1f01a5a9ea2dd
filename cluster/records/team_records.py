"""A team and a key, as Redis stores them, and what may be wrong with them."""

import re
from typing import Any

import msgspec

ADMIN = ""
"""The team of admin keys: these manage teams and keys, and cannot use models."""
MAX_COST = 1_000_000_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class TeamsError(ValueError):
    """The change is not possible with the present teams and keys; the message says why."""


class NotFound(TeamsError):
    """No such team or key."""


class AlreadyExists(TeamsError):
    """A team of this name exists."""


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a team may use. 0: unlimited."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    requests_at_a_time: int = 0
    tokens_per_month: int = 0

    def __post_init__(self) -> None:
        if min(msgspec.structs.astuple(self)) < 0:
            raise TeamsError("a quota must be 0 (unlimited) or more")

    @property
    def bounded(self) -> bool:
        """Whether any limit is set."""
        return any(msgspec.structs.astuple(self))


class Team(msgspec.Struct, frozen=True):
    """A team. models: names that it may use; empty: all. weight: its share under load, relative to other teams'.
    shares_answers: it uses the answer cache that all such teams share, instead of its own. cost_per_month: how much it
    may spend, by the prices of the models; 0: unlimited."""

    name: str
    created: float
    models: tuple[str, ...] = ()
    weight: float = 1.0
    shares_answers: bool = False
    quota: Quota = Quota()
    cost_per_month: float = 0.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TeamsError(
                "a team's name must be 1 to 64 letters, digits, dots, dashes and underscores, and start with a letter "
                "or a digit"
            )
        if not 0.01 <= self.weight <= 100:
            raise TeamsError("a team's weight must be between 0.01 and 100")
        if not 0 <= self.cost_per_month <= MAX_COST:
            raise TeamsError(f"a team's cost_per_month must be between 0 (unlimited) and {MAX_COST:,}")

    @property
    def bounded(self) -> bool:
        """Whether any limit is set."""
        return self.quota.bounded or self.cost_per_month > 0


class Key(msgspec.Struct, frozen=True):
    """A stored key. ends: Unix time from which it is invalid; 0: never. label: what it is for. replaced_by: the id of
    the key that replaced it; empty: none."""

    id: str
    team: str
    digest: str
    created: float
    label: str = ""
    ends: float = 0.0
    replaced_by: str = ""

    def is_valid(self, now: float) -> bool:
        """Whether it is valid at this Unix time: neither expired nor revoked."""
        return not self.ends or now < self.ends

    def public_fields(self) -> dict[str, Any]:
        """Its public fields."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if name != "digest"}


class CreatedKey(msgspec.Struct, frozen=True):
    """A new key. secret: the whole key, to be shown this once."""

    secret: str
    key: Key


class UnknownKey(Exception):
    """No such key, or it has ended. The message is safe to show to whoever presented it."""
