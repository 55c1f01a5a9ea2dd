"""POST /v1/rerank in the shape of Cohere and Jina, and POST /v1/score in vLLM's."""

import time
from typing import Annotated, Literal

import msgspec

from cluster.settings import LimitSettings
from deployments.api.protocol.common import Count, check_count
from deployments.api.protocol.embeddings import EmbeddingUsage
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError, invalid_request, new_id

Texts = Annotated[list[str], msgspec.Meta(min_length=1)]


class RerankText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A document as an object. Other fields than its text are not ranked, and not returned."""

    text: str


class RerankRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/rerank.

    top_n: number of results; all by default. return_documents: whether results have the documents' texts.
    max_tokens_per_doc: longer documents are cut to it; without it, one that does not fit the model is refused.
    """

    model: str
    query: str
    documents: Annotated[list[str | RerankText], msgspec.Meta(min_length=1)]
    top_n: Count | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Count | None = None
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class ScoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/score: one text and one or several to compare it with, or two lists of the same length."""

    model: str
    text_1: str | Texts
    text_2: str | Texts
    user: str | None = None


class RerankResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """A document's score. index: its place in the request."""

    index: int
    relevance_score: float
    document: RerankText | None = None


class RerankResponse(msgspec.Struct, frozen=True):
    """The body of a response: the best documents, the best one first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage


class Score(msgspec.Struct, frozen=True):
    """A pair's score."""

    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreResponse(msgspec.Struct, frozen=True):
    """The body of a response: a score for each pair, in their order."""

    id: str
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


_decode_rerank = msgspec.json.Decoder(RerankRequest)
_decode_score = msgspec.json.Decoder(ScoreRequest)


def read_rerank(body: bytes, limits: LimitSettings) -> RerankRequest:
    """Decodes a body and checks it against the limits. Raises ApiError 400 that names the field."""
    request = parse(_decode_rerank, body)
    _check([request.query], "query", request.texts, "documents", limits)
    return request


def read_score(body: bytes, limits: LimitSettings) -> tuple[ScoreRequest, list[str], list[str]]:
    """The request in a body, and both its texts as lists. Raises ApiError 400 that names the field."""
    request = parse(_decode_score, body)
    first, second = ([texts] if isinstance(texts, str) else list(texts) for texts in (request.text_1, request.text_2))
    if len(first) not in (1, len(second)):
        message = f"text_1 has {len(first)} texts and text_2 {len(second)}. Send one text_1, or as many as text_2 has."
        raise invalid_request("text_1", message)
    _check(first, "text_1", second, "text_2", limits)
    return request, first, second


def rerank_response(request: RerankRequest, scores: list[float], tokens: int) -> RerankResponse:
    """The body of the response. scores: one a document. tokens: that were computed."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    texts = request.texts if request.return_documents else None
    results = [RerankResult(index, scores[index], RerankText(texts[index]) if texts else None) for index in order]
    return RerankResponse(new_id("rerank-"), request.model, results, EmbeddingUsage(tokens, tokens))


def score_response(request: ScoreRequest, scores: list[float], tokens: int) -> ScoreResponse:
    """The body of the response. scores: one a pair. tokens: that were computed."""
    data = [Score(index, score) for index, score in enumerate(scores)]
    return ScoreResponse(new_id("score-"), int(time.time()), request.model, data, EmbeddingUsage(tokens, tokens))


def _check(first: list[str], first_name: str, second: list[str], second_name: str, limits: LimitSettings) -> None:
    """Raises ApiError 400 for texts that are empty, too many, or together too long."""
    check_count(len(second), limits.embedding_inputs, second_name)
    for name, texts in ((first_name, first), (second_name, second)):
        if not all(text.strip() for text in texts):
            raise invalid_request(name, f"{name} has an empty text; leave it out.", code="empty_input")
    # The model reads a query once for each document: a long one of a small body would take hours.
    repeated = sum(map(len, first)) * (len(second) if len(first) == 1 else 1)
    if repeated + sum(map(len, second)) > limits.body_bytes:
        message = (
            f"{first_name} is read again for each of {len(second)} texts: together that is more than "
            f"{limits.body_bytes} characters. Shorten it, or send fewer texts at a time."
        )
        raise ApiError(400, message, code="context_length_exceeded", param=first_name)
