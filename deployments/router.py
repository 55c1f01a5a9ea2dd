"""The ingress: builds what a router consists of, its route table and its lifespan."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from cluster import liveness
from cluster.audit import AUDIT_FOLDER
from cluster.models.folder import ServedModel, open_models
from cluster.node import Node
from cluster.records.sealing import vault
from cluster.reports.prices import Prices
from cluster.scaling_history import read_changes
from cluster.serve_config import ENGINE, RouterArgs, has_page
from deployments.api.access import RequestAccess
from deployments.api.admin import AdminApi
from deployments.api.admin_access import AdminAccess
from deployments.api.admin_activity import ActivityAdminApi
from deployments.api.admin_cache import CacheAdminApi
from deployments.api.admin_usage import UsageAdminApi
from deployments.api.audit_trail import AuditTrail
from deployments.api.browser_guard import BrowserGuard, BrowserGuardMiddleware
from deployments.api.curated import CuratedApi
from deployments.api.encoding import EncodingApi
from deployments.api.fast_path import CacheFastPath
from deployments.api.feedback import FeedbackAdminApi, FeedbackApi
from deployments.api.http import ERROR_RESPONSES
from deployments.api.inference import InferenceApi
from deployments.api.info import InfoApi
from deployments.api.middleware import RequestMiddleware, RequestRecorder
from deployments.api.model_states import model_states
from deployments.api.models import ModelDirectory
from deployments.api.placement import Placement
from deployments.api.request_log import REQUESTS_FOLDER, RequestLog
from deployments.api.sign_on import SignOnMiddleware, SignOnParts
from deployments.api.stored_responses import StoredResponses
from deployments.api.tokens import TokensApi
from deployments.batches.service import Batches
from deployments.cache.answers import AnswerCache
from deployments.cache.curated import CuratedAnswers
from deployments.cache.feedback import FeedbackStore
from deployments.cache.privacy import check_keys
from deployments.cache.response_store import ResponseStore
from deployments.cache.scores import ScoreCache
from deployments.cache.semantic import SemanticCache
from deployments.common.redis import RedisStore
from deployments.common.tasks import TaskSupervisor
from deployments.generation.endpoint import ModelEndpoint
from deployments.generation.large_texts import LargeTexts
from deployments.generation.prompts import PromptRenderer
from deployments.generation.service import AnswerService
from deployments.observability.logs import configure_logging
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import Traces
from deployments.pages.status import StatusPage
from deployments.routing.capacity import RouterShare, RouterShares
from deployments.routing.dispatcher import Dispatcher
from deployments.routing.embeddings import EmbeddingEndpoint
from deployments.routing.encoders import Encoder
from deployments.routing.fair_queue import FairQueue
from deployments.routing.heartbeat import Heartbeat, RouterReports
from deployments.routing.prefix_index import PrefixIndex
from deployments.routing.ray_cluster import cluster_id
from deployments.routing.registry import registry
from deployments.routing.scoring import Scorer, scorer_of
from deployments.tenancy.activity import ActivityLog
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.budgets import Budgets
from deployments.tenancy.quotas import Quotas
from deployments.tenancy.usage import UsageRecorder


@serve.ingress()
class Router:
    """One router replica: everything between the socket and the engines."""

    def __init__(self, args: dict[str, object]) -> None:
        """args: RouterArgs as JSON."""
        arguments = RouterArgs.model_validate(args).with_urls(os.environ)
        self._settings = settings = arguments.settings
        configure_logging(settings.log_level)
        vault()  # a router with malformed keys must not start
        self._metrics = RouterMetrics()
        self._traces = Traces("dray-router", registry().router_id)
        self._tasks = TaskSupervisor()
        self._large_texts = LargeTexts()
        self._cluster = cluster_id()
        # Routers of other clusters may use any Redis but the one that only this machine reaches.
        self._teams_shared = not arguments.teams_url.startswith("unix:")

        self._teams = self._store("teams", arguments.teams_url, settings.teams.timeout_s)
        self._activity = ActivityLog(
            self._teams, registry().router_id, texts_s=settings.admin.request_texts_s, cluster=self._cluster
        )
        self._recorder = RequestRecorder(self._metrics, self._traces, self._activity)
        cache = settings.cache
        self._answers = self._store("answers", arguments.redis_url, cache.timeout_s) if cache.enabled else None
        self._trail = AuditTrail(Node.here().data_dir / AUDIT_FOLDER, "dray-router", registry().router_id)
        self._sign_on = SignOnParts.of(settings.sign_on, self._teams, self._trail)
        tokens, sessions = self._sign_on.tokens, self._sign_on.sessions
        self._authenticator = Authenticator(
            self._teams, settings.host, cache.namespace, settings.teams.metrics_teams, tokens, sessions
        )
        allowed_hosts, origins = settings.server.allowed_hosts, settings.cors.origins
        self._guard = BrowserGuard(self._authenticator, settings.host, allowed_hosts, origins)
        self._usage = UsageRecorder(self._teams)
        self._prices = Prices(settings.prices)
        budgets = Budgets(self._prices, self._usage, self._show_use)
        self._quotas = Quotas(self._teams, settings.router.replica_minimum, budgets=budgets)

        models = open_models(settings, Node.here().models_dir)
        self._shares = RouterShares()
        generators: dict[str, ModelEndpoint] = {}
        embedders: dict[str, EmbeddingEndpoint] = {}
        scorers: dict[str, Scorer] = {}
        for model in models:
            application = arguments.engines[model.name]
            if model.settings.task == "generate":
                generators |= dict.fromkeys(model.names, self._generator(model, application))
                continue
            encoder = Encoder(model, DeploymentHandle(ENGINE, application))
            if model.settings.task == "embed":
                embedders |= dict.fromkeys(model.names, EmbeddingEndpoint(encoder))
            if scorer := scorer_of(encoder):
                scorers |= dict.fromkeys(model.names, scorer)
        directory = ModelDirectory(generators, embedders, scorers, settings.routed)
        access = RequestAccess(settings, self._authenticator, self._tasks)
        cached = AnswerCache(cache, self._answers) if self._answers else None
        served = {name: endpoint.fingerprint for name, endpoint in generators.items()}
        self._curated = CuratedAnswers(cache, self._teams, embedders.get(cache.similarity_model), served)
        answers, texts = self._answer_service(cached, embedders), self._large_texts
        keeps = settings.responses.store
        store = ResponseStore(settings.responses, self._answers) if self._answers and keeps else None
        self._responses = stored = StoredResponses(settings.responses, self._authenticator, store)
        self._feedback = FeedbackStore(self._teams, self._answers, cached, self._curated)
        names = list(dict.fromkeys(endpoint.model.name for endpoint in generators.values()))
        self._votes = FeedbackApi(settings, access, self._quotas, self._feedback, names)
        self._inference = InferenceApi(
            settings,
            directory,
            access,
            self._guard,
            self._quotas,
            answers,
            texts,
            stored,
            self._feedback,
            Placement(self._metrics, texts),
            self._tasks,
        )
        if settings.request_log.enabled:
            folder = Node.here().data_dir / REQUESTS_FOLDER
            self._inference.request_log = RequestLog(settings.request_log, folder)
        self._tokens = TokensApi(settings, directory, access, self._quotas, texts, stored)
        scores = ScoreCache(cached) if cached else None
        self._encoding = EncodingApi(
            settings, directory, access, self._quotas, self._usage, texts, scores, self._metrics
        )
        awake = {arguments.engines[model.name]: model.name for model in models if not model.settings.sleep_after_s}
        self._info = InfoApi(settings, models, directory.routed, awake, self._authenticator)
        cache_url = arguments.redis_url if cache.enabled else ""
        admin = AdminAccess(self._authenticator, arguments.teams_url, self._trail)
        self._admin = AdminApi(admin, self._authenticator, self._usage)
        self._activity.models = partial(model_states, models, generators)
        self._activity.read_changes = partial(read_changes, [model.name for model in models])
        self._cache_admin = CacheAdminApi(admin, cache_url)
        self._activity_admin = ActivityAdminApi(admin, self._activity)
        self._usage_admin = UsageAdminApi(admin, self._usage, self._prices)
        self._curated_api = CuratedApi(admin, cache.namespace, cache_url)
        data_dir = Node.here().data_dir
        self._batches = Batches(
            settings, self._teams, self._authenticator, admin, self._metrics, data_dir, self._cluster
        )
        self._batches.set_neighbours(None if self._teams_shared else False)
        self._feedback_admin = FeedbackAdminApi(admin, cache.namespace, cache_url, self._batches.forget_lines)
        names = [model.name for model in models]
        self._status_page = StatusPage(names, self._authenticator, settings.status_page, chat=has_page(settings))

    def _store(self, name: str, url: str, timeout_s: float) -> RedisStore:
        return RedisStore(name, url, timeout_s, self._metrics.watchers(name))

    def _generator(self, model: ServedModel, application: str) -> ModelEndpoint:
        count_resumed = self._metrics.carried_on.labels(model.name).inc
        prefix_index = PrefixIndex(self._answers, self._cluster, application) if self._answers else None
        replicas = registry().replicas_of(application)
        dispatcher = Dispatcher(DeploymentHandle(ENGINE, application), replicas, count_resumed, prefix_index)
        waiting, scale = self._metrics.waiting.labels(model.name), self._settings.batches.autoscale
        queue = FairQueue(track_wait=waiting.track_inprogress, batches_scale=scale)
        share = RouterShare(queue, model.settings, self._settings.limits, self._settings.router.replica_minimum)
        replicas.subscribe(share.set_replicas)
        self._shares.add(application, share)
        prompts = PromptRenderer(model, control_in_prompts=self._settings.router.control_tokens_in_prompt)
        return ModelEndpoint(model, model.fingerprint, prompts, dispatcher, queue)

    def _answer_service(self, cache: AnswerCache | None, embedders: dict[str, EmbeddingEndpoint]) -> AnswerService:
        settings, semantic = self._settings.cache, None
        if self._answers and settings.similarity_model:
            semantic = SemanticCache(settings, self._answers, embedders[settings.similarity_model])
        limits, texts = self._settings.limits, self._large_texts
        return AnswerService(cache, semantic, self._metrics, self._usage, limits, texts, self._curated)

    def __serve_build_asgi_app__(self) -> Starlette:
        app = Starlette(
            routes=[
                *self._inference.routes(),
                *self._tokens.routes(),
                *self._responses.routes(),
                *self._encoding.routes(),
                *self._batches.routes(),
                Route("/v1/usage", self._admin.usage),
                *self._admin.routes(),
                *self._usage_admin.routes(),
                *self._activity_admin.routes(),
                *self._cache_admin.routes(),
                *self._curated_api.routes(),
                *self._votes.routes(),
                *self._feedback_admin.routes(),
                *self._sign_on.routes(),
                *self._info.routes(),
                *self._status_page.routes(),
            ],
            middleware=[
                Middleware(RequestMiddleware, recorder=self._recorder),
                Middleware(BrowserGuardMiddleware, guard=self._guard),
                Middleware(SignOnMiddleware, authenticator=self._authenticator),
            ],
            lifespan=self._lifespan,
            exception_handlers=ERROR_RESPONSES,
        )
        self._batches.use(app)
        CacheFastPath.cors_origins = self._settings.cors.origins
        if self._answers:
            CacheFastPath.api, CacheFastPath.recorder = self._inference, self._recorder
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._tasks.supervise("refresh teams and keys", self._authenticator.refresh_forever)
        if (tokens := self._sign_on.tokens) is not None:
            self._tasks.supervise("refresh keys of single sign-on", tokens.provider.refresh_forever)
        self._tasks.spawn("check the keys of encryption", check_keys(self._teams))
        self._tasks.supervise("follow curated answers", self._curated.refresh_forever)
        self._tasks.supervise("count asked answers", self._feedback.flush_forever)
        if (request_log := self._inference.request_log) is not None:
            self._tasks.supervise("write the request log", request_log.write_forever)
        self._tasks.supervise("flush usage", self._usage.flush_forever)
        self._tasks.supervise("publish activity", self._activity.publish_forever)
        self._tasks.supervise("renew quota leases", self._quotas.renew_forever)
        self._batches.start(self._tasks)
        if folder := os.environ.get(liveness.FOLDER):
            self._tasks.supervise("show life", lambda: liveness.show_life(Path(folder)))
        if self._settings.router.replica_limit > 1 or self._teams_shared:
            heartbeat = Heartbeat(self._teams, self._cluster, self._shares.report, self._take_reports)
            self._tasks.supervise("router heartbeat", heartbeat.run)
        yield
        # Shielded: whoever stops waiting, the last usage is still written before its store closes.
        await asyncio.shield(self._close())

    async def _close(self) -> None:
        await self._batches.close()
        await self._inference.background.close()
        await self._tasks.close()
        if self._inference.request_log is not None:
            await self._inference.request_log.flush()
        self._large_texts.close()
        await self._usage.close()
        await self._activity.close()
        await self._sign_on.close()
        await self._teams.close()
        if self._answers:
            await self._answers.close()
        await asyncio.to_thread(self._trail.close)
        await asyncio.to_thread(self._traces.close)

    def _show_use(self, team: str, limit: str, share: float) -> None:
        if self._authenticator.has_label(team):
            self._metrics.show_use(team, limit, share)

    def _take_reports(self, reports: RouterReports | None) -> None:
        self._shares.take(reports)
        if reports is not None:
            self._quotas.routers = reports.everywhere
            self._batches.set_neighbours(reports.everywhere > reports.routers)
