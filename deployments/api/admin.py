"""Teams, keys and usage over HTTP: with an admin key, and for each team its own usage."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.records import teams
from cluster.records.client import BlockingRedis
from cluster.records.team_records import AlreadyExists, NotFound, Team, TeamsError
from cluster.redis_client import connect
from deployments.api.http import json_response, read_body
from deployments.api.protocol.admin import (
    CreateKeyRequest,
    CreateTeamRequest,
    KeyResponse,
    KeysResponse,
    RotateKeyRequest,
    TeamDeletedResponse,
    TeamsResponse,
    UpdateTeamRequest,
    UsageResponse,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError, invalid_request
from deployments.common.redis import REDIS_ERRORS, RedisUnavailable
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.usage import UsageRecorder

T = TypeVar("T")

_MAX_BODY_BYTES = 65_536
_RECEIVE_TIMEOUT_S = 20.0
_MAX_DAYS = 400

_decode_create_team = msgspec.json.Decoder(CreateTeamRequest)
_decode_update_team = msgspec.json.Decoder(UpdateTeamRequest)
_decode_create_key = msgspec.json.Decoder(CreateKeyRequest)
_decode_rotate_key = msgspec.json.Decoder(RotateKeyRequest)


class AdminApi:
    """The routes below /admin, and /v1/usage."""

    def __init__(self, authenticator: Authenticator, usage: UsageRecorder, url: str) -> None:
        """url: of the teams' Redis. Admin calls are rare and block, so each gets its own thread and connection."""
        self._authenticator = authenticator
        self._usage = usage
        self._url = url

    def routes(self) -> list[Route]:
        """Those that need an admin key."""
        return [
            Route("/admin/teams", self.teams, methods=["GET", "POST"]),
            Route("/admin/teams/{name}", self.team, methods=["GET", "PATCH", "DELETE"]),
            Route("/admin/keys", self.keys, methods=["GET", "POST"]),
            Route("/admin/keys/{id}", self.key, methods=["GET", "DELETE"]),
            Route("/admin/keys/{id}/rotate", self.rotate, methods=["POST"]),
        ]

    async def teams(self, http: HttpRequest) -> Response:
        """Lists the teams, or creates one."""
        self._check(http)
        if http.method == "GET":
            registry = await self._run(teams.read_registry)
            return json_response(TeamsResponse(list(registry.teams.values())))
        request = parse(_decode_create_team, await _body(http))

        def add(client: BlockingRedis) -> Team:
            team = Team(created=time.time(), **msgspec.structs.asdict(request))
            teams.add_team(client, team)
            return team

        return json_response(await self._run(add), 201)

    async def team(self, http: HttpRequest) -> Response:
        """Reads or changes a team, or deletes it with its keys."""
        self._check(http)
        name = http.path_params["name"]
        if http.method == "GET":
            return json_response(await self._run(lambda client: teams.read_team(client, name)))
        if http.method == "DELETE":
            keys = await self._run(lambda client: teams.remove_team(client, name))
            return json_response(TeamDeletedResponse(name, keys))
        fields = msgspec.structs.asdict(parse(_decode_update_team, await _body(http)))
        changes = {field: value for field, value in fields.items() if value is not msgspec.UNSET}
        return json_response(await self._run(lambda client: teams.change_team(client, name, **changes)))

    async def keys(self, http: HttpRequest) -> Response:
        """Lists the keys, without their secrets; or creates one, whose secret only this response shows."""
        self._check(http)
        if http.method == "GET":
            registry = await self._run(teams.read_registry)
            return json_response(KeysResponse([KeyResponse.of(key) for key in registry.keys.values()]))
        request = parse(_decode_create_key, await _body(http))
        if request.expires_in_s < 0:
            raise invalid_request("expires_in_s", "expires_in_s must be 0 (never) or a number of seconds above 0.")
        created = await self._run(
            lambda client: teams.create_key(client, request.team, request.label, request.expires_in_s)
        )
        return json_response(KeyResponse.of(created.key, created.secret), 201)

    async def key(self, http: HttpRequest) -> Response:
        """Reads or revokes a key."""
        self._check(http)
        number = http.path_params["id"]
        if http.method == "DELETE":
            revoked = await self._run(lambda client: teams.revoke_key(client, number))
            return json_response(KeyResponse.of(revoked.key, kept=revoked.kept))
        return json_response(KeyResponse.of(await self._run(lambda client: teams.read_key(client, number))))

    async def rotate(self, http: HttpRequest) -> Response:
        """Replaces a key: the new one expires when the old one would have, and the old one works for grace_s more."""
        self._check(http)
        number = http.path_params["id"]
        request = parse(_decode_rotate_key, await _body(http) or b"{}")
        created = await self._run(lambda client: teams.rotate_key(client, number, max(0.0, request.grace_s)))
        return json_response(KeyResponse.of(created.key, created.secret), 201)

    async def usage(self, http: HttpRequest) -> Response:
        """GET /v1/usage: of the caller's team; with an admin key of all teams, or of the one in the query's `team`."""
        caller = self._authenticator.authenticate(http.headers)
        days = _integer(http, "days", 30, _MAX_DAYS)
        team = http.query_params.get("team") if caller.admin else caller.name
        try:
            return json_response(UsageResponse(await self._usage.read(days, team)))
        except RedisUnavailable:
            raise _teams_unreachable() from None

    def _check(self, http: HttpRequest) -> None:
        """Raises ApiError 401, 403. The first keys are created by the command, never over HTTP: any program and any
        web page on this machine could ask for one."""
        caller = self._authenticator.authenticate(http.headers)
        if not caller.admin:
            message = "This needs an admin key. Create one on Dray's machine: dray keys create --admin."
            if caller.team is None:
                message += " Without one, use the commands dray teams and dray keys there."
            raise ApiError(403, message, code="admin_key_needed")

    async def _run(self, work: Callable[[BlockingRedis], T]) -> T:
        def connect_and_work() -> T:
            with connect(self._url) as client:
                return work(client)

        try:
            return await asyncio.to_thread(connect_and_work)
        except TeamsError as error:
            status = 404 if isinstance(error, NotFound) else 409 if isinstance(error, AlreadyExists) else 400
            message = str(error)  # not capitalize(): it would lower the letters of names
            raise ApiError(status, f"{message[:1].upper()}{message[1:]}.", code="teams_error") from None
        except REDIS_ERRORS as error:
            raise (_disk_full() if teams.REFUSES_WRITES in str(error) else _teams_unreachable()) from None


async def _body(http: HttpRequest) -> bytes:
    return await read_body(http, http.headers, _MAX_BODY_BYTES, _RECEIVE_TIMEOUT_S)


def _teams_unreachable() -> ApiError:
    message = "The Redis that keeps teams, keys and usage does not answer."
    return ApiError(503, message, code="teams_unreachable", kind="server_error", retry_after_s=1)


def _disk_full() -> ApiError:
    message = "The disk of data_dir is full: nothing was changed. Make room and try again. Keys can still be revoked."
    return ApiError(503, message, code="disk_full", kind="server_error", retry_after_s=60)


def _integer(http: HttpRequest, name: str, default: int, max_value: int) -> int:
    text = http.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= max_value):
        raise invalid_request(name, f"{name} must be a number from 1 to {max_value}.")
    return int(text)
