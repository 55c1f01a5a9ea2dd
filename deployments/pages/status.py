"""The status page: an HTML file that reads /metrics, and what it shows beside the metrics."""

import asyncio
from functools import cache
from hashlib import blake2b
from pathlib import Path

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.cores import usable_cores
from cluster.models.folder import ServedModel
from deployments.api.http import json_response

_FILE = Path(__file__).with_name("status.html")


class CoreStatus(msgspec.Struct, frozen=True):
    """A core of the machine. cpus: its hardware threads. node: its NUMA node. cache: its last-level cache."""

    cpus: tuple[int, ...]
    node: int
    cache: int
    usable: bool


class MachineStatus(msgspec.Struct, frozen=True):
    """What the metrics lack: all models, also those that are asleep, and the cores of this node.

    chat: whether there is a chat page.
    """

    models: list[str]
    chat: bool
    cores: list[CoreStatus]


class StatusPage:
    """GET /status, for people. Like /metrics, it needs no key."""

    def __init__(self, models: list[ServedModel], *, chat: bool) -> None:
        self._chat = chat
        self._models = [model.name for model in models]
        self._page = _FILE.read_bytes()
        self._etag = f'"{blake2b(self._page, digest_size=8).hexdigest()}"'

    def routes(self) -> list[Route]:
        """The page, and the data that it loads."""
        return [Route("/status", self.page), Route("/status/machine", self.machine)]

    async def page(self, http: HttpRequest) -> Response:
        """GET /status"""
        headers = {"ETag": self._etag, "Cache-Control": "no-cache"}
        if http.headers.get("if-none-match") == self._etag:
            return Response(status_code=304, headers=headers)
        return Response(self._page, media_type="text/html", headers=headers)

    async def machine(self, http: HttpRequest) -> Response:
        """GET /status/machine"""
        return json_response(MachineStatus(self._models, self._chat, await asyncio.to_thread(_cores)))


@cache
def _cores() -> list[CoreStatus]:
    cores = usable_cores()
    usable = set(cores.cores)
    return [CoreStatus(core.cpus, core.node, core.llc, core in usable) for core in cores.topology.cores]
