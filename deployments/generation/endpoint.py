"""A generating model as a router serves it."""

from dataclasses import dataclass
from typing import Literal

from cluster.models.folder import ServedModel
from deployments.generation.prompts import PromptRenderer
from deployments.routing.dispatcher import Dispatcher
from deployments.routing.fair_queue import FairQueue


@dataclass(frozen=True, slots=True)
class ModelEndpoint:
    """A model with its chat template and tokenizer, its engines and the queue for them."""

    model: ServedModel
    fingerprint: str
    prompts: PromptRenderer
    dispatcher: Dispatcher
    queue: FairQueue

    @property
    def name(self) -> str:
        """The exact model, as clients see it in `system_fingerprint`."""
        return f"fp_{self.fingerprint[:12]}"

    def refuses(self, team: str) -> Literal["", "down", "busy"]:
        """Why a request of this team should go to another model, if there is one; empty: it need not."""
        settings = self.model.settings
        if self.dispatcher.replicas.gone and not settings.sleep_after_s:
            return "down"
        if self.queue.refusal(team) is not None or self.queue.wait_s() > settings.target_wait_s:
            return "busy"
        return ""

    @property
    def cache_subject(self) -> str:
        """What an answer depends on beside the request: the exact model, and what else its template reads."""
        return self.fingerprint + self.prompts.cache_subject
