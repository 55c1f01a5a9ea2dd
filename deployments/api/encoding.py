"""The routes of encoders: embeddings, reranking and scoring."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.models.folder import ServedModel
from cluster.settings import Settings
from deployments.api.access import AuthenticatedRequest, RequestAccess, queue_class
from deployments.api.http import json_response
from deployments.api.models import ModelDirectory
from deployments.api.protocol.embeddings import EmbeddingRequest, embeddings_response, read_embedding
from deployments.api.protocol.rerank import (
    RerankRequest,
    ScoreRequest,
    read_rerank,
    read_score,
    rerank_response,
    score_response,
)
from deployments.api.unknown_fields import UnknownFields, ignored_header
from deployments.common.messages import EncoderInput
from deployments.common.types import Usage
from deployments.generation.large_texts import LargeTexts
from deployments.observability.tracing import current
from deployments.tenancy.quotas import Quotas
from deployments.tenancy.usage import UsageRecorder


@dataclass(frozen=True, slots=True)
class Read:
    """What a model reads: texts, or token ids. repeated: characters read again, as a query beside each document.
    ignored: paths of the body's fields that Dray does not know."""

    texts: Sequence[str | list[int]]
    repeated: int = 0
    ignored: tuple[str, ...] = ()

    @property
    def characters(self) -> int:
        """Of all texts, as often as they are read."""
        return sum(map(len, self.texts)) + self.repeated


class EncodingApi:
    """The routes that embedding models and cross-encoders answer, for one router."""

    def __init__(
        self,
        settings: Settings,
        models: ModelDirectory,
        access: RequestAccess,
        quotas: Quotas,
        usage: UsageRecorder,
        large_texts: LargeTexts,
    ) -> None:
        self._limits = settings.limits
        self._unknown = UnknownFields(ignore=settings.api.unknown_fields == "ignore")
        self._models = models
        self._access = access
        self._quotas = quotas
        self._usage = usage
        self._large_texts = large_texts

    def routes(self) -> list[Route]:
        """All of them. Cohere's clients ask for /v2/rerank."""
        return [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/rerank", self.rerank, methods=["POST"]),
            Route("/v2/rerank", self.rerank, methods=["POST"]),
            Route("/v1/score", self.score, methods=["POST"]),
        ]

    async def embeddings(self, http: HttpRequest) -> Response:
        """POST /v1/embeddings"""
        asked = self._access.authenticate(http)
        read_known = partial(read_embedding, limits=self._limits)
        body = await self._access.body(asked)
        (request, given), ignored = self._unknown.read(body, EmbeddingRequest, read_known)
        embedder = self._models.embedder(request.model, asked.caller)
        encoder, texts = embedder.encoder, embedder.with_prompt(given.texts, request.prompt)
        by_text, by_ids = partial(encoder.tokenize, texts, "input"), partial(encoder.check_ids, given.ids, "input")
        tokenize = by_text if texts else by_ids

        async def respond(inputs: list[EncoderInput], tokens: int) -> object:
            vectors = await embedder.vectors(inputs, self._limits.request_timeout_s)
            return embeddings_response(request, vectors, tokens)

        read = Read(texts or given.ids, ignored=ignored)
        return await self._answer(asked, embedder.model, "embeddings", read, tokenize, respond)

    async def rerank(self, http: HttpRequest) -> Response:
        """POST /v1/rerank, /v2/rerank"""
        asked = self._access.authenticate(http)
        read_known = partial(read_rerank, limits=self._limits)
        request, ignored = self._unknown.read(await self._access.body(asked), RerankRequest, read_known)
        scorer = self._models.scorer(request.model, asked.caller)
        texts = request.texts
        fields = ("query", "documents")
        tokenize = partial(scorer.tokenize, [request.query], texts, request.max_tokens_per_doc, fields)

        async def respond(inputs: list[EncoderInput], tokens: int) -> object:
            scores = await scorer.scores(inputs, len(texts), self._limits.request_timeout_s)
            return rerank_response(request, scores, tokens)

        read = Read([request.query, *texts], len(request.query) * (len(texts) - 1), ignored)
        return await self._answer(asked, scorer.model, "rerank", read, tokenize, respond)

    async def score(self, http: HttpRequest) -> Response:
        """POST /v1/score"""
        asked = self._access.authenticate(http)
        read_known = partial(read_score, limits=self._limits)
        body = await self._access.body(asked)
        (request, first, second), ignored = self._unknown.read(body, ScoreRequest, read_known)
        scorer = self._models.scorer(request.model, asked.caller)
        tokenize = partial(scorer.tokenize, first, second, None, ("text_1", "text_2"))

        async def respond(inputs: list[EncoderInput], tokens: int) -> object:
            scores = await scorer.scores(inputs, len(second), self._limits.request_timeout_s)
            return score_response(request, scores, tokens)

        read = Read(first + second, sum(map(len, first)) * (len(second) // len(first) - 1), ignored)
        return await self._answer(asked, scorer.model, "score", read, tokenize, respond)

    async def _answer(
        self,
        asked: AuthenticatedRequest,
        model: ServedModel,
        operation: str,
        read: Read,
        tokenize: Callable[[], list[EncoderInput]],
        respond: Callable[[list[EncoderInput], int], Awaitable[object]],
    ) -> Response:
        """Charges the caller's team for the tokens of a request that succeeds.

        respond: the response to these inputs, which have this many tokens.
        """
        caller = asked.caller
        asked.state.model = model.name
        self._access.log_prompt(model, caller, read.texts)
        grant, charged_tokens = await self._quotas.admit(caller.team), 0
        try:
            inputs = await self._large_texts.run(queue_class(caller), read.characters, tokenize)
            tokens = sum(len(text.ids) for text in inputs)
            await grant.reserve(tokens)
            with current.get().child(f"{operation} {model.name}") as span:
                span.note({"gen_ai.operation.name": operation, "gen_ai.usage.input_tokens": tokens})
                response = await respond(inputs, tokens)
            charged_tokens = tokens
        finally:
            self._access.release(grant, charged_tokens)
        if caller.team is not None:
            self._usage.record(caller.name, model.name, Usage(tokens, 0, 0, 0), generated=True)
        return json_response(response, headers={**grant.headers, **ignored_header(read.ignored)})
