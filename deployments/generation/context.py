"""A request for an answer, with everything about it that its answer does not depend on."""

from dataclasses import dataclass
from typing import Literal

from deployments.cache.answers import CacheControl
from deployments.common.types import GenerationRequest
from deployments.generation.endpoint import ModelEndpoint
from deployments.routing.queue_class import QueueClass
from deployments.tenancy.auth import Caller
from deployments.tenancy.quotas import QuotaGrant

Result = Literal["hit", "miss", "join", "bypass"]
"""How a request got its answer, as the header X-Dray-Cache says it."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks what, and until when.

    started, deadline: on time.perf_counter's clock. batch: requests of people go first. idempotency_key: a request with
    the same key and the same question gets the same answer.
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

    @property
    def queue_class(self) -> QueueClass:
        return QueueClass(self.caller.name, self.caller.weight, self.batch)
