"""Teams, keys and usage over HTTP: with an admin key, and for each team its own usage."""

import time
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.audit import Value
from cluster.records import teams
from cluster.records.client import BlockingRedis
from cluster.records.team_records import Team
from deployments.api.admin_access import AdminAccess, admin_body, integer, teams_unreachable
from deployments.api.http import json_response
from deployments.api.protocol.admin import (
    CreateKeyRequest,
    CreateTeamRequest,
    KeyResponse,
    KeysResponse,
    LoginRequest,
    LoginResponse,
    RotateKeyRequest,
    TeamDeletedResponse,
    TeamsResponse,
    UpdateTeamRequest,
    UsageResponse,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import invalid_request
from deployments.common.redis import RedisUnavailable
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.usage import UsageRecorder

_MAX_DAYS = 400

_decode_login = msgspec.json.Decoder(LoginRequest)
_decode_create_team = msgspec.json.Decoder(CreateTeamRequest)
_decode_update_team = msgspec.json.Decoder(UpdateTeamRequest)
_decode_create_key = msgspec.json.Decoder(CreateKeyRequest)
_decode_rotate_key = msgspec.json.Decoder(RotateKeyRequest)


class AdminApi:
    """The routes below /admin, and /v1/usage."""

    def __init__(self, access: AdminAccess, authenticator: Authenticator, usage: UsageRecorder) -> None:
        self._access = access
        self._authenticator = authenticator
        self._usage = usage

    def routes(self) -> list[Route]:
        """Those that need an admin key."""
        return [
            Route("/admin/logins", self.logins, methods=["POST"]),
            Route("/admin/teams", self.teams, methods=["GET", "POST"]),
            Route("/admin/teams/{name}", self.team, methods=["GET", "PATCH", "DELETE"]),
            Route("/admin/keys", self.keys, methods=["GET", "POST"]),
            Route("/admin/keys/{id}", self.key, methods=["GET", "DELETE"]),
            Route("/admin/keys/{id}/rotate", self.rotate, methods=["POST"]),
        ]

    async def logins(self, http: HttpRequest) -> Response:
        """Records that the caller has entered this key at the console."""
        caller = self._access.check(http)
        parse(_decode_login, await admin_body(http))
        await self._access.record(caller, "console.login", "")
        return json_response(LoginResponse(caller.actor), 201)

    async def teams(self, http: HttpRequest) -> Response:
        """Lists the teams, or creates one."""
        caller = self._access.check(http)
        if http.method == "GET":
            registry = await self._access.run(teams.read_registry)
            return json_response(TeamsResponse(list(registry.teams.values())))
        request = parse(_decode_create_team, await admin_body(http))

        def add(client: BlockingRedis) -> Team:
            team = Team(created=time.time(), **msgspec.structs.asdict(request))
            teams.add_team(client, team)
            return team

        team = await self._access.run(add)
        await self._access.record(caller, "team.create", team.name, **_audited(request))
        return json_response(team, 201)

    async def team(self, http: HttpRequest) -> Response:
        """Reads or changes a team, or deletes it with its keys."""
        caller = self._access.check(http)
        name = http.path_params["name"]
        if http.method == "GET":
            return json_response(await self._access.run(lambda client: teams.read_team(client, name)))
        if http.method == "DELETE":
            keys = await self._access.run(lambda client: teams.remove_team(client, name))
            await self._access.record(caller, "team.remove", name, keys=keys)
            return json_response(TeamDeletedResponse(name, keys))
        fields = msgspec.structs.asdict(parse(_decode_update_team, await admin_body(http)))
        changes = {field: value for field, value in fields.items() if value is not msgspec.UNSET}
        team = await self._access.run(lambda client: teams.change_team(client, name, **changes))
        await self._access.record(caller, "team.change", name, **_audited(changes))
        return json_response(team)

    async def keys(self, http: HttpRequest) -> Response:
        """Lists the keys, without their secrets; or creates one, whose secret only this response shows."""
        caller = self._access.check(http)
        if http.method == "GET":
            registry = await self._access.run(teams.read_registry)
            return json_response(KeysResponse([KeyResponse.of(key) for key in registry.keys.values()]))
        request = parse(_decode_create_key, await admin_body(http))
        if request.expires_in_s < 0:
            raise invalid_request("expires_in_s", "expires_in_s must be 0 (never) or a number of seconds above 0.")
        created = await self._access.run(
            lambda client: teams.create_key(client, request.team, request.label, request.expires_in_s)
        )
        await self._access.record(caller, "key.create", created.key.id, team=request.team, label=request.label)
        return json_response(KeyResponse.of(created.key, created.secret), 201)

    async def key(self, http: HttpRequest) -> Response:
        """Reads or revokes a key."""
        caller = self._access.check(http)
        number = http.path_params["id"]
        if http.method == "DELETE":
            revoked = await self._access.run(lambda client: teams.revoke_key(client, number))
            await self._access.record(caller, "key.revoke", number, team=revoked.key.team)
            return json_response(KeyResponse.of(revoked.key, kept=revoked.kept))
        return json_response(KeyResponse.of(await self._access.run(lambda client: teams.read_key(client, number))))

    async def rotate(self, http: HttpRequest) -> Response:
        """Replaces a key: the new one expires when the old one would have, and the old one works for grace_s more."""
        caller = self._access.check(http)
        number = http.path_params["id"]
        request = parse(_decode_rotate_key, await admin_body(http) or b"{}")
        created = await self._access.run(lambda client: teams.rotate_key(client, number, max(0.0, request.grace_s)))
        await self._access.record(caller, "key.rotate", number, team=created.key.team, new=created.key.id)
        return json_response(KeyResponse.of(created.key, created.secret), 201)

    async def usage(self, http: HttpRequest) -> Response:
        """GET /v1/usage: of the caller's team; with an admin key of all teams, or of the one in the query's `team`."""
        caller = self._authenticator.authenticate(http.headers)
        days = integer(http, "days", 30, _MAX_DAYS)
        team = http.query_params.get("team") if caller.admin else caller.name
        try:
            return json_response(UsageResponse(await self._usage.read(days, team)))
        except RedisUnavailable:
            raise teams_unreachable() from None


def _audited(fields: object) -> dict[str, Value]:
    """The fields of a change, as the audit log has them."""
    values: dict[str, Any] = msgspec.to_builtins(fields)
    audited: dict[str, Value] = {f"quota.{name}": value for name, value in values.pop("quota", {}).items()}
    return audited | {name: value for name, value in values.items() if name != "name"}
