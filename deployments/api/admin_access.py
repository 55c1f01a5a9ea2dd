"""What the routes below /admin share: the check of the admin key, calls to the teams' Redis, and the audit log."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from cluster.audit import Value
from cluster.records import teams
from cluster.records.client import BlockingRedis
from cluster.records.team_records import AlreadyExists, NotFound, TeamsError
from cluster.redis_client import connect
from deployments.api.audit_trail import AuditTrail
from deployments.api.http import read_body
from deployments.common.errors import ApiError, invalid_request
from deployments.common.redis import REDIS_ERRORS
from deployments.tenancy.auth import Authenticator, Caller

T = TypeVar("T")

_MAX_BODY_BYTES = 65_536
_RECEIVE_TIMEOUT_S = 20.0


class AdminAccess:
    """One router's access to what admin keys manage."""

    def __init__(self, authenticator: Authenticator, url: str, trail: AuditTrail) -> None:
        """url: of the teams' Redis. Admin calls are rare and block, so each gets its own thread and connection."""
        self._authenticator = authenticator
        self._url = url
        self._trail = trail

    def check(self, http: HttpRequest) -> Caller:
        """The caller, who has an admin key. Raises ApiError 401, 403.

        The first keys are created by the command, never over HTTP: any program and any web page on this machine could
        ask for one."""
        caller = self._authenticator.authenticate(http.headers)
        if not caller.admin:
            advice = " Without one, use the commands dray teams and dray keys there." if caller.team is None else ""
            raise admin_key_needed(advice)
        return caller

    async def run(self, work: Callable[[BlockingRedis], T], code: str = "teams_error", url: str = "") -> T:
        """Runs work on the teams' Redis, or on the one at this URL. Raises ApiError 400, 404, 409, 503.

        code: of the error where the change is not possible.
        """

        def connect_and_work() -> T:
            with connect(url or self._url) as client:
                return work(client)

        try:
            return await asyncio.to_thread(connect_and_work)
        except TeamsError as error:
            status = 404 if isinstance(error, NotFound) else 409 if isinstance(error, AlreadyExists) else 400
            message = str(error)  # not capitalize(): it would lower the letters of names
            raise ApiError(status, f"{message[:1].upper()}{message[1:]}.", code=code) from None
        except REDIS_ERRORS as error:
            raise (_disk_full() if teams.REFUSES_WRITES in str(error) else teams_unreachable()) from None

    async def record(self, caller: Caller, action: str, target: str, **details: Value) -> None:
        """Writes into the audit log what this caller did."""
        await self._trail.record(caller.actor, action, target, **details)


async def admin_body(http: HttpRequest, max_bytes: int = _MAX_BODY_BYTES) -> bytes:
    """The body of an admin request. Raises ApiError 408, 413, 415."""
    return await read_body(http, http.headers, max_bytes, _RECEIVE_TIMEOUT_S)


def admin_key_needed(advice: str = "") -> ApiError:
    """403: the key is no admin key. advice: what else one can do."""
    message = f"This needs an admin key. Create one on Dray's machine: dray keys create --admin.{advice}"
    return ApiError(403, message, code="admin_key_needed")


def teams_unreachable() -> ApiError:
    """503: nothing that is kept beside the teams can be read or changed now."""
    message = "The Redis that keeps teams, keys and usage does not answer."
    return ApiError(503, message, code="teams_unreachable", kind="server_error", retry_after_s=1)


def _disk_full() -> ApiError:
    message = "The disk of data_dir is full: nothing was changed. Make room and try again. Keys can still be revoked."
    return ApiError(503, message, code="disk_full", kind="server_error", retry_after_s=60)


def integer(http: HttpRequest, name: str, default: int, max_value: int) -> int:
    """A number from 1 to max_value in the query. Raises ApiError 400."""
    text = http.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= max_value):
        raise invalid_request(name, f"{name} must be a number from 1 to {max_value}.")
    return int(text)
