"""Curated answers over HTTP, with an admin key."""

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.audit import Value
from cluster.records import curated
from cluster.records.answer_files import jsonl
from cluster.records.client import BlockingRedis
from cluster.records.curated import CuratedAnswer, CuratedError, ListedAnswer
from cluster.records.pinning import pinned
from deployments.api.admin_access import AdminAccess, admin_body, integer
from deployments.api.http import json_response
from deployments.api.protocol.curated import (
    AnswerDeletedResponse,
    CuratedAnswers,
    ImportAnswersRequest,
    PinAnswerRequest,
    UpdateAnswerRequest,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError
from deployments.tenancy.auth import Caller

_MAX_BODY_BYTES = 8 * 2**20
_MAX_PAGE = 1000
_CODE = "answers_error"

_decode_import = msgspec.json.Decoder(ImportAnswersRequest)
_decode_update = msgspec.json.Decoder(UpdateAnswerRequest)
_decode_pin = msgspec.json.Decoder(PinAnswerRequest)


class CuratedApi:
    """The routes below /admin/answers."""

    def __init__(self, access: AdminAccess, namespace: str, cache_url: str) -> None:
        """namespace: of answers that name none. cache_url: of the answers' Redis; empty where answers are not
        cached."""
        self._access = access
        self._namespace = namespace
        self._cache_url = cache_url

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/admin/answers", self.answers, methods=["GET", "POST"]),
            Route("/admin/answers/export", self.export, methods=["GET"]),
            Route("/admin/answers/pin", self.pin, methods=["POST"]),
            Route("/admin/answers/{id}", self.answer, methods=["GET", "PATCH", "DELETE"]),
        ]

    async def answers(self, http: HttpRequest) -> Response:
        """Lists curated answers, or adds some."""
        caller = self._access.check(http)
        if http.method == "GET":
            return await self._list(http)
        body = await admin_body(http, _MAX_BODY_BYTES)
        given = parse(_decode_import, body).answers

        def add(client: BlockingRedis) -> list[ListedAnswer]:
            answers = [
                curated.new_answer(
                    one.namespace or self._namespace,
                    one.question,
                    one.answer,
                    model=one.model,
                    author=one.author or _author(caller),
                    valid_until=one.valid_until,
                )
                for one in given
            ]
            curated.put_answers(client, answers)
            return _listed(client, answers)

        added = await self._access.run(add, _CODE)
        authors, ids = sorted({answer.author for answer in added}), [answer.id for answer in added]
        await self._access.record(caller, "answer.import", "", authors=authors, ids=ids)
        return json_response(CuratedAnswers(added), 201)

    async def answer(self, http: HttpRequest) -> Response:
        """Reads, changes or deletes a curated answer."""
        caller = self._access.check(http)
        number = http.path_params["id"]
        if http.method == "DELETE":
            removed = await self._access.run(lambda client: curated.remove_answer(client, number), _CODE)
            await self._record(caller, "answer.remove", removed)
            return json_response(AnswerDeletedResponse(number))
        if http.method == "GET":
            read = await self._access.run(lambda client: _listed(client, [curated.read_answer(client, number)]), _CODE)
            return json_response(read[0])
        fields = msgspec.structs.asdict(parse(_decode_update, await admin_body(http, _MAX_BODY_BYTES)))
        changes = {"author": _author(caller)} | {name: new for name, new in fields.items() if new is not msgspec.UNSET}

        def edit(client: BlockingRedis) -> ListedAnswer:
            return _listed(client, [curated.edit_answer(client, number, changes)])[0]

        edited = await self._access.run(edit, _CODE)
        await self._record(caller, "answer.edit", edited, before=number)
        return json_response(edited)

    async def pin(self, http: HttpRequest) -> Response:
        """Makes a cached answer a curated one."""
        caller = self._access.check(http)
        request = parse(_decode_pin, await admin_body(http, _MAX_BODY_BYTES))
        if not self._cache_url:
            raise ApiError(400, "Answers are not cached here (cache.enabled).", code=_CODE)
        author = request.author or _author(caller)

        def read(cache: BlockingRedis) -> CuratedAnswer:
            return pinned(cache, request.key, author, request.valid_until, request.answer)

        answer = await self._access.run(read, _CODE, self._cache_url)

        def put(client: BlockingRedis) -> ListedAnswer:
            curated.put_answers(client, [answer])
            return _listed(client, [answer])[0]

        added = await self._access.run(put, _CODE)
        await self._record(caller, "answer.pin", added, key=request.key, corrected=bool(request.answer.strip()))
        return json_response(added, 201)

    async def export(self, http: HttpRequest) -> Response:
        """All curated answers, or those of the query's namespace, as JSON Lines that `dray answers import` reads."""
        self._access.check(http)
        namespace = http.query_params.get("namespace", "")
        text = await self._access.run(lambda client: jsonl(curated.list_answers(client, namespace)), _CODE)
        return Response(text, media_type="application/jsonl")

    async def _list(self, http: HttpRequest) -> Response:
        query = http.query_params
        namespace, search, after = (query.get(name, "") for name in ("namespace", "search", "after"))
        limit = integer(http, "limit", 100, _MAX_PAGE)

        def read(client: BlockingRedis) -> CuratedAnswers:
            found = curated.list_answers(client, namespace, search)
            ids = [answer.id for answer in found]
            if after and after not in ids:
                raise CuratedError("after is the id of no curated answer that this lists")
            start = ids.index(after) + 1 if after else 0
            return CuratedAnswers(_listed(client, found[start : start + limit]), start + limit < len(found))

        return json_response(await self._access.run(read, _CODE))

    async def _record(self, caller: Caller, action: str, answer: CuratedAnswer | ListedAnswer, **more: Value) -> None:
        await self._access.record(caller, action, answer.id, namespace=answer.namespace, author=answer.author, **more)


def _author(caller: Caller) -> str:
    return caller.actor


def _listed(client: BlockingRedis, answers: list[CuratedAnswer]) -> list[ListedAnswer]:
    served = curated.served_models(client)
    return [ListedAnswer.of(answer, served) for answer in answers]
