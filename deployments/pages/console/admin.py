"""The console's client of Dray's admin API: all that the console knows or changes goes through it."""

from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from deployments.pages.client import ApiRefused, ServerUnreachable
from deployments.pages.console.words import WORDS, Words

T = TypeVar("T")

NEEDS_ADMIN = "admin_key_needed"
"""The API's code for: this key is no admin key, or no key exists yet."""
_TIMEOUT = httpx.Timeout(20.0)
_CHINESE = {
    "404": "它已不存在，可能已被他人删除。请刷新。",
    "409": "已经存在：同名的团队，或同一问题的人工答案。",
    "disk_full": "data_dir 所在磁盘已满，没有任何改动。请腾出空间后重试。密钥仍可吊销。",
    "teams_unreachable": "保存团队、密钥和用量的 Redis 没有响应。请稍后再试。",
}
"""By code or status. The API says it in English, which stands for the rest: what is wrong in a field."""


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class Failed(Exception):
    """Something did not work. The message is for the person at the console."""


class AdminClient:
    """Sends requests to the admin API."""

    def __init__(self, url: str) -> None:
        """url: base URL of the API, ending in /v1."""
        self._root = url.removesuffix("/v1")
        self._http = httpx.AsyncClient(timeout=_TIMEOUT, limits=httpx.Limits(max_connections=None))

    async def call(
        self, method: str, path: str, kind: type[T], headers: dict[str, str], body: object = None, **query: object
    ) -> T:
        """The decoded answer. query: parameters of which empty ones are left out.

        Raises ApiRefused, ServerUnreachable.
        """
        content = None if body is None else msgspec.json.encode(body)
        sent = headers | ({} if content is None else {"Content-Type": "application/json"})
        given: dict[str, Any] = {name: value for name, value in query.items() if value not in ("", None)}
        try:
            response = await self._http.request(method, self._root + path, params=given, content=content, headers=sent)
        except httpx.HTTPError:
            raise ServerUnreachable(mid_answer=False) from None
        try:
            if response.is_success:
                return msgspec.json.decode(response.content, type=kind)
            error = msgspec.json.decode(response.content, type=_ErrorBody).error
        except msgspec.MsgspecError:
            # A proxy answered: Dray is not behind it now.
            raise ServerUnreachable(mid_answer=False) from None
        raise ApiRefused(response.status_code, error.message, error.code or "")


@dataclass(frozen=True, slots=True)
class Admin:
    """The admin API as one person uses it: with their credentials, and with errors in their language.

    headers: their credentials. Its methods raise Failed, which the page shows.
    """

    client: AdminClient
    headers: dict[str, str]
    words: Words

    async def get(self, path: str, kind: type[T], **query: object) -> T:
        """GET of this path."""
        return await self._call("GET", path, kind, **query)

    async def post(self, path: str, kind: type[T], body: object) -> T:
        """POST to this path."""
        return await self._call("POST", path, kind, body)

    async def patch(self, path: str, kind: type[T], body: object) -> T:
        """PATCH of this path."""
        return await self._call("PATCH", path, kind, body)

    async def delete(self, path: str, kind: type[T]) -> T:
        """DELETE of this path."""
        return await self._call("DELETE", path, kind)

    async def models(self) -> list[str]:
        """The names of all models."""
        return [model.id for model in (await self.get("/v1/models", _Models)).data]

    async def _call(self, method: str, path: str, kind: type[T], body: object = None, **query: object) -> T:
        try:
            return await self.client.call(method, path, kind, self.headers, body, **query)
        except (ApiRefused, ServerUnreachable) as error:
            raise Failed(reason(error, self.words)) from None


def reason(error: ApiRefused | ServerUnreachable, words: Words) -> str:
    """What went wrong and what to do, for the person at the console."""
    if isinstance(error, ServerUnreachable):
        return words["unreachable"]
    if error.status == 401:
        return words["key_refused"]
    if error.code == NEEDS_ADMIN:
        return words["not_admin"]
    if words is WORDS["zh"]:
        sentence = _CHINESE.get(error.code) or _CHINESE.get(str(error.status), "操作失败：{message}")
        return sentence.format(message=error.message)
    return error.message


def path_of(*parts: str) -> str:
    """A path below /admin. parts: its elements; a name among them may have any characters."""
    return "/admin/" + "/".join(quote(part, safe="") for part in parts)
