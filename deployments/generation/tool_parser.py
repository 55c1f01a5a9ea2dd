"""Finds tool calls in an answer's text while it streams."""

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deployments.common.types import ToolCall, ToolDelta
from deployments.generation.tool_formats import ToolFormat

_SEPARATORS = " \t\r\n,;[]"
_PYTHON_TAG = "<|python_tag|>"
_NAMED = re.compile(r'[\s;,]*+\{\s*"name"')
_MAX_TAIL = 64
"""Characters after the arguments. If the end of the call is not among them, it is missing."""


@dataclass(slots=True)
class JsonScanner:
    """Finds the end of a JSON object or list in a text that arrives in pieces."""

    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False

    def scan(self, text: str) -> int:
        """Reads the next piece. Returns how many of its characters belong to the value if it ends there; else 0."""
        for size, character in enumerate(text, 1):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return size
        return 0


@dataclass(slots=True)
class ToolCallParser:
    """Separates an answer's text from its tool calls. What turns out not to be a call is returned as text."""

    family: ToolFormat
    calls: list[ToolCall] = field(default_factory=list)
    _held: str = ""
    _state: str = "text"
    _has_text: bool = False
    _out: list[str] = field(default_factory=list)
    _deltas: list[ToolDelta] = field(default_factory=list)
    _scanner: JsonScanner = field(default_factory=JsonScanner)
    _object: JsonScanner = field(default_factory=JsonScanner)
    _scanned: int = 0
    """How much of an object whose keys are in another order `_object` has read."""

    def feed(self, text: str, *, last: bool = False, cut: bool = False) -> tuple[str, tuple[ToolDelta, ...]]:
        """Takes the next text of the answer; returns the text outside of calls, and the pieces of calls.

        last: the answer ends here. cut: it ends at the limit of tokens, so that what begins like a call is a part of
        one and not a text.
        """
        self._held += text
        steps = {"text": self._text, "between": self._between, "arguments": self._arguments, "tail": self._tail}
        while self._held and steps[self._state](last and not cut):
            pass
        if last and self._held and not (cut and self._is_part_of_call()):
            self._emit(len(self._held))
        out, deltas = "".join(self._out), tuple(self._deltas)
        self._out, self._deltas = [], []
        return out, deltas

    def _is_part_of_call(self) -> bool:
        """Whether the held text, which is neither text nor a call yet, belongs to a call."""
        # Without a mark in front of its calls, a format cannot tell one from an answer that is a JSON object.
        return bool(self.family.opens) or self._state != "between" or _NAMED.match(self._held) is not None

    # Each step consumes held text in one state. It returns whether another step can follow, or more text is needed.

    def _text(self, last: bool) -> bool:
        opens = self.family.opens
        if not opens:
            return self._bare_text(last)
        index = self._held.find(opens)
        if index >= 0:
            self._emit(index)
            self._held = self._held[len(opens) :]
            self._state = "between"
            return True
        self._emit(len(self._held) - (0 if last else begins(self._held, opens)))
        return False

    def _bare_text(self, last: bool) -> bool:
        """For Llama, whose calls are an answer of nothing but JSON objects."""
        start = self._held.lstrip()
        if not self._has_text and not last and (not start or (_PYTHON_TAG.startswith(start) and start != _PYTHON_TAG)):
            return False
        if not self._has_text and start.startswith(("{", _PYTHON_TAG)):
            self._held = start.removeprefix(_PYTHON_TAG)
            self._state = "between"
            return True
        self._emit(len(self._held))
        return False

    def _between(self, last: bool) -> bool:
        """Before a call, between two, or after the last."""
        if ended := self._call_begins_or_not():
            self._object, self._scanned = JsonScanner(), 0
        return ended

    def _call_begins_or_not(self) -> bool:
        held, closes = self._held.lstrip(_SEPARATORS), self.family.closes
        if closes and held.startswith(closes):
            self._held, self._state = held[len(closes) :], "text"
            return True
        if not held or (closes and closes.startswith(held)):
            self._held = held
            return False
        head = self.family.syntax.head.match(held)
        if head is not None:
            return self._head(head, held)
        if held.startswith("{") and (size := self._end_of_object(held)):
            if self._whole(held[:size]):
                self._held = held[size:]
                return True
            return self._reject(held, size)
        start = self.family.syntax.start
        if not held.startswith(start) and not start.startswith(held):
            self._state = "text"
            return True
        return False

    def _end_of_object(self, held: str) -> int:
        """The size of the object that `held` begins with; 0 if it goes on. Reads each character once, however many
        pieces the text comes in."""
        size, before = self._object.scan(held[self._scanned :]), self._scanned
        self._scanned = len(held)
        return before + size if size else 0

    def _head(self, head: re.Match[str], held: str) -> bool:
        """A call up to its arguments."""
        name = head.group(1).rstrip() if self.family.bare else _json_string(head.group(1))
        if name is None:
            return self._reject(held, head.end())
        self._begin(name, "")
        self._held, self._state, self._scanner = held[head.end() :], "arguments", JsonScanner()
        return True

    def _whole(self, text: str) -> bool:
        """A complete JSON object whose keys are in another order. Returns whether it is a call."""
        try:
            call = msgspec.json.decode(text, type=dict[str, Any])
            arguments = call.get("arguments", call.get("parameters", {}))
            written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        except (msgspec.DecodeError, RecursionError):
            return False
        if not isinstance(name := call.get("name"), str):
            return False
        self._begin(name, written)
        return True

    def _arguments(self, last: bool) -> bool:
        size = self._scanner.scan(self._held)
        if size:
            self._state = "tail"
        else:
            size = len(self._held)
        piece, self._held = self._held[:size], self._held[size:]
        call = self.calls[-1]
        self.calls[-1] = ToolCall(call.id, call.name, call.arguments + piece)
        self._deltas.append(ToolDelta(len(self.calls) - 1, piece))
        return True

    def _tail(self, last: bool) -> bool:
        tail = self.family.syntax.tail.match(self._held)
        if tail is not None:
            self._held, self._state = self._held[tail.end() :], "between"
            return True
        if last or len(self._held) > _MAX_TAIL:
            self._state = "text"
            return True
        return False

    def _begin(self, name: str, arguments: str) -> None:
        call = ToolCall(f"call_{secrets.token_hex(12)}", name, arguments)
        self.calls.append(call)
        self._deltas.append(ToolDelta(len(self.calls) - 1, arguments, call.id, name))

    def _reject(self, held: str, size: int) -> bool:
        """Returns this many characters of `held`, and what precedes it, as text."""
        self._state = "text"
        self._emit(len(self._held) - len(held) + size)
        return True

    def _emit(self, size: int) -> None:
        """Returns this many characters of the held text as text."""
        text, self._held = self._held[:size], self._held[size:]
        # White space between calls, or after the last, is not part of the answer.
        if text and (not self.calls or text.strip()):
            self._has_text = self._has_text or bool(text.strip())
            self._out.append(text)


def begins(text: str, mark: str) -> int:
    """Length of the longest end of `text` with which `mark` begins, but is not complete."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


def _json_string(text: str) -> str | None:
    """The string that this JSON text stands for; None if it is not a valid JSON string."""
    try:
        return msgspec.json.decode(text, type=str)
    except msgspec.DecodeError:
        return None
