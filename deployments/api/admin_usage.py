"""Usage and what it costs, over HTTP with an admin key."""

from contextlib import suppress

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.records import teams
from cluster.records.client import BlockingRedis
from cluster.reports.budgets import read_budgets
from cluster.reports.prices import Prices
from cluster.reports.usage import GROUPINGS, Grouping, summed, total
from deployments.api.admin_access import AdminAccess, integer, teams_unreachable
from deployments.api.http import json_response
from deployments.api.protocol.console import BudgetsResponse, UsageReportResponse
from deployments.common.errors import invalid_request
from deployments.common.redis import RedisUnavailable
from deployments.tenancy.usage import UsageRecorder

_DEFAULT_DAYS, _MAX_DAYS = 62, 400


class UsageAdminApi:
    """The routes that say what teams used."""

    def __init__(self, access: AdminAccess, usage: UsageRecorder, prices: Prices) -> None:
        self._access = access
        self._usage = usage
        self._prices = prices

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/admin/usage", self.usage, methods=["GET"]),
            Route("/admin/budgets", self.budgets, methods=["GET"]),
        ]

    async def usage(self, http: HttpRequest) -> Response:
        """GET /admin/usage: sums by day, team and model, or by those that the query's `by` names."""
        self._access.check(http)
        days, by = integer(http, "days", _DEFAULT_DAYS, _MAX_DAYS), _groupings(http)
        try:
            rows = await self._usage.read(days, http.query_params.get("team") or None)
        except RedisUnavailable:
            raise teams_unreachable() from None
        model = http.query_params.get("model")
        rows = [row for row in rows if model in (None, "", row.model)]
        prices = self._prices
        return json_response(UsageReportResponse(summed(rows, by, prices), total(rows, prices), prices.currency))

    async def budgets(self, http: HttpRequest) -> Response:
        """GET /admin/budgets: what every team has used of its tokens and money of this month."""
        self._access.check(http)
        with suppress(RedisUnavailable):
            await self._usage.flush()

        def read(client: BlockingRedis) -> BudgetsResponse:
            known = teams.read_registry(client).teams.values()
            return BudgetsResponse(read_budgets(client, known, self._prices), self._prices.currency)

        return json_response(await self._access.run(read))


def _groupings(http: HttpRequest) -> list[Grouping]:
    """What the query's `by` names. Raises ApiError 400."""
    names = http.query_params.get("by", ",".join(GROUPINGS)).split(",")
    if unknown := [name for name in names if name not in GROUPINGS]:
        raise invalid_request("by", f"by must name some of {', '.join(GROUPINGS)}; {unknown[0][:40]!r} is none.")
    return [name for name in GROUPINGS if name in names]
