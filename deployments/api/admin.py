"""Teams, keys and usage over HTTP: for an admin key, and each team its own usage."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.records import teams
from cluster.records.teams import AlreadyThere, NotThere, Team, TeamsError
from cluster.redis_client import connect
from deployments.api.http import json_response, read_json
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

_MOST_BODY_BYTES = 65_536
_MOST_DAYS = 400

_team_wish = msgspec.json.Decoder(CreateTeamRequest)
_team_change = msgspec.json.Decoder(UpdateTeamRequest)
_key_wish = msgspec.json.Decoder(CreateKeyRequest)
_rotation = msgspec.json.Decoder(RotateKeyRequest)


class AdminApi:
    """The routes below /admin, and /v1/usage."""

    def __init__(self, door: Authenticator, usage: UsageRecorder, url: str) -> None:
        """url: of the Redis that keeps teams. Its calls are rare and block, so each has a thread and a connection."""
        self._door = door
        self._usage = usage
        self._url = url

    def routes(self) -> list[Route]:
        """For an admin key."""
        return [
            Route("/admin/teams", self.teams, methods=["GET", "POST"]),
            Route("/admin/teams/{name}", self.team, methods=["GET", "PATCH", "DELETE"]),
            Route("/admin/keys", self.keys, methods=["GET", "POST"]),
            Route("/admin/keys/{id}", self.key, methods=["GET", "DELETE"]),
            Route("/admin/keys/{id}/rotate", self.rotate, methods=["POST"]),
        ]

    async def teams(self, http: HttpRequest) -> Response:
        """All teams, or a new one."""
        self._check(http)
        if http.method == "GET":
            registry = await self._do(teams.read_registry)
            return json_response(TeamsResponse(list(registry.teams.values())))
        wish = parse(_team_wish, await read_json(http, http.headers, _MOST_BODY_BYTES))

        def add(client: Any) -> Team:
            team = Team(created=time.time(), **msgspec.structs.asdict(wish))
            teams.add_team(client, team)
            return team

        return json_response(await self._do(add), 201)

    async def team(self, http: HttpRequest) -> Response:
        """One team, changed or taken away with its keys."""
        self._check(http)
        name = http.path_params["name"]
        if http.method == "GET":
            return json_response(await self._do(lambda client: teams.read_team(client, name)))
        if http.method == "DELETE":
            return json_response(
                TeamDeletedResponse(name, await self._do(lambda client: teams.remove_team(client, name)))
            )
        change = parse(_team_change, await read_json(http, http.headers, _MOST_BODY_BYTES))
        changes = {
            field: value for field, value in msgspec.structs.asdict(change).items() if value is not msgspec.UNSET
        }
        return json_response(await self._do(lambda client: teams.change_team(client, name, **changes)))

    async def keys(self, http: HttpRequest) -> Response:
        """All keys, without what is secret in them; or a new one, shown this once."""
        self._check(http)
        if http.method == "GET":
            registry = await self._do(teams.read_registry)
            return json_response(KeysResponse([KeyResponse.of(key) for key in registry.keys.values()]))
        wish = parse(_key_wish, await read_json(http, http.headers, _MOST_BODY_BYTES))
        if wish.expires_in_s < 0:
            raise invalid_request("expires_in_s", "expires_in_s is a number of seconds from 0, which is never.")
        made = await self._do(lambda client: teams.create_key(client, wish.team, wish.label, wish.expires_in_s))
        return json_response(KeyResponse.of(made.key, made.secret), 201)

    async def key(self, http: HttpRequest) -> Response:
        """One key; DELETE revokes it."""
        self._check(http)
        number = http.path_params["id"]
        if http.method == "DELETE":
            return json_response(KeyResponse.of(await self._do(lambda client: teams.end_key(client, number))))
        return json_response(KeyResponse.of(await self._do(lambda client: teams.read_key(client, number))))

    async def rotate(self, http: HttpRequest) -> Response:
        """Replaces a key: the new one expires when the old one would have, and the old one works for grace_s more."""
        self._check(http)
        number = http.path_params["id"]
        rotation = parse(_rotation, await read_json(http, http.headers, _MOST_BODY_BYTES) or b"{}")
        made = await self._do(lambda client: teams.rotate_key(client, number, max(0.0, rotation.grace_s)))
        return json_response(KeyResponse.of(made.key, made.secret), 201)

    async def usage(self, http: HttpRequest) -> Response:
        """GET /v1/usage: of the team that asks; of all, or of the one that `team` names, for an admin key."""
        caller = self._door.authenticate(http.headers)
        days = _number(http, "days", 30, _MOST_DAYS)
        team = http.query_params.get("team") if caller.admin else caller.name
        try:
            found = await self._usage.read(days, team)
        except RedisUnavailable:
            raise _away() from None
        return json_response(UsageResponse(found))

    def _check(self, http: HttpRequest) -> None:
        caller = self._door.authenticate(http.headers)
        # Without any key only this machine can ask, and it may make the first.
        if not caller.admin and caller.team is not None:
            raise ApiError(403, "This needs an admin key: dray keys create --admin.", code="admin_key_needed")

    async def _do(self, work: Callable[[Any], T]) -> T:
        def go() -> T:
            with connect(self._url) as client:
                return work(client)

        try:
            return await asyncio.to_thread(go)
        except TeamsError as error:
            status = 404 if isinstance(error, NotThere) else 409 if isinstance(error, AlreadyThere) else 400
            raise ApiError(status, f"{str(error).capitalize()}.", code="teams_error") from None
        except REDIS_ERRORS:
            raise _away() from None


def _away() -> ApiError:
    message = "The Redis that keeps teams, keys and usage does not answer."
    return ApiError(503, message, code="teams_unreachable", kind="server_error", retry_after_s=1)


def _number(http: HttpRequest, name: str, default: int, most: int) -> int:
    text = http.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise invalid_request(name, f"{name} is a number from 1 to {most}.")
    return int(text)
