"""The answers of POST /v1/messages, whole and as events."""

import base64
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from deployments.api.protocol.messages import MessagesRequest, anthropic_error
from deployments.common.errors import ApiError, new_id
from deployments.common.types import Choice, Delta, GenerationResult, Usage


@dataclass(slots=True)
class MessagesWriter:
    """Writes the answer to one request. shows_thinking: whether blocks of thinking are among its blocks."""

    request: MessagesRequest
    shows_thinking: bool
    id: str = field(default_factory=lambda: new_id("msg_"))
    _blocks: int = 0
    _open: str = ""
    _thinking: Any = None

    def complete(self, answer: GenerationResult) -> dict[str, Any]:
        [choice] = answer.choices
        blocks: list[dict[str, Any]] = []
        if choice.reasoning and self.shows_thinking:
            signature = _signature(_digest(choice.reasoning))
            blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": signature})
        if choice.text:
            blocks.append({"type": "text", "text": choice.text})
        for call in choice.tool_calls:
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)})
        return self._message(blocks, answer.usage, choice)

    def start(self, usage: Usage) -> bytes:
        of_prompt = Usage(usage.prompt_tokens, 0, 0, usage.cached_tokens)
        return _event("message_start", message=self._message([], of_prompt))

    def delta(self, delta: Delta) -> bytes:
        events = b""
        if delta.reasoning and self.shows_thinking:
            block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            events += self._append("thinking", block, {"type": "thinking_delta", "thinking": delta.reasoning})
            self._thinking.update(delta.reasoning.encode())
        if delta.text:
            events += self._append("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": delta.text})
        for call in delta.tool_calls:
            if call.id:
                events += self._close()
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            events += self._append("tool_use", block, {"type": "input_json_delta", "partial_json": call.arguments})
        return events

    def end(self, answer: GenerationResult) -> bytes:
        [choice] = answer.choices
        delta = {"stop_reason": _stop_reason(choice), "stop_sequence": choice.stop or None}
        usage = _usage(answer.usage)
        return self._close() + _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def error(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + msgspec.json.encode(anthropic_error(error)) + b"\n\n"

    def _append(self, kind: str, block: dict[str, Any], delta: dict[str, Any]) -> bytes:
        """Adds a delta to the open block, or to this new one if that is of another kind."""
        events = b""
        if self._open != kind:
            events += self._close() + _event("content_block_start", index=self._blocks, content_block=block)
            self._open = kind
            self._thinking = _digest("")
        return events + _event("content_block_delta", index=self._blocks, delta=delta)

    def _close(self) -> bytes:
        if not self._open:
            return b""
        events = b""
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": _signature(self._thinking)}
            events = _event("content_block_delta", index=self._blocks, delta=delta)
        self._open = ""
        self._blocks += 1
        return events + _event("content_block_stop", index=self._blocks - 1)

    def _message(self, blocks: list[dict[str, Any]], usage: Usage, choice: Choice | None = None) -> dict[str, Any]:
        """choice: None as long as the answer is not complete."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": blocks,
            "stop_reason": _stop_reason(choice) if choice else None,
            "stop_sequence": (choice.stop or None) if choice else None,
            "usage": _usage(usage),
        }


def _digest(thinking: str) -> Any:
    return blake2b(thinking.encode(), digest_size=32)


def _signature(digest: Any) -> str:
    """The signature of a block of thinking. Clients refuse an empty one, and send it back; Dray does not need it."""
    return base64.b64encode(digest.digest()).decode()


def _stop_reason(choice: Choice) -> str:
    if choice.stop:
        return "stop_sequence"
    return {"length": "max_tokens", "tool_calls": "tool_use"}.get(choice.finish_reason, "end_turn")


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _input(arguments: str) -> msgspec.Raw:
    """A call's arguments as the model wrote them; an empty object if they are not JSON."""
    try:
        msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.Raw("{}")
    return msgspec.Raw(arguments)


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode({"type": kind, **fields}) + b"\n\n"
