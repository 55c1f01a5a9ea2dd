"""The last requests and errors of all routers, over HTTP with an admin key."""

import time

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.records.activity import RouterActivity, read_activity
from cluster.reports.activity import last_errors, last_requests
from cluster.reports.models import shown_models
from deployments.api.admin_access import AdminAccess, integer
from deployments.api.http import json_response
from deployments.api.protocol.console import ErrorsResponse, ModelsResponse, RequestsResponse
from deployments.common.errors import invalid_request
from deployments.tenancy.activity import ActivityLog

_MAX_REQUESTS = 1000


class ActivityAdminApi:
    """The routes that say what routers did lately."""

    def __init__(self, access: AdminAccess, activity: ActivityLog) -> None:
        """activity: of this router, whose last requests are shown at once."""
        self._access = access
        self._activity = activity

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/admin/requests", self.requests, methods=["GET"]),
            Route("/admin/errors", self.errors, methods=["GET"]),
            Route("/admin/models", self.models, methods=["GET"]),
        ]

    async def requests(self, http: HttpRequest) -> Response:
        """GET /admin/requests: the last ones, or those of the query's team or model, or those that failed."""
        self._access.check(http)
        query, limit = http.query_params, integer(http, "limit", 100, _MAX_REQUESTS)
        if (errors := query.get("errors", "false")) not in ("true", "false"):
            raise invalid_request("errors", "errors must be true or false.")
        team, model = query.get("team", ""), query.get("model", "")
        shown = last_requests(await self._reports(), limit, team=team, model=model, errors=errors == "true")
        return json_response(RequestsResponse(shown))

    async def errors(self, http: HttpRequest) -> Response:
        """GET /admin/errors: those of the last hour by kind."""
        self._access.check(http)
        return json_response(ErrorsResponse(last_errors(await self._reports(), time.time())))

    async def models(self, http: HttpRequest) -> Response:
        """GET /admin/models: with their replicas, speed, and the last changes by autoscaling."""
        self._access.check(http)
        return json_response(ModelsResponse(shown_models(await self._reports(), time.time())))

    async def _reports(self) -> list[RouterActivity]:
        await self._activity.publish()
        return await self._access.run(lambda client: read_activity(client, time.time()))
