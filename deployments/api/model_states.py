"""How the models are, as one router knows it."""

from collections.abc import Iterable, Mapping

from cluster.models.folder import ServedModel
from cluster.records.activity import ModelState, ReplicaState
from deployments.generation.endpoint import ModelEndpoint


def model_states(models: Iterable[ServedModel], endpoints: Mapping[str, ModelEndpoint]) -> list[ModelState]:
    """All models, with the replicas of those that generate. endpoints: by name."""
    return [_state(model, endpoints.get(model.name)) for model in models]


def _state(model: ServedModel, endpoint: ModelEndpoint | None) -> ModelState:
    waiting, replicas = 0, []
    if endpoint is not None:
        waiting = endpoint.queue.queued
        for name, state in sorted(endpoint.dispatcher.replicas.states.items()):
            engine = state.engine
            load = (engine.running, engine.tokens_per_s, engine.kv_used, engine.restarts)
            replicas.append(ReplicaState(name, engine.cpus, *load))
    return ModelState(model.name, model.settings.task, model.context_tokens, waiting, replicas)
