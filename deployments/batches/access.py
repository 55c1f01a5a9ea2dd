"""What the routes of files and batches share: who asks, pages of lists, and errors of what is kept away."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from starlette.requests import Request as HttpRequest

from cluster.objects.store import DamagedObject
from cluster.records.sealing import Unreadable
from deployments.common.errors import ApiError, invalid_request, shortened
from deployments.common.redis import RedisUnavailable
from deployments.tenancy.auth import Authenticator, Caller

log = logging.getLogger("dray.batches")


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Identified)


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    after: str | None
    limit: int
    ascending: bool = False

    @classmethod
    def of(cls, http: HttpRequest, default: int, most: int) -> "Page":
        """The page in a query. Raises ApiError 400."""
        query = http.query_params
        limit, order = query.get("limit", str(default)), query.get("order", "desc")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 6 and 1 <= int(limit) <= most):
            raise invalid_request("limit", f"limit must be a number from 1 to {most}.")
        if order not in ("asc", "desc"):
            raise invalid_request("order", "order must be asc or desc.")
        return cls(query.get("after") or None, int(limit), order == "asc")

    def start(self, ids: Sequence[str]) -> int:
        """Where it begins in a list of ids. Raises ApiError 400 for one after an id that is not there."""
        if self.after is None:
            return 0
        if self.after not in ids:
            raise invalid_request("after", f"after is '{shortened(self.after)}', which is the id of none of them.")
        return ids.index(self.after) + 1

    def fields(self, items: Sequence[T], total: int, start: int) -> dict[str, Any]:
        """What a list says of itself besides its items."""
        first, last = (items[0].id, items[-1].id) if items else (None, None)
        return {"first_id": first, "last_id": last, "has_more": start + len(items) < total}


def team_of(authenticator: Authenticator, http: HttpRequest) -> Caller:
    """The caller, who is no admin. Raises ApiError 401, 403."""
    caller = authenticator.authenticate(http.headers)
    if caller.admin and caller.team is None:
        message = "An admin key has no files or batches; use a team's key, or GET /admin/batches."
        raise ApiError(403, message, code="not_a_teams_key")
    return caller


@asynccontextmanager
async def reachable() -> AsyncIterator[None]:
    """Turns what is away into ApiError 503, and what cannot be decrypted into 500."""
    try:
        yield
    except DamagedObject as error:
        log.error("a file is damaged", extra={"reason": str(error)})
        message = "This file was changed or cut off where it is stored, so it cannot be read. Delete it."
        raise ApiError(500, message, code="file_damaged", kind="server_error") from None
    except Unreadable as error:
        log.error("a file cannot be decrypted", extra={"reason": str(error)})
        message = "This file cannot be decrypted: Dray does not have the key that encrypted it. Ask its operator."
        raise ApiError(500, message, code="file_unreadable", kind="server_error") from None
    except (RedisUnavailable, OSError):
        message = "Files and batches cannot be reached at the moment. Try again shortly."
        raise ApiError(503, message, code="batches_unavailable", kind="server_error", retry_after_s=1) from None


def not_kept() -> ApiError:
    """400: there is no place for files."""
    message = (
        "No files are kept here: with several machines or zones, the operator names a bucket for them (batches.url)."
    )
    return ApiError(400, message, code="files_not_kept")


def file_not_found(file_id: str, param: str = "id") -> ApiError:
    """404 for a file that the team does not have."""
    return ApiError(404, f"No such File object: {shortened(file_id)}", code="file_not_found", param=param)
