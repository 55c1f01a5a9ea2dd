"""POST /chat/file: the text of a file that a person attaches to a question."""

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import Annotated

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from deployments.api.http import api_error, json_response
from deployments.common.errors import ApiError, overloaded
from deployments.pages import file_reader
from deployments.pages.answering import reason
from deployments.pages.attachment import File, plain_name
from deployments.pages.client import ApiRefused, ChatClient, PageModel, ServerUnreachable
from deployments.pages.file_reader import MAX_BYTES, READERS
from deployments.pages.file_texts import FileTexts, file_texts
from deployments.pages.language import texts_of

BODY_BYTES = MAX_BYTES * 4 // 3 + 10_000
"""The file is in base64: a body that is not JSON is what other sites' pages may send."""
_MAX_TIME_S = 30.0
_AT_ONCE = 2
_FILE_SHARE = 0.75
"""Of a model's context. The rest is for the question and the answer."""
_SAMPLE_SHARE = 0.25
"""So few characters fit into the context, whatever they are: a token may be one byte of them."""


class FileRequest(msgspec.Struct, frozen=True):
    """The body. data: the file's bytes. model: the one that will be asked; empty: the first."""

    name: Annotated[str, msgspec.Meta(max_length=1000)]
    data: bytes
    model: str = ""


class _Output(msgspec.Struct, frozen=True):
    """What the reader prints."""

    text: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class _Room:
    """How much of a text fits beside a question. characters: about."""

    fits: bool
    characters: int


class FileApi:
    """The route. It reads a few files at a time; others are refused."""

    def __init__(self, api: ChatClient) -> None:
        self._api = api
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def read(self, http: HttpRequest) -> Response:
        """Answers {"name", "text"}, or an error in the person's language. A key is needed where the API needs one."""
        texts = texts_of(http)
        key = http.headers.get("authorization", "").removeprefix("Bearer ").strip()
        try:
            models = await self._api.models(key)
            if self._places.locked():
                raise overloaded(file_texts(texts).busy)
            async with self._places:
                return json_response(await self._read(http, models, key, file_texts(texts)))
        except ApiError as error:
            return api_error(http, error)
        except (ApiRefused, ServerUnreachable) as error:
            status = error.status if isinstance(error, ApiRefused) else 503
            return api_error(http, ApiError(status, reason(error, key, texts)))

    async def _read(self, http: HttpRequest, models: list[PageModel], key: str, texts: FileTexts) -> File:
        try:
            request = msgspec.json.decode(await http.body(), type=FileRequest)
        except msgspec.DecodeError as error:
            raise ApiError(400, f"The body is no file: {error}.") from None
        name = plain_name(request.name)
        text = await text_within_limits(name, request.data, texts)
        model = next((entry for entry in models if entry.name == request.model), models[0] if models else None)
        if model is not None and not (room := await self._room(model, text, key)).fits:
            counts = {"context": model.context_tokens, "fits": room.characters, "characters": len(text)}
            message = texts.context.format(name=name, model=model.name, **counts)
            raise ApiError(400, message, code="context_length_exceeded")
        return File(name, text)

    async def _room(self, model: PageModel, text: str, key: str) -> _Room:
        """Raises ApiRefused, ServerUnreachable."""
        room = model.context_tokens * _FILE_SHARE
        if (tokens := await self._api.count_tokens(model.name, text, key)) is not None and tokens <= room:
            return _Room(True, len(text))
        sample = text[: int(model.context_tokens * _SAMPLE_SHARE)]
        tokens = await self._api.count_tokens(model.name, sample, key)
        fits = int(room * len(sample) / tokens) if tokens else len(sample)
        return _Room(False, fits // 100 * 100 or fits)


async def text_within_limits(name: str, data: bytes, texts: FileTexts) -> str:
    """The file's text, read by a process with limits. Raises ApiError, whose message is for the person."""

    def refusal(found: str, status: int = 400) -> ApiError:
        return ApiError(status, getattr(texts, found).format(name=name), code="invalid_file")

    kind = name.rpartition(".")[2].lower()
    if kind not in READERS:
        raise refusal("kind")
    if len(data) > MAX_BYTES:
        raise ApiError(413, texts.labels.large.format(name=name), code="request_too_large")
    reader = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", file_reader.__file__, kind),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.defpath},
    )
    try:
        async with asyncio.timeout(_MAX_TIME_S):
            printed, _ = await reader.communicate(data)
    except TimeoutError:
        raise refusal("costly") from None
    finally:
        if reader.returncode is None:
            reader.kill()
            await reader.wait()
    if reader.returncode:
        # A signal ends it at its limit of time; anything else is an error of the library that reads.
        raise refusal("costly" if reader.returncode < 0 else "broken")
    output = msgspec.json.decode(printed, type=_Output)
    if output.refused:
        raise refusal(output.refused)
    return output.text
