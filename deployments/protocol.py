"""OpenAI's request and response shapes, once, and the errors in its shape."""

import re
import time
from typing import Annotated, Any, Literal

import msgspec

from cluster.settings import LimitSettings


class ApiError(Exception):
    """An answer that is an error: HTTP status, and what OpenAI puts in its `error` object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}


def overloaded(message: str, retry_after_s: int = 1) -> ApiError:
    """503: nothing is wrong with the request, and a later try may be served."""
    return ApiError(503, message, code="overloaded", kind="server_error", retry_after_s=retry_after_s)


class TextPart(msgspec.Struct, frozen=True):
    """A content part. Only text is served."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, frozen=True):
    """One turn. `reasoning_content` of earlier answers is taken and dropped, as the chat template does."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(msgspec.Struct, frozen=True):
    """Whether a last chunk tells the usage. Obfuscation is padding that Dray never adds."""

    include_usage: bool = False
    include_obfuscation: bool = False


Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Probability = Annotated[float, msgspec.Meta(gt=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions. A name that is not here is refused by its name."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    temperature: Temperature | None = None
    top_p: Probability | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Taken and without effect, as for OpenAI's own models that lack them.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    # Taken at the value that changes nothing.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def token_wish(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request. reasoning: of the completion, thinking. cached: of the prompt, not computed."""

    prompt: int
    completion: int
    reasoning: int
    cached: int

    def as_openai(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


_decode_chat = msgspec.json.Decoder(ChatRequest).decode
_FIELD = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")


def parse_chat(body: bytes, limits: LimitSettings) -> ChatRequest:
    """The request in a body. Raises ApiError 400 that names the field."""
    try:
        request = _decode_chat(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if len(request.messages) > limits.messages:
        raise ApiError(
            400,
            f"{len(request.messages)} messages; at most {limits.messages} are taken.",
            code="array_above_max_length",
            param="messages",
        )
    if not any(message.text().strip() for message in request.messages):
        raise ApiError(400, "The messages are empty: at least one needs text.", code="empty_prompt", param="messages")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(
            400,
            "max_tokens and max_completion_tokens exclude each other; send max_completion_tokens.",
            code="invalid_value",
            param="max_tokens",
        )
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options needs stream: true.", code="invalid_value", param="stream_options")
    _check_stop(request.stop_strings, limits)
    return request


def _check_stop(stop: list[str], limits: LimitSettings) -> None:
    if len(stop) > limits.stop_strings:
        raise ApiError(
            400,
            f"{len(stop)} stop strings; at most {limits.stop_strings} are taken.",
            code="array_above_max_length",
            param="stop",
        )
    if any(not text or len(text) > limits.stop_string_chars for text in stop):
        raise ApiError(
            400,
            f"A stop string has 1 to {limits.stop_string_chars} characters.",
            code="invalid_value",
            param="stop",
        )


def _invalid(said: str) -> ApiError:
    where = _FIELD.search(said)
    path = where.group(1) if where else ""
    message = _FIELD.sub("", said)
    if unknown := _UNKNOWN.search(message):
        name = f"{path}.{unknown.group(1)}" if path else unknown.group(1)
        return ApiError(400, f"Unrecognized request argument supplied: {name}", code="unknown_parameter", param=name)
    if missing := re.search(r"missing required field `(.*)`", message):
        name = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return ApiError(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    code = "invalid_type" if message.startswith("Expected") and "got" in message else "invalid_value"
    return ApiError(
        400,
        f"Invalid '{path}': {message}." if path else f"Invalid body: {message}.",
        code=code,
        param=path or None,
    )


def completion(
    identity: str, model: str, fingerprint: str, reasoning: str, text: str, finish: str, usage: Usage
) -> dict[str, Any]:
    """The body of an unstreamed answer. fingerprint: names the exact model."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    return {
        "id": identity,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": usage.as_openai(),
    }


class ChunkWriter:
    """Writes the server-sent events of one streamed answer."""

    def __init__(self, identity: str, model: str, fingerprint: str, *, with_usage: bool) -> None:
        self._head = {
            "id": identity,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._with_usage = with_usage

    def opening(self) -> bytes:
        """The first event: the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, reasoning: str, text: str) -> bytes:
        """New text: thinking, answer, or both where the one ends and the other begins."""
        fields = {"reasoning_content": reasoning, "content": text}
        return b"".join(self._chunk({name: value}) for name, value in fields.items() if value)

    def closing(self, finish: str, usage: Usage) -> bytes:
        """The reason why it ended, the usage if it was asked for, and the end mark."""
        events = self._chunk({}, finish)
        if self._with_usage:
            events += _event(self._head | {"choices": [], "usage": usage.as_openai()})
        return events + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        body = self._head | {"choices": [choice]}
        return _event(body | {"usage": None} if self._with_usage else body)


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream which failed midway."""
    return _event(error.body)


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
