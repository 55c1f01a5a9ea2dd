"""Counts answers in the router's metrics and in the teams' usage."""

import time
from collections.abc import Callable

from deployments.common.types import Usage
from deployments.generation.context import RequestContext, Result
from deployments.generation.generation import Generation
from deployments.observability.metrics import RouterMetrics
from deployments.tenancy.usage import Reused, UsageRecorder


class AnswerAccounting:
    """One router's counting."""

    def __init__(self, metrics: RouterMetrics, usage: UsageRecorder) -> None:
        self._metrics = metrics
        self._usage = usage

    def queue_time_observer(self, context: RequestContext) -> Callable[[float], object]:
        """A function that takes the seconds that a choice waited for its slot. Batch work is to wait, for hours if need
        be: in the metrics its times would hide those of people, for which alerts exist."""
        observe = self._metrics.queue_time[context.endpoint.model.name, context.caller.label].observe

        def note(seconds: float) -> None:
            if not context.batch:
                observe(seconds)
            context.progress.queue_s = round(max(seconds, context.progress.queue_s or 0.0), 4)

        return note

    def count_reused(self, context: RequestContext, usage: Usage, result: Reused) -> None:
        """Counts an answer that was stored, or generated for another request."""
        self._count(context, usage, result)
        self._record(context, usage, generated=False, reused=result)

    def count_generated(self, context: RequestContext, generation: Generation, usage: Usage, result: Result) -> None:
        """Counts an answer that was generated for this request."""
        self._count(context, usage, result)
        self._record(context, usage, generated=True)
        model, metrics = generation.endpoint.model.name, self._metrics
        if not context.batch:
            to_first_token = generation.first_token_at - context.started
            metrics.time_to_first_token[model, context.caller.label].observe(to_first_token)
        if usage.completion_tokens > 1:
            per_token = (generation.last_token_at - generation.first_token_at) / (usage.completion_tokens - 1)
            metrics.time_per_output_token.labels(model).observe(per_token)

    def _count(self, context: RequestContext, usage: Usage, result: Result) -> None:
        seconds = time.perf_counter() - context.started
        self._metrics.count_answer(context.endpoint.model.name, context.caller.label, usage, result, seconds)

    def _record(self, context: RequestContext, usage: Usage, *, generated: bool, reused: Reused = "hit") -> None:
        if context.caller.team is not None:
            team, model = context.caller.name, context.endpoint.model.name
            self._usage.record(team, model, usage, generated=generated, reused=reused)
