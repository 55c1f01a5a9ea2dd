"""The status page: an HTML file that says nothing of this Dray, and the data that it loads for those who may see it."""

import asyncio
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from pathlib import Path

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.cores import usable_cores
from cluster.settings import StatusReaders
from deployments.api.admin_access import admin_key_needed
from deployments.api.http import json_response
from deployments.api.pacing import Paced
from deployments.api.static import ICON
from deployments.observability.metrics import node_metrics
from deployments.pages.node_load import NodeLoad, node_load
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.sessions import session_of_reader

_FILE = Path(__file__).with_name("status.html")


class CoreStatus(msgspec.Struct, frozen=True):
    """A core of the machine. cpus: its hardware threads. node: its NUMA node. cache: its last-level cache."""

    cpus: tuple[int, ...]
    node: int
    cache: int
    usable: bool


class MachineStatus(msgspec.Struct, frozen=True):
    """All models, also those that are asleep, and the cores of this node. chat: whether there is a chat page."""

    models: list[str]
    chat: bool
    cores: list[CoreStatus]


class StatusPage:
    """GET /status, for people: the page for everybody, its data for those whom the setting names."""

    def __init__(self, models: list[str], authenticator: Authenticator, readers: StatusReaders, *, chat: bool) -> None:
        """models: their names. readers: who sees the data."""
        self._models = models
        self._authenticator = authenticator
        self._readers = readers
        self._chat = chat
        marks = f'<html lang="en" data-readers="{readers}" data-chat="{str(chat).lower()}">'
        page = _FILE.read_text().replace('<html lang="en">', marks, 1).replace('<link rel="icon">', ICON, 1)
        self._page = page.encode()
        self._etag = f'"{blake2b(self._page, digest_size=8).hexdigest()}"'
        self._load = Paced(lambda: asyncio.to_thread(_load))

    def routes(self) -> list[Route]:
        """The page, and the data that it loads."""
        return [
            Route("/status", self.page),
            Route("/status/machine", self.machine),
            Route("/status/load", self.load),
        ]

    async def page(self, http: HttpRequest) -> Response:
        """GET /status"""
        headers = {"ETag": self._etag, "Cache-Control": "no-cache"}
        if http.headers.get("if-none-match") == self._etag:
            return Response(status_code=304, headers=headers)
        return Response(self._page, media_type="text/html", headers=headers)

    async def machine(self, http: HttpRequest) -> Response:
        """GET /status/machine: what does not change."""
        await self._check(http.headers)
        cores = await asyncio.to_thread(_cores)
        return json_response(MachineStatus(self._models, self._chat, cores), headers=_PRIVATE)

    async def load(self, http: HttpRequest) -> Response:
        """GET /status/load: what the page asks for every two seconds."""
        await self._check(http.headers)
        return json_response(await self._load.value(), headers=_PRIVATE)

    async def _check(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401 or 403 for those who may not see it, 503 until keys are loaded.

        An admin who has signed on to the console has a cookie and no key.
        """
        if self._readers == "everyone":
            return
        if "authorization" not in headers and (secret := session_of_reader(headers)):
            headers = {"authorization": f"Bearer {secret}"}
            await self._authenticator.prepare(headers)
        caller = self._authenticator.authenticate(headers)
        if self._readers == "admins" and not caller.admin:
            raise admin_key_needed()


_PRIVATE = {"Cache-Control": "no-store"}


def _load() -> NodeLoad:
    return node_load(node_metrics())


@cache
def _cores() -> list[CoreStatus]:
    cores = usable_cores()
    usable = set(cores.cores)
    return [CoreStatus(core.cpus, core.node, core.llc, core in usable) for core in cores.topology.cores]
