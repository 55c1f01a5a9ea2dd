"""How well a document answers a query: by a cross-encoder, a language model's answer, or the cosine of two vectors."""

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence

from cluster.models.folder import ModelFolderError, ServedModel
from cluster.models.relevance import AFTER, BEFORE, answer_tokens, question
from deployments.common.messages import EncoderInput
from deployments.routing.embeddings import EmbeddingEndpoint
from deployments.routing.encoders import Encoder


class Scorer(ABC):
    """Scores pairs of texts."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def model(self) -> ServedModel:
        """The model that computes the scores."""
        return self._encoder.model

    @property
    def cache_subject(self) -> str:
        """All that a score depends on beside the texts."""
        return f"{self.model.fingerprint} {type(self).__name__} {self.model.settings.pooling}"

    def tokenize(
        self, queries: Sequence[str], documents: Sequence[str], max_tokens: int | None, params: tuple[str, str]
    ) -> list[EncoderInput]:
        """What the replicas compute for these pairs.

        queries: one for all documents, or one for each. max_tokens: documents are cut to that. params: names of the
        fields with the queries and the documents. Raises ApiError 400 for texts beyond the model's context.
        """
        self._encoder.check_characters(queries, params[0])
        if max_tokens is not None:
            documents = self._encoder.cut(documents, max_tokens)
        self._encoder.check_characters(documents, params[1])
        return self._inputs(queries, documents, params)

    @abstractmethod
    def _inputs(
        self, queries: Sequence[str], documents: Sequence[str], params: tuple[str, str]
    ) -> list[EncoderInput]: ...

    @abstractmethod
    async def scores(self, inputs: Sequence[EncoderInput], documents: int, timeout_s: float) -> list[float]:
        """The score of each document. inputs: of `tokenize`. Raises ApiError: 503, 408, 500."""


class CrossEncoder(Scorer):
    """Reads query and document together. Scores are between 0 and 1: the sigmoid of the model's logit."""

    def _inputs(self, queries: Sequence[str], documents: Sequence[str], params: tuple[str, str]) -> list[EncoderInput]:
        return self._encoder.tokenize_pairs(_pairs(queries, documents), params)

    async def scores(self, inputs: Sequence[EncoderInput], documents: int, timeout_s: float) -> list[float]:
        """One inference for each pair."""
        logits = array("f", b"".join(await self._encoder.run(inputs, timeout_s)))
        return [_sigmoid(logit) for logit in logits]


class AnswerScorer(CrossEncoder):
    """Asks a language model whether a document answers a query. Scores: its probability of "yes" rather than "no"."""

    def __init__(self, encoder: Encoder) -> None:
        """Raises ModelFolderError for a model that was not trained for it."""
        super().__init__(encoder)
        try:
            answer_tokens(encoder.tokenizer)
        except ValueError as error:
            raise ModelFolderError(f"{encoder.model.name}: {error}") from None
        self._before, self._after = encoder.own_ids(BEFORE), encoder.own_ids(AFTER)

    def _inputs(self, queries: Sequence[str], documents: Sequence[str], params: tuple[str, str]) -> list[EncoderInput]:
        questions = [question(query, document) for query, document in _pairs(queries, documents)]
        return self._encoder.tokenize_between(self._before, questions, self._after, params[1])


class CosineScorer(Scorer):
    """Compares the vectors of query and document. Scores are between -1 and 1."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self._embeddings = EmbeddingEndpoint(encoder)

    def _inputs(self, queries: Sequence[str], documents: Sequence[str], params: tuple[str, str]) -> list[EncoderInput]:
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
    """How the model scores, by its settings; None if it does not. Raises ModelFolderError."""
    if encoder.model.ranks_by_answer:
        return AnswerScorer(encoder)
    if encoder.model.settings.task == "rerank":
        return CrossEncoder(encoder)
    return CosineScorer(encoder) if encoder.model.settings.scorer == "cosine" else None


def _pairs(queries: Sequence[str], documents: Sequence[str]) -> list[tuple[str, str]]:
    every = queries if len(queries) == len(documents) else [queries[0]] * len(documents)
    return list(zip(every, documents, strict=True))


def _sigmoid(logit: float) -> float:
    # Each branch only raises e to a negative power, which cannot overflow.
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
