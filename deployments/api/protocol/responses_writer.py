"""The answers of POST /v1/responses, whole and as events."""

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deployments.api.protocol.chat_writer import ChatLogprob, logprobs_of
from deployments.api.protocol.response_tools import Function, functions_of, taken_choice
from deployments.api.protocol.responses import ResponseRequest, response_error
from deployments.cache.response_store import new_response_id
from deployments.common.errors import ApiError, new_id
from deployments.common.types import Choice, Delta, GenerationResult, TokenLogprob, ToolDelta, Usage


@dataclass(slots=True)
class _Item:
    """An output item, with the text received so far. kind: reasoning, message or function_call. function: the called
    one's name, and its namespace if it has one. tokens: of a message's text, if log probabilities are requested."""

    kind: str
    id: str
    text: str = ""
    call_id: str = ""
    function: dict[str, str] = field(default_factory=dict)
    tokens: tuple[TokenLogprob, ...] = ()

    @property
    def part_type(self) -> str:
        return "reasoning_text" if self.kind == "reasoning" else "output_text"

    def logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, list[ChatLogprob]]:
        return {} if self.kind == "reasoning" else {"logprobs": logprobs_of(tokens)}

    def part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self.part_type, "text": self.text}
        return part if self.kind == "reasoning" else part | {"annotations": [], **self.logprobs(self.tokens)}

    def describe(self, status: str) -> dict[str, Any]:
        if self.kind == "function_call":
            call = {"type": "function_call", "id": self.id, "call_id": self.call_id, **self.function}
            return call | {"arguments": self.text, "status": status}
        content = [self.part()] if self.text or status != "in_progress" else []
        if self.kind == "reasoning":
            return {"type": "reasoning", "id": self.id, "summary": [], "content": content, "status": status}
        return {"type": "message", "id": self.id, "role": "assistant", "content": content, "status": status}


@dataclass(slots=True)
class ResponseWriter:
    """Writes the answer to one request. stores: whether the response is stored, as it says itself."""

    request: ResponseRequest
    stores: bool = False
    id: str = field(default_factory=new_response_id)
    _created: int = field(default_factory=lambda: int(time.time()))
    _sequence: int = 0
    _done: list[_Item] = field(default_factory=list)
    _open: _Item | None = None
    _textless: tuple[TokenLogprob, ...] = ()
    """Tokens whose text comes with a later one: they are parts of a character."""
    _functions: dict[str, Function] = field(init=False)
    _final: dict[str, Any] | None = None
    _last_events: bytes = b""
    user: str = ""
    """The tag of who asks, which is stored with the response (cluster.records.forget)."""

    def __post_init__(self) -> None:
        self._functions = {function.key: function for function in functions_of(self.request.all_tools)}

    @property
    def has_begun(self) -> bool:
        """Whether a stream has any of the answer."""
        return bool(self._done) or self._open is not None

    def complete(self, answer: GenerationResult) -> dict[str, Any]:
        return self.finish(answer)

    def finish(self, answer: GenerationResult) -> dict[str, Any]:
        """The whole response, which is the same object at each call: its `store` is true only once it is stored."""
        if self._final is None:
            [choice] = answer.choices
            if self._sequence:
                self._last_events, items = self._close_all(choice), self._done
            else:
                items = self._items(choice)
            self._final = self._response(items, choice.finish_reason, answer.usage)
        return self._final

    def start(self, usage: Usage) -> bytes:
        response = self._response([], None, None)
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def delta(self, delta: Delta) -> bytes:
        events = b""
        if delta.reasoning:
            events += self._append("reasoning", delta.reasoning)
        self._textless += delta.logprobs
        if delta.text:
            events += self._append("message", delta.text)
        for call in delta.tool_calls:
            events += self._append_call(call)
        return events

    def end(self, answer: GenerationResult) -> bytes:
        response = self.finish(answer)
        return self._last_events + self._event(f"response.{response['status']}", response=response)

    def _close_all(self, choice: Choice) -> bytes:
        """Ends a stream's items."""
        if self._open is not None and self._open.kind == "message":
            self._open.tokens += self._textless
        events = self._close("incomplete" if choice.finish_reason == "length" else "completed")
        if not any(item.kind != "reasoning" for item in self._done) and choice.finish_reason != "length":
            events += self._append("message", "") + self._close("completed")
        return events

    def unfinished(self, status: str, failure: str = "") -> dict[str, Any]:
        """The response while it has this status, with what is complete of it. failure: why it failed."""
        error = {"code": "server_error", "message": failure} if failure else None
        return self._response(self._done, None, None) | {"status": status, "error": error}

    def error(self, error: ApiError) -> bytes:
        detail, response = response_error(error).error, self.unfinished("failed", error.message)
        event = self._event("error", code=detail.code, message=error.message, param=detail.param)
        return event + self._event("response.failed", response=response)

    def _append(self, kind: str, text: str) -> bytes:
        """Adds text to the open item, or to a new one if that is of another kind."""
        events = b""
        if self._open is None or self._open.kind != kind:
            events += self._begin(_Item(kind, new_id("rs_" if kind == "reasoning" else "msg_")))
        item = self._open
        assert item is not None
        item.text += text
        if not text:
            return events
        tokens: tuple[TokenLogprob, ...] = ()
        if kind == "message":
            tokens, self._textless = self._textless, ()
            item.tokens += tokens
        logprobs = item.logprobs(tokens)
        return events + self._event(f"response.{item.part_type}.delta", **self._at(item), delta=text, **logprobs)

    def _append_call(self, call: ToolDelta) -> bytes:
        events, self._textless = b"", ()
        if call.id:
            events += self._begin(_Item("function_call", new_id("fc_"), "", call.id, self._function(call.name)))
        item = self._open
        assert item is not None
        item.text += call.arguments
        if not call.arguments:
            return events
        where = {"item_id": item.id, "output_index": len(self._done)}
        return events + self._event("response.function_call_arguments.delta", **where, delta=call.arguments)

    def _begin(self, item: _Item) -> bytes:
        events = self._close("completed")
        self._open = item
        added = item.describe("in_progress")
        events += self._event("response.output_item.added", output_index=len(self._done), item=added)
        if item.kind == "function_call":
            return events
        return events + self._event("response.content_part.added", **self._at(item), part=item.part())

    def _close(self, status: str) -> bytes:
        item = self._open
        if item is None:
            return b""
        if item.kind == "function_call":
            where = {"item_id": item.id, "output_index": len(self._done)}
            done = {"name": item.function["name"], "arguments": item.text}
            events = self._event("response.function_call_arguments.done", **where, **done)
        else:
            logprobs = item.logprobs(item.tokens)
            events = self._event(f"response.{item.part_type}.done", **self._at(item), text=item.text, **logprobs)
            events += self._event("response.content_part.done", **self._at(item), part=item.part())
        events += self._event("response.output_item.done", output_index=len(self._done), item=item.describe(status))
        self._done.append(item)
        self._open = None
        return events

    def _at(self, item: _Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": len(self._done), "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: ".encode() + msgspec.json.encode(body) + b"\n\n"

    def _response(self, items: list[_Item], finish: str | None, usage: Usage | None) -> dict[str, Any]:
        request = self.request
        status = "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": bool(request.background),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model,
            "output": [
                item.describe("incomplete" if status == "incomplete" and item is items[-1] else "completed")
                for item in items
            ],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
            "store": self.stores,
            "temperature": request.temperature,
            "text": {"format": _format_of(request)},
            "tool_choice": msgspec.to_builtins(taken_choice(request.tool_choice)),
            "tools": [tool.described() for tool in request.tools or () if tool.type in ("function", "namespace")],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": request.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None if usage is None else usage_of(usage),
            "metadata": request.metadata or {},
        }

    def _items(self, choice: Choice) -> list[_Item]:
        items = [_Item("reasoning", new_id("rs_"), choice.reasoning)] if choice.reasoning else []
        if choice.text or (not choice.tool_calls and choice.finish_reason != "length"):
            items.append(_Item("message", new_id("msg_"), choice.text, tokens=choice.logprobs))
        calls = (
            _Item("function_call", new_id("fc_"), call.arguments, call.id, self._function(call.name))
            for call in choice.tool_calls
        )
        return [*items, *calls]

    def _function(self, key: str) -> dict[str, str]:
        """A called function's name and namespace, as the request has them."""
        function = self._functions.get(key)
        if function is None or not function.namespace:
            return {"name": key}
        return {"name": function.name, "namespace": function.namespace}


def _format_of(request: ResponseRequest) -> dict[str, Any]:
    answer_format = request.text.format if request.text else None
    described: dict[str, Any] = {"type": "text"} if answer_format is None else msgspec.to_builtins(answer_format)
    # By OpenAI's document, a description is a text or absent.
    return {name: value for name, value in described.items() if (name, value) != ("description", None)}


def usage_of(usage: Usage) -> dict[str, Any]:
    """Usage in this API's shape."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
