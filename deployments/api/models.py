"""The models that a router serves, by the names that requests use."""

from collections.abc import Mapping

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError, shortened
from deployments.generation.endpoint import ModelEndpoint
from deployments.routing.embeddings import EmbeddingEndpoint
from deployments.tenancy.auth import Caller


class ModelDirectory:
    """Finds the model that a request names, if its team may use it."""

    def __init__(self, generators: Mapping[str, ModelEndpoint], embedders: Mapping[str, EmbeddingEndpoint]) -> None:
        """Both by every name and alias of the model."""
        self._generators = generators
        self._embedders = embedders

    def generator(self, name: str, caller: Caller) -> ModelEndpoint:
        """The generating model of this name. Raises ApiError 404, 403."""
        if (endpoint := self._generators.get(name)) is None:
            raise model_not_found(name, "an embedding model" if name in self._embedders else "not served")
        _check_allowed(name, endpoint.model, caller)
        return endpoint

    def embedder(self, name: str, caller: Caller) -> EmbeddingEndpoint:
        """The embedding model of this name. Raises ApiError 404, 403."""
        if (embedder := self._embedders.get(name)) is None:
            raise model_not_found(name, "not an embedding model" if name in self._generators else "not served")
        _check_allowed(name, embedder.model, caller)
        return embedder


def model_not_found(name: str, what: str = "not served") -> ApiError:
    """404 for a model. what: completes "The model 'x' is"."""
    message = f"The model '{shortened(name)}' is {what} here; GET /v1/models lists the models that are served."
    return ApiError(404, message, code="model_not_found", param="model")


def _check_allowed(name: str, model: ServedModel, caller: Caller) -> None:
    if not caller.may_use(model.names):
        raise ApiError(403, f"Your team may not use the model '{name}'.", code="model_not_allowed", param="model")
