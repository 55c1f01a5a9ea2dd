"""What administrators see of usage, budgets, requests, the cache and the models."""

from typing import Literal

import msgspec

from cluster.records.cache_search import CachedAnswer
from cluster.reports.activity import ShownError, ShownRequest
from cluster.reports.budgets import Budget
from cluster.reports.models import ShownModel
from cluster.reports.usage import UsageSum


class UsageReportResponse(msgspec.Struct, frozen=True):
    """Usage in sums, and the sum of all. currency: of the money."""

    data: list[UsageSum]
    total: UsageSum
    currency: str
    object: Literal["list"] = "list"


class BudgetsResponse(msgspec.Struct, frozen=True):
    """What every team has used of its limits of the month. currency: of the money."""

    data: list[Budget]
    currency: str
    object: Literal["list"] = "list"


class RequestsResponse(msgspec.Struct, frozen=True):
    """The last requests of all routers, the newest first."""

    data: list[ShownRequest]
    object: Literal["list"] = "list"


class ErrorsResponse(msgspec.Struct, frozen=True):
    """The errors of the last hour by kind, the most frequent first."""

    data: list[ShownError]
    object: Literal["list"] = "list"


class CachedAnswersResponse(msgspec.Struct, frozen=True):
    """Some of the stored answers that were looked for. next: the cursor of those that follow; empty: there are no
    others. scanned: keys that were read for it."""

    data: list[CachedAnswer]
    next: str
    scanned: int
    object: Literal["list"] = "list"


class ModelsResponse(msgspec.Struct, frozen=True):
    """All served models, with their replicas on all machines."""

    data: list[ShownModel]
    object: Literal["list"] = "list"
