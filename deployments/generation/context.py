"""A request for an answer, with everything about it that its answer does not depend on."""

from dataclasses import dataclass, field
from typing import Literal

from deployments.cache.answers import CacheControl
from deployments.common.errors import ApiError
from deployments.common.progress import RequestProgress
from deployments.common.types import GenerationRequest
from deployments.generation.endpoint import ModelEndpoint
from deployments.routing.queue_class import QueueClass
from deployments.tenancy.auth import Caller
from deployments.tenancy.quotas import QuotaGrant

FORMAT_FIELD = "response_format"
"""The field that errors of what an answer must be name, before the request's own replaces it."""
Result = Literal["hit", "curated", "miss", "join", "bypass"]
"""How a request got its answer, as the header X-Dray-Cache says it."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks what, and until when.

    started, deadline: on time.perf_counter's clock. batch: requests of people go first. idempotency_key: a request with
    the same key and the same question gets the same answer. format_field: the one that says what the answer must be.
    user: the tag of the user whom the request names (cluster.records.forget); empty: none. routed: the names of the
    routed model that it asks for, whose rules have chosen the endpoint. progress: what is noted of the request for
    administrators.
    """

    endpoint: ModelEndpoint
    request: GenerationRequest
    caller: Caller
    control: CacheControl
    started: float
    deadline: float
    grant: QuotaGrant
    batch: bool = False
    idempotency_key: str = ""
    format_field: str = FORMAT_FIELD
    user: str = ""
    routed: tuple[str, ...] = ()
    progress: RequestProgress = field(default_factory=RequestProgress)

    def name_field(self, error: BaseException) -> None:
        """Makes an error of what the answer must be name the request's own field."""
        if isinstance(error, ApiError):
            error.rename_param(FORMAT_FIELD, self.format_field)

    @property
    def queue_class(self) -> QueueClass:
        return QueueClass(self.caller.name, self.caller.weight, self.batch)
