"""Dray's metrics under the names of vLLM, for dashboards that people have: those that mean the same, and no others."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

_LABELS = {"model": "model_name", "replica": "engine", "le": "le"}
"""vLLM's names of the labels that it has. Series that others tell apart are added up."""
_GENERATED = frozenset({"miss", "bypass"})
"""Results of answers that an engine made: vLLM counts no others."""


@dataclass(frozen=True, slots=True)
class _Counterpart:
    """A metric of vLLM. name: without `vllm:`. help: what it is. generated: of generated answers only."""

    name: str
    help: str
    generated: bool = False


_COUNTERPARTS: dict[str, tuple[_Counterpart, ...]] = {
    "dray_engine_running": (_Counterpart("num_requests_running", "Sequences that engines are working on."),),
    "dray_requests_waiting": (_Counterpart("num_requests_waiting", "Requests waiting for an engine."),),
    "dray_engine_kv_used_ratio": (_Counterpart("kv_cache_usage_perc", "KV cache in use. 1 is all of it."),),
    "dray_prompt_tokens": (
        _Counterpart("prompt_tokens", "Prompt tokens of requests that engines answered."),
        _Counterpart("prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache."),
    ),
    "dray_prompt_tokens_cached": (_Counterpart("prefix_cache_hits", "Prompt tokens found in the prefix cache."),),
    "dray_completion_tokens": (_Counterpart("generation_tokens", "Generated tokens."),),
    "dray_time_to_first_token_seconds": (_Counterpart("time_to_first_token_seconds", "Time to the first token."),),
    "dray_time_per_output_token_seconds": (
        _Counterpart("request_time_per_output_token_seconds", "Mean time between the tokens of a request."),
    ),
    "dray_request_queue_time_seconds": (_Counterpart("request_queue_time_seconds", "Time in the queue."),),
    "dray_request_seconds": (
        _Counterpart("e2e_request_latency_seconds", "Time from request to complete answer.", generated=True),
    ),
    "dray_engine_guessed_tokens": (_Counterpart("spec_decode_num_draft_tokens", "Guessed tokens."),),
    "dray_engine_accepted_tokens": (_Counterpart("spec_decode_num_accepted_tokens", "Tokens guessed right."),),
}


def with_vllm_names(metrics: Iterable[Metric]) -> Iterator[Metric]:
    """The metrics, and those of them again that vLLM has."""
    for metric in metrics:
        yield metric
        for counterpart in _COUNTERPARTS.get(metric.name, ()):
            yield _renamed(metric, counterpart)


def _renamed(metric: Metric, counterpart: _Counterpart) -> Metric:
    name = f"vllm:{counterpart.name}"
    renamed = Metric(name, counterpart.help, metric.type)
    sums: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
    for sample in metric.samples:
        if not counterpart.generated or sample.labels["result"] in _GENERATED:
            labels = tuple((_LABELS[label], value) for label, value in sample.labels.items() if label in _LABELS)
            sums[sample.name.replace(metric.name, name, 1), labels] += sample.value
    renamed.samples = [Sample(sample, dict(labels), value) for (sample, labels), value in sums.items()]
    return renamed
