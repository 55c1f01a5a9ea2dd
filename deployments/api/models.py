"""The models that a router serves, by the names that requests use."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.settings import ModelSettings, RouteRule
from deployments.common.errors import ApiError, shortened
from deployments.generation.endpoint import ModelEndpoint
from deployments.routing.embeddings import EmbeddingEndpoint
from deployments.routing.rules import RequestTraits, matches
from deployments.routing.scoring import Scorer
from deployments.tenancy.auth import Caller


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """A name without engines, with the rules that say which model answers. The last rule takes every request."""

    settings: ModelSettings
    rules: tuple[tuple[RouteRule, ModelEndpoint], ...]

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return self.settings.given_names

    @property
    def targets(self) -> list[str]:
        """The names of the models that answer."""
        return list(dict.fromkeys(endpoint.model.name for _, endpoint in self.rules))

    @property
    def default(self) -> ModelEndpoint:
        """The model of the last rule."""
        return self.rules[-1][1]


class ModelDirectory:
    """Finds the model that a request names, if its team may use it."""

    def __init__(
        self,
        generators: Mapping[str, ModelEndpoint],
        embedders: Mapping[str, EmbeddingEndpoint],
        scorers: Mapping[str, Scorer],
        routed: tuple[ModelSettings, ...] = (),
    ) -> None:
        """All by every name and alias of the model. routed: the settings of those that others answer for."""
        self._generators = generators
        self._embedders = embedders
        self._scorers = scorers
        self.routed = [
            RoutedModel(model, tuple((rule, generators[rule.to]) for rule in model.route)) for model in routed
        ]
        self._routed = {name: model for model in self.routed for name in model.names}

    def generator(self, name: str, caller: Caller) -> ModelEndpoint:
        """The generating model of this name, which has engines. Raises ApiError 404, 403."""
        if (routed := self._routed.get(name)) is not None:
            raise model_not_found(name, f"answered by {' or '.join(routed.targets)}, one of which has to be named")
        if (endpoint := self._generators.get(name)) is None:
            raise model_not_found(name, self._kind(name))
        _check_allowed(name, endpoint.model.names, caller)
        return endpoint

    def routed_model(self, name: str, caller: Caller) -> RoutedModel | None:
        """The routed model of this name; None: it has engines, or is not served. Raises ApiError 403.

        A team that may use it needs no permission for the models that it leads to.
        """
        if (routed := self._routed.get(name)) is not None:
            _check_allowed(name, routed.names, caller)
        return routed

    def choices(self, routed: RoutedModel, traits: RequestTraits) -> tuple[ModelEndpoint, ...]:
        """The models that may answer a request to a routed model: those of all rules that hold, in the order of the
        rules, each with its fallbacks behind it."""
        targets = (endpoint for rule, endpoint in routed.rules if matches(rule, traits))
        return tuple({one.model.name: one for target in targets for one in self._chain(target)}.values())

    def with_fallbacks(self, name: str, caller: Caller) -> tuple[ModelEndpoint, ...]:
        """The generating model of this name, and those of its fallbacks that the team may use too.

        Raises ApiError 404, 403.
        """
        first, *fallbacks = self._chain(self.generator(name, caller))
        return (first, *(endpoint for endpoint in fallbacks if caller.may_use(endpoint.model.names)))

    def _chain(self, endpoint: ModelEndpoint) -> list[ModelEndpoint]:
        """The model, its fallback, the fallback's own, and so on. The settings have no circles."""
        chain = [endpoint]
        while fallback := chain[-1].model.settings.fallback:
            chain.append(self._generators[fallback])
        return chain

    @property
    def first_generator(self) -> str:
        """The name of the first generating model; empty if there is none."""
        return next(iter(self._generators), "")

    def embedder(self, name: str, caller: Caller) -> EmbeddingEndpoint:
        """The embedding model of this name. Raises ApiError 404, 403."""
        if (embedder := self._embedders.get(name)) is None:
            raise model_not_found(name, "not served" if self._kind(name) == "not served" else "not an embedding model")
        _check_allowed(name, embedder.model.names, caller)
        return embedder

    def scorer(self, name: str, caller: Caller) -> Scorer:
        """The model of this name that scores pairs of texts. Raises ApiError 404, 403."""
        if (scorer := self._scorers.get(name)) is None:
            is_embedder = name in self._embedders
            hint = "an embedding model, which scores only with `scorer: cosine` in its settings," if is_embedder else ""
            raise model_not_found(name, hint or ("no reranker" if self._kind(name) != "not served" else "not served"))
        _check_allowed(name, scorer.model.names, caller)
        return scorer

    def _kind(self, name: str) -> str:
        if name in self._embedders:
            return "an embedding model"
        if name in self._scorers:
            return "a reranker"
        return "a generating model" if name in self._generators or name in self._routed else "not served"


def model_not_found(name: str, what: str = "not served") -> ApiError:
    """404 for a model. what: completes "The model 'x' is"."""
    message = f"The model '{shortened(name)}' is {what} here; GET /v1/models lists the models that are served."
    return ApiError(404, message, code="model_not_found", param="model")


def _check_allowed(name: str, names: tuple[str, ...], caller: Caller) -> None:
    """names: all of the model's."""
    if not caller.may_use(names):
        raise ApiError(403, f"Your team may not use the model '{name}'.", code="model_not_allowed", param="model")
