"""The answer cache over HTTP with an admin key: search it, read an answer, delete one."""

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.records.cache import ShownAnswer, show
from cluster.records.cache_search import delete, search
from cluster.records.client import BlockingRedis
from cluster.records.team_records import NotFound
from deployments.api.admin_access import AdminAccess, integer
from deployments.api.http import json_response
from deployments.api.protocol.console import CachedAnswersResponse
from deployments.api.protocol.curated import AnswerDeletedResponse
from deployments.common.errors import ApiError

_MAX_PAGE = 200
_CODE = "cache_error"


class CacheAdminApi:
    """The routes below /admin/cache. Pinning and correcting an answer are in those of curated answers."""

    def __init__(self, access: AdminAccess, url: str) -> None:
        """url: of the answers' Redis; empty where answers are not cached."""
        self._access = access
        self._url = url

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/admin/cache", self.answers, methods=["GET"]),
            Route("/admin/cache/{key}", self.answer, methods=["GET", "DELETE"]),
        ]

    async def answers(self, http: HttpRequest) -> Response:
        """GET /admin/cache: stored answers, a page at a time."""
        self._access.check(http)
        query, limit = http.query_params, integer(http, "limit", 50, _MAX_PAGE)
        text, model, cursor = (query.get(name, "") for name in ("search", "model", "cursor"))
        namespace = f"team.{team}" if (team := query.get("team")) else query.get("namespace", "")

        def find(client: BlockingRedis) -> CachedAnswersResponse:
            page = search(client, text, model=model, namespace=namespace, cursor=cursor, limit=limit)
            return CachedAnswersResponse(page.data, page.next, page.scanned)

        return json_response(await self._access.run(find, _CODE, self._checked_url()))

    async def answer(self, http: HttpRequest) -> Response:
        """GET, DELETE /admin/cache/{key}: one of them."""
        caller = self._access.check(http)
        key, url = http.path_params["key"], self._checked_url()
        if http.method == "DELETE":
            model, namespace = await self._access.run(lambda client: delete(client, key), _CODE, url)
            await self._access.record(caller, "cache.delete", key, model=model, namespace=namespace)
            return json_response(AnswerDeletedResponse(key))

        def read(client: BlockingRedis) -> ShownAnswer:
            if (answer := show(client, key)) is None:
                raise NotFound("no answer is cached under this key")
            return answer

        return json_response(await self._access.run(read, _CODE, url))

    def _checked_url(self) -> str:
        if not self._url:
            raise ApiError(400, "Answers are not cached here (cache.enabled).", code=_CODE)
        return self._url
