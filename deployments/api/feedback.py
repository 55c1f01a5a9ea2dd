"""Votes on answers: POST /v1/feedback, and the routes below /admin/feedback."""

from collections.abc import Callable, Sequence

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.records import feedback as records
from cluster.records.client import BlockingRedis
from cluster.records.curated import ListedAnswer, served_models
from cluster.records.forget import Forgotten, forget, user_tag
from cluster.redis_client import connect
from cluster.settings import Settings
from deployments.api.access import RequestAccess
from deployments.api.admin_access import AdminAccess, admin_body, integer
from deployments.api.http import json_response
from deployments.api.protocol.feedback import AcceptRequest, FeedbackList, FeedbackRequest, FeedbackResponse
from deployments.api.protocol.forget import ForgetRequest, ForgetResponse
from deployments.api.protocol.parsing import parse
from deployments.cache.feedback import FeedbackStore, GivenAnswer, Vote
from deployments.common.errors import ApiError, invalid_request, shortened
from deployments.common.redis import RedisUnavailable
from deployments.tenancy.auth import Caller
from deployments.tenancy.quotas import Quotas

_MAX_PAGE = 1000
_CODE = "feedback_error"

ForgetLines = Callable[[BlockingRedis, str, str], tuple[int, str]]
"""Removes the lines of an owner's user from the files of batches. Returns their number, and what has failed."""

_decode = msgspec.json.Decoder(FeedbackRequest)
_decode_accept = msgspec.json.Decoder(AcceptRequest)
_decode_forget = msgspec.json.Decoder(ForgetRequest)


class FeedbackApi:
    """The route for clients. Their votes are requests like any other: they need a key and count against its quota."""

    def __init__(
        self, settings: Settings, access: RequestAccess, quotas: Quotas, store: FeedbackStore, models: Sequence[str]
    ) -> None:
        """models: the names of the generating models."""
        self._withholds = settings.cache.withhold_downvoted
        self._access = access
        self._quotas = quotas
        self._store = store
        self._models = models

    def routes(self) -> list[Route]:
        """All of them."""
        return [Route("/v1/feedback", self.vote, methods=["POST"])]

    async def vote(self, http: HttpRequest) -> Response:
        """Keeps a vote on an answer that the caller's team got."""
        asked = self._access.authenticate(http)
        request = parse(_decode, await self._access.body(asked))
        if (request.id is None) == (request.cache_key is None):
            raise invalid_request("id", "Name the answer by either id or cache_key.")
        grant = await self._quotas.admit(asked.caller.team)
        try:
            given = await self._find(asked.caller, request)
            named = request.user or asked.caller.subject
            user = user_tag(asked.caller.owner, named) if named else ""
            vote = Vote(request.rating, request.reason, request.correction, user)
            kept = await self._store.vote(asked.caller.name, given, vote, request.id or "")
            withheld = request.rating == "down" and self._withholds and await self._store.withhold(given)
        except RedisUnavailable:
            message = "Feedback cannot be kept at the moment. Try again."
            unavailable = ApiError(503, message, code="feedback_unavailable", kind="server_error", retry_after_s=1)
            raise unavailable from None
        finally:
            self._access.release(grant)
        return json_response(FeedbackResponse(kept.id, request.rating, withheld), 201, grant.headers)

    async def _find(self, caller: Caller, request: FeedbackRequest) -> GivenAnswer:
        if request.id is not None:
            given = await self._store.find_by_id(caller.owner, caller.namespace, self._models, request.id)
        else:
            given = await self._store.find_by_key(caller.namespace, self._models, request.cache_key or "")
        if given is None:
            name, value = ("id", request.id) if request.id is not None else ("cache_key", request.cache_key)
            message = (
                f"Your team got no answer with the {name} '{shortened(value or '')}'. Answers are known for a day, and "
                "cached ones while they are cached; none without the cache, nor after Cache-Control: no-store."
            )
            raise ApiError(404, message, code="answer_not_found", param=name)
        return given


class FeedbackAdminApi:
    """The routes for admin keys, with that which deletes what is kept of a user."""

    def __init__(self, access: AdminAccess, namespace: str, cache_url: str, forget_lines: ForgetLines) -> None:
        """namespace: of callers without a key. cache_url: of the answers' Redis; empty where answers are not cached."""
        self._access = access
        self._forget_lines = forget_lines
        self._namespace = namespace
        self._cache_url = cache_url

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/admin/feedback", self.feedback, methods=["GET"]),
            Route("/admin/feedback/export", self.export, methods=["GET"]),
            Route("/admin/feedback/{id}/accept", self.accept, methods=["POST"]),
            Route("/admin/forget", self.forget, methods=["POST"]),
        ]

    async def feedback(self, http: HttpRequest) -> Response:
        """Lists feedback of all teams, or of the one in the query's `team`."""
        self._access.check(http)
        limit = integer(http, "limit", 100, _MAX_PAGE)
        listed = await self._access.run(_read(http), _CODE)
        return json_response(FeedbackList(listed[:limit], len(listed) > limit))

    async def export(self, http: HttpRequest) -> Response:
        """The right answers as JSON Lines for fine-tuning."""
        self._access.check(http)
        listed = await self._access.run(_read(http), _CODE)
        return Response(records.training_lines(listed), media_type="application/jsonl")

    async def accept(self, http: HttpRequest) -> Response:
        """Makes a curated answer of feedback."""
        caller = self._access.check(http)
        number = http.path_params["id"]
        request = parse(_decode_accept, await admin_body(http) or b"{}")
        author = request.author or caller.actor

        def accept(client: BlockingRedis) -> ListedAnswer:
            answer = records.accept(client, number, author, request.answer)
            return ListedAnswer.of(answer, served_models(client))

        added = await self._access.run(accept, _CODE)
        about = {"namespace": added.namespace, "author": author, "feedback": number}
        await self._access.record(caller, "feedback.accept", added.id, **about)
        return json_response(added, 201)

    async def forget(self, http: HttpRequest) -> Response:
        """Deletes cached answers, stored responses, feedback and lines of batches of a user."""
        caller = self._access.check(http)
        request = parse(_decode_forget, await admin_body(http))
        owner = f"team.{request.team}" if request.team else self._namespace
        tag, lines, fault = user_tag(owner, request.user), 0, ""

        def work(client: BlockingRedis) -> Forgotten:
            nonlocal lines, fault
            # First, so that no line gets an answer that would be stored after the others were deleted.
            lines, fault = self._forget_lines(client, owner, request.user)
            if not self._cache_url:
                return forget(client, None, tag)
            with connect(self._cache_url) as answers:
                return forget(client, answers, tag)

        done = await self._access.run(work, _CODE)
        await self._access.record(caller, "user.forget", tag, team=request.team)
        if fault:
            message = f"All was deleted but for files of batches that cannot be read or written. The first: {fault}."
            raise ApiError(503, message, code="batches_unavailable", kind="server_error", retry_after_s=60)
        return json_response(ForgetResponse(done.answers, done.responses, done.feedback, lines))


def _read(http: HttpRequest) -> Callable[[BlockingRedis], list[records.ListedFeedback]]:
    team = http.query_params.get("team")
    return lambda client: records.list_feedback(client, team)
