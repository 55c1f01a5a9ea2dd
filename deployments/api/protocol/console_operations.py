"""The routes of the administrators' console in the OpenAPI document."""

from cluster.records.cache import ShownAnswer
from deployments.api.protocol.console import (
    BudgetsResponse,
    CachedAnswersResponse,
    ErrorsResponse,
    ModelsResponse,
    RequestsResponse,
    UsageReportResponse,
)
from deployments.api.protocol.curated import AnswerDeletedResponse
from deployments.api.protocol.operation import Operation

CONSOLE_OPERATIONS = (
    Operation(
        "/admin/usage",
        "Report usage by day, team and model, with its cost and what the cache saved",
        answer=UsageReportResponse,
        query=("days", "team", "model", "by"),
    ),
    Operation("/admin/budgets", "Report what teams have used of their month", answer=BudgetsResponse),
    Operation(
        "/admin/requests",
        "List the last requests",
        answer=RequestsResponse,
        query=("limit", "team", "model", "errors"),
    ),
    Operation("/admin/errors", "List the errors of the last hour by kind", answer=ErrorsResponse),
    Operation("/admin/models", "List the models with their replicas, speed and scaling", answer=ModelsResponse),
    Operation(
        "/admin/cache",
        "Search the cached answers",
        answer=CachedAnswersResponse,
        query=("search", "model", "namespace", "team", "limit", "cursor"),
    ),
    Operation("/admin/cache/{key}", "Read a cached answer", answer=ShownAnswer, parameters=("key",)),
    Operation(
        "/admin/cache/{key}",
        "Delete a cached answer",
        answer=AnswerDeletedResponse,
        parameters=("key",),
        verb="delete",
    ),
)
