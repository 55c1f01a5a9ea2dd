"""What handlers of models share: who asks, the body, the team's quota, and the log of prompts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from cluster.models.folder import ServedModel
from cluster.settings import Settings
from deployments.api.http import headers_of, read_body
from deployments.api.request_state import REQUEST_STATE, RequestState
from deployments.common.errors import ApiError
from deployments.common.tasks import TaskSupervisor
from deployments.routing.queue_class import QueueClass
from deployments.tenancy.auth import Authenticator, Caller
from deployments.tenancy.quotas import QuotaGrant

log = logging.getLogger("dray.router")


BATCH_WORK = "dray.batch"
"""Key of the BatchWork in the ASGI scope of a line of a batch, which its router asks for itself."""


@dataclass(frozen=True, slots=True)
class BatchWork:
    """Who a line of a batch belongs to, and until when its answer may take, on time.perf_counter's clock."""

    caller: Caller
    deadline: float


@dataclass(frozen=True, slots=True)
class AuthenticatedRequest:
    """A request of a known caller; its body is not read yet. work: None for one that came over HTTP."""

    http: HttpRequest
    headers: Mapping[str, str]
    caller: Caller
    state: RequestState
    work: BatchWork | None = None

    @property
    def queue_class(self) -> QueueClass:
        """Whose turn it is for its texts."""
        return QueueClass(self.caller.name, self.caller.weight, batch=self.work is not None)


class RequestAccess:
    """One router's requests to models, before and after their models work on them."""

    def __init__(self, settings: Settings, authenticator: Authenticator, tasks: TaskSupervisor) -> None:
        self._log_prompts = settings.log_prompts
        self._limits = settings.limits
        self._authenticator = authenticator
        self._tasks = tasks

    async def prepare(self, http: HttpRequest) -> None:
        """Lets `authenticate` know a token of single sign-on; for requests that the middleware has not seen."""
        await self._authenticator.prepare(http.headers)

    def authenticate(self, http: HttpRequest) -> AuthenticatedRequest:
        """Raises ApiError 401, and 403 for an admin key. Nothing of the body is read before."""
        headers = headers_of(http)
        state: RequestState = http.scope[REQUEST_STATE]
        state.route = http.scope["path"]
        work: BatchWork | None = http.scope.get(BATCH_WORK)  # no client can set it
        caller = work.caller if work else self._authenticator.authenticate(headers)
        if caller.admin and caller.team is None:
            raise ApiError(403, "An admin key cannot use models; use a team's key.", code="not_a_teams_key")
        state.authenticated, state.team, state.caller = True, caller.label, caller.name
        state.in_batch = caller.in_batch
        return AuthenticatedRequest(http, headers, caller, state, work)

    async def body(self, request: AuthenticatedRequest) -> bytes:
        """The body, within the limits. Raises ApiError 408, 413, 415, and ClientDisconnect."""
        limits = self._limits
        return await read_body(request.http, request.headers, limits.body_bytes, limits.receive_timeout_s)

    def release(self, grant: QuotaGrant, charged_tokens: int | None = None) -> None:
        """Ends a grant in the background. charged_tokens: settles its reservation; None: the generation does that."""

        async def release() -> None:
            if charged_tokens is not None:
                await grant.settle(charged_tokens)
            await grant.release()

        # Most requests have no quota, and a task for nothing would be a hundredth of a cache hit.
        if grant.is_limited:
            self._tasks.spawn("release a request's quota", release())

    def log_prompt(self, model: ServedModel, caller: Caller, prompt: str | Sequence[object]) -> None:
        """Logs what is asked, if the settings say so."""
        if self._log_prompts:
            log.info("asked", extra={"model": model.name, "team": caller.name, "prompt": prompt})
