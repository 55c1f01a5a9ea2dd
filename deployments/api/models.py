"""The models that a router serves, by the names that requests use."""

from collections.abc import Mapping

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError, shortened
from deployments.generation.endpoint import ModelEndpoint
from deployments.routing.embeddings import EmbeddingEndpoint
from deployments.routing.scoring import Scorer
from deployments.tenancy.auth import Caller


class ModelDirectory:
    """Finds the model that a request names, if its team may use it."""

    def __init__(
        self,
        generators: Mapping[str, ModelEndpoint],
        embedders: Mapping[str, EmbeddingEndpoint],
        scorers: Mapping[str, Scorer],
    ) -> None:
        """All by every name and alias of the model."""
        self._generators = generators
        self._embedders = embedders
        self._scorers = scorers

    def generator(self, name: str, caller: Caller) -> ModelEndpoint:
        """The generating model of this name. Raises ApiError 404, 403."""
        if (endpoint := self._generators.get(name)) is None:
            raise model_not_found(name, self._kind(name))
        _check_allowed(name, endpoint.model, caller)
        return endpoint

    @property
    def first_generator(self) -> str:
        """The name of the first generating model; empty if there is none."""
        return next(iter(self._generators), "")

    def embedder(self, name: str, caller: Caller) -> EmbeddingEndpoint:
        """The embedding model of this name. Raises ApiError 404, 403."""
        if (embedder := self._embedders.get(name)) is None:
            raise model_not_found(name, "not served" if self._kind(name) == "not served" else "not an embedding model")
        _check_allowed(name, embedder.model, caller)
        return embedder

    def scorer(self, name: str, caller: Caller) -> Scorer:
        """The model of this name that scores pairs of texts. Raises ApiError 404, 403."""
        if (scorer := self._scorers.get(name)) is None:
            is_embedder = name in self._embedders
            hint = "an embedding model, which scores only with `scorer: cosine` in its settings," if is_embedder else ""
            raise model_not_found(name, hint or ("no reranker" if name in self._generators else "not served"))
        _check_allowed(name, scorer.model, caller)
        return scorer

    def _kind(self, name: str) -> str:
        if name in self._embedders:
            return "an embedding model"
        if name in self._scorers:
            return "a reranker"
        return "a generating model" if name in self._generators else "not served"


def model_not_found(name: str, what: str = "not served") -> ApiError:
    """404 for a model. what: completes "The model 'x' is"."""
    message = f"The model '{shortened(name)}' is {what} here; GET /v1/models lists the models that are served."
    return ApiError(404, message, code="model_not_found", param="model")


def _check_allowed(name: str, model: ServedModel, caller: Caller) -> None:
    if not caller.may_use(model.names):
        raise ApiError(403, f"Your team may not use the model '{name}'.", code="model_not_allowed", param="model")
