"""Who somebody is by a token of single sign-on, or by a session that began with one.

Apart from what checks them, which imports a library for signatures: most routers need none.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token stands for. team: empty if its claims name none. ends: Unix time at which it is checked again."""

    subject: str
    team: str
    admin: bool
    ends: float


class Identities(Protocol):
    """What knows those who present something: tokens, or sessions."""

    async def prepare(self, presented: str) -> None:
        """Fetches what `identity` needs to know; refuses nothing."""

    def identity(self, presented: str) -> Identity:
        """Who presented it. Raises ApiError 401, 503."""


def is_token(presented: str) -> bool:
    """Whether this has the form of a signed token; no key of Dray has it."""
    return presented.count(".") == 2
