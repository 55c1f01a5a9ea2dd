"""Which of several models generates an answer: the first that is up, answers in time and has room for the prompt.

Asked only for what has to be generated: a stored answer is found by the preferred model's key, whatever the load.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

from deployments.common.errors import ApiError, PromptTooLong
from deployments.generation.context import RequestContext
from deployments.generation.endpoint import ModelEndpoint
from deployments.generation.large_texts import LargeTexts
from deployments.observability.metrics import RouterMetrics

Objection = Literal["", "busy", "down", "long"]
"""What is wrong with a model, from the least to the worst; long: the prompt is, for the model's context."""
_TOKENS_PER_CHARACTER = 4
"""Hardly any character takes more, so that a text which is shorter by as much need not be tokenized."""
_RANKS: tuple[Objection, ...] = get_args(Objection)


class Placement:
    """One router's choice among the models that may answer a request."""

    def __init__(self, metrics: RouterMetrics, large_texts: LargeTexts) -> None:
        self._metrics = metrics
        self._large_texts = large_texts

    async def place(self, contexts: Sequence[RequestContext], choices: Sequence[ModelEndpoint]) -> ModelEndpoint:
        """The model that generates, and counts it. contexts: one for each prompt, for the preferred model, which is the
        first of the choices."""
        found: list[tuple[Objection, ModelEndpoint]] = []
        for endpoint in choices:
            objection = await self._objection(contexts, endpoint)
            found.append((objection, endpoint))
            if not objection:
                break
        _, chosen = min(found, key=lambda one: _RANKS.index(one[0]))  # the first of those that are equally good
        self.count(contexts[0], chosen, found[0][0] if chosen is not choices[0] else "")
        return chosen

    def count(self, context: RequestContext, chosen: ModelEndpoint | None = None, objection: Objection = "") -> None:
        """Counts a request that another model answers than it asks for. context: for the preferred model. chosen: the
        one that answers; None: the preferred one. objection: to the preferred one."""
        preferred = context.endpoint.model.name
        asked, target = context.routed[0] if context.routed else preferred, (chosen or context.endpoint).model.name
        if target != asked:
            self._metrics.routed[asked, target, objection or "rule"].inc()

    async def _objection(self, contexts: Sequence[RequestContext], endpoint: ModelEndpoint) -> Objection:
        for context in contexts:
            if not await self._has_room(context, endpoint):
                return "long"
        return endpoint.refuses(contexts[0].caller.name)

    async def _has_room(self, context: RequestContext, endpoint: ModelEndpoint) -> bool:
        """Whether the model's context holds the prompt."""
        prompts, request = endpoint.prompts, context.request
        try:
            characters = prompts.characters(request)
            if characters * _TOKENS_PER_CHARACTER >= endpoint.model.context_tokens:
                await self._large_texts.run(context.queue_class, characters, partial(prompts.render, request))
        except PromptTooLong:
            return False
        except ApiError:
            pass  # the model refuses it for another reason, which is for the client to know
        return True
