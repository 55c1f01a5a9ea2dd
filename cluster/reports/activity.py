"""The last requests and errors of all routers, as administrators read them."""

from collections.abc import Iterable

import msgspec

from cluster.records.activity import RequestRecord, RouterActivity, merged_errors
from cluster.reports.advice import advice


class ShownRequest(msgspec.Struct, frozen=True):
    """A request that has ended, as in RequestRecord. router: the one that answered it."""

    id: str
    time: float
    router: str
    team: str
    model: str
    api: str
    status: int
    code: str
    cache: str
    stream: bool
    queue_s: float | None
    first_token_s: float | None
    total_s: float
    prompt: int
    completion: int
    question: str
    answer: str

    @classmethod
    def of(cls, request: RequestRecord, router: str) -> "ShownRequest":
        fields = {name: value for name, value in msgspec.structs.asdict(request).items() if name != "texts_until"}
        return cls(router=router, **fields)

    @property
    def failed(self) -> bool:
        """Whether it ended in an error, be it in the middle of its stream."""
        return self.status >= 400 or bool(self.code)


class ShownError(msgspec.Struct, frozen=True):
    """Errors of one kind in the last hour. last: Unix time of the last one. advice: what to do about them."""

    status: int
    code: str
    team: str
    model: str
    count: int
    last: float
    advice: str


def last_requests(
    reports: Iterable[RouterActivity], limit: int, *, team: str = "", model: str = "", errors: bool = False
) -> list[ShownRequest]:
    """The last requests, the newest first: of a team, of a model, or those that failed."""
    shown = [ShownRequest.of(request, report.router) for report in reports for request in report.requests]
    wanted = [
        request
        for request in shown
        if team in ("", request.team) and model in ("", request.model) and (request.failed or not errors)
    ]
    return sorted(wanted, key=lambda request: -request.time)[:limit]


def last_errors(reports: Iterable[RouterActivity], now: float) -> list[ShownError]:
    """The errors of the last hour by kind, the most frequent first. now: Unix time."""
    return [
        ShownError(**msgspec.structs.asdict(error), advice=advice(error.status, error.code))
        for error in merged_errors(reports, now)
    ]
