"""How well a document answers a query: by a cross-encoder, or by the cosine of an embedding model's vectors."""

import math
from array import array
from collections.abc import Sequence
from typing import Protocol

from cluster.models.folder import ServedModel
from deployments.common.messages import EncoderInput
from deployments.routing.embeddings import EmbeddingEndpoint
from deployments.routing.encoders import Encoder


class Scorer(Protocol):
    """Scores pairs of texts."""

    @property
    def model(self) -> ServedModel:
        """The model that computes the scores."""

    def tokenize(
        self, queries: Sequence[str], documents: Sequence[str], max_tokens: int | None, params: tuple[str, str]
    ) -> list[EncoderInput]:
        """What the replicas compute for these pairs.

        queries: one for all documents, or one for each. max_tokens: documents are cut to that. params: names of the
        fields with the queries and the documents. Raises ApiError 400 for texts beyond the model's context.
        """

    async def scores(self, inputs: Sequence[EncoderInput], documents: int, timeout_s: float) -> list[float]:
        """The score of each document. inputs: of `tokenize`. Raises ApiError: 503, 408, 500."""


class CrossEncoder:
    """Reads query and document together. Scores are between 0 and 1: the sigmoid of the model's logit."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def model(self) -> ServedModel:
        """The cross-encoder."""
        return self._encoder.model

    def tokenize(
        self, queries: Sequence[str], documents: Sequence[str], max_tokens: int | None, params: tuple[str, str]
    ) -> list[EncoderInput]:
        """A pair for each document."""
        if max_tokens is not None:
            documents = self._encoder.cut(documents, max_tokens)
        every = queries if len(queries) == len(documents) else [queries[0]] * len(documents)
        return self._encoder.tokenize_pairs(list(zip(every, documents, strict=True)), params)

    async def scores(self, inputs: Sequence[EncoderInput], documents: int, timeout_s: float) -> list[float]:
        """One inference for each pair."""
        logits = array("f", b"".join(await self._encoder.run(inputs, timeout_s)))
        return [_sigmoid(logit) for logit in logits]


class CosineScorer:
    """Compares the vectors of query and document. Scores are between -1 and 1."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._embeddings = EmbeddingEndpoint(encoder)

    @property
    def model(self) -> ServedModel:
        """The embedding model."""
        return self._encoder.model

    def tokenize(
        self, queries: Sequence[str], documents: Sequence[str], max_tokens: int | None, params: tuple[str, str]
    ) -> list[EncoderInput]:
        """The queries, then the documents."""
        if max_tokens is not None:
            documents = self._encoder.cut(documents, max_tokens)
        first = self._encoder.tokenize(self._embeddings.with_prompt(queries, "query"), params[0])
        second = self._encoder.tokenize(self._embeddings.with_prompt(documents, "passage"), params[1])
        return [*first, *second]

    async def scores(self, inputs: Sequence[EncoderInput], documents: int, timeout_s: float) -> list[float]:
        """One inference for each text."""
        import numpy  # only where texts are compared

        rows = await self._encoder.run(inputs, timeout_s)
        vectors = numpy.frombuffer(b"".join(rows), numpy.float32).reshape(len(rows), -1)
        queries, found = vectors[:-documents], vectors[-documents:]
        scores: list[float] = (queries * found).sum(1).tolist()
        return scores


def scorer_of(encoder: Encoder) -> Scorer | None:
    """How the model scores, by its settings; None if it does not."""
    if encoder.model.settings.task == "rerank":
        return CrossEncoder(encoder)
    return CosineScorer(encoder) if encoder.model.settings.scorer == "cosine" else None


def _sigmoid(logit: float) -> float:
    # Each branch only raises e to a negative power, which cannot overflow.
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
