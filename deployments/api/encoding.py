"""The routes of encoders: embeddings, reranking and scoring."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.models.folder import ServedModel
from cluster.settings import Settings
from deployments.api.access import AuthenticatedRequest, RequestAccess
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
from deployments.cache.answers import CacheControl
from deployments.cache.scores import ScoreCache, ScoreQuestion, StoredScores
from deployments.common.errors import ApiError
from deployments.common.messages import EncoderInput
from deployments.common.types import Usage
from deployments.generation.large_texts import LargeTexts
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import current
from deployments.tenancy.quotas import Quotas
from deployments.tenancy.usage import UsageRecorder


@dataclass(frozen=True, slots=True)
class Read:
    """What a model reads: texts, or token ids. repeated: characters read again, as a query beside each document."""

    texts: Sequence[str | list[int]]
    repeated: int = 0

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
        scores: ScoreCache | None,
        metrics: RouterMetrics,
    ) -> None:
        """scores: None if they are not stored."""
        self._limits = settings.limits
        self._unknown = UnknownFields(ignore=settings.api.unknown_fields == "ignore")
        self._max_ttl_s = settings.cache.max_ttl_s
        self._scores = scores
        self._metrics = metrics
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

        read, headers = Read(texts or given.ids), dict(ignored_header(ignored))
        return await self._answer(asked, embedder.model, "embeddings", read, tokenize, respond, headers)

    async def rerank(self, http: HttpRequest) -> Response:
        """POST /v1/rerank, /v2/rerank"""
        asked = self._access.authenticate(http)
        read_known = partial(read_rerank, limits=self._limits)
        request, ignored = self._unknown.read(await self._access.body(asked), RerankRequest, read_known)
        question = ScoreQuestion([request.query], request.texts, request.max_tokens_per_doc)
        fields, respond = ("query", "documents"), partial(rerank_response, request)
        return await self._score(asked, request.model, "rerank", question, fields, respond, ignored)

    async def score(self, http: HttpRequest) -> Response:
        """POST /v1/score"""
        asked = self._access.authenticate(http)
        read_known = partial(read_score, limits=self._limits)
        body = await self._access.body(asked)
        (request, first, second), ignored = self._unknown.read(body, ScoreRequest, read_known)
        question, respond = ScoreQuestion(first, second), partial(score_response, request)
        return await self._score(asked, request.model, "score", question, ("text_1", "text_2"), respond, ignored)

    async def _score(
        self,
        asked: AuthenticatedRequest,
        model: str,
        operation: str,
        question: ScoreQuestion,
        fields: tuple[str, str],
        respond: Callable[[list[float], int], object],
        ignored: tuple[str, ...],
    ) -> Response:
        """The response with the scores that are stored, or are computed now.

        fields: names of those with the queries and the documents. respond: the response to these scores, for which this
        many tokens were read. ignored: paths of the body's fields that Dray does not know.
        """
        caller, cache, timeout_s = asked.caller, self._scores, self._limits.request_timeout_s
        scorer = self._models.scorer(model, caller)
        control = CacheControl.from_headers(asked.headers, self._max_ttl_s)
        key = cache.key(scorer.model.name, scorer.cache_subject, caller.namespace, question) if cache else ""
        if cache and control.reads and (stored := await cache.get(key, control)) is not None:
            response = await self._stored(asked, scorer.model, question, stored, respond)
            response.headers.update(ignored_header(ignored))
            return response
        if control.only_if_cached:
            raise ApiError(504, "No stored scores, and only-if-cached forbids to compute them.", code="not_cached")
        queries, documents = question.queries, question.documents
        stores = cache is not None and control.stores

        async def compute(inputs: list[EncoderInput], tokens: int) -> object:
            scores = await scorer.scores(inputs, len(documents), timeout_s)
            if cache and stores:
                await cache.put(key, scores, tokens, control)
            self._count(asked, scorer.model, tokens, "miss" if stores else "bypass")
            return respond(scores, tokens)

        read = Read(queries + documents, sum(map(len, queries)) * (len(documents) // len(queries) - 1))
        tokenize = partial(scorer.tokenize, queries, documents, question.max_tokens, fields)
        headers = {"X-Dray-Cache": "miss" if stores else "bypass", **ignored_header(ignored)}
        return await self._answer(asked, scorer.model, operation, read, tokenize, compute, headers)

    async def _stored(
        self,
        asked: AuthenticatedRequest,
        model: ServedModel,
        question: ScoreQuestion,
        stored: StoredScores,
        respond: Callable[[list[float], int], object],
    ) -> Response:
        """The response with stored scores: it counts as a request, and costs no tokens."""
        caller = asked.caller
        asked.state.model = model.name
        self._access.log_prompt(model, caller, question.queries + question.documents)
        grant = await self._quotas.admit(caller.team, model.name, in_batch=caller.in_batch)
        self._access.release(grant)
        self._count(asked, model, stored.tokens, "hit")
        if caller.team is not None:
            self._usage.record(caller.name, model.name, Usage(stored.tokens, 0, 0, 0), generated=False)
        return json_response(respond(stored.scores, stored.tokens), headers={**stored.headers, **grant.headers})

    def _count(self, asked: AuthenticatedRequest, model: ServedModel, tokens: int, result: str) -> None:
        seconds = time.perf_counter() - asked.state.started
        asked.state.progress.cache, asked.state.progress.prompt = result, tokens
        self._metrics.count_answer(model.name, asked.caller.label, Usage(tokens, 0, 0, 0), result, seconds)

    async def _answer(
        self,
        asked: AuthenticatedRequest,
        model: ServedModel,
        operation: str,
        read: Read,
        tokenize: Callable[[], list[EncoderInput]],
        respond: Callable[[list[EncoderInput], int], Awaitable[object]],
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Response:
        """Charges the caller's team for the tokens of a request that succeeds.

        respond: the response to these inputs, which have this many tokens. headers: of the response.
        """
        caller = asked.caller
        asked.state.model = model.name
        self._access.log_prompt(model, caller, read.texts)
        grant, charged_tokens = await self._quotas.admit(caller.team, model.name, in_batch=caller.in_batch), 0
        try:
            inputs = await self._large_texts.run(asked.queue_class, read.characters, tokenize)
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
        return json_response(response, headers={**headers, **grant.headers})
