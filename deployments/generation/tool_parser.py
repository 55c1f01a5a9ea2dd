"""Reading tool calls out of an answer's text, as it streams."""

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deployments.common.types import ToolCall, ToolDelta
from deployments.generation.tool_formats import R1, ToolFormat

_PARTING = " \t\r\n,;[]"
_PYTHON_TAG = "<|python_tag|>"
_JSON_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{\[])')
_R1_HEAD = re.compile(r"<｜tool▁call▁begin｜>\s*\w*\s*<｜tool▁sep｜>\s*([^\n]+?)\s*\n\s*```(?:json)?\s*(?=[{\[])")
_R1_TAIL = re.compile(r"\s*```\s*<｜tool▁call▁end｜>")
_JSON_TAIL = re.compile(r"\s*\}")


@dataclass(slots=True)
class ToolCallParser:
    """What of an answer is text, and what are calls. Whatever is no call after all comes out as text."""

    family: ToolFormat
    calls: list[ToolCall] = field(default_factory=list)
    _held: str = ""
    _state: str = "text"
    _said: bool = False
    _out: list[str] = field(default_factory=list)
    _deltas: list[ToolDelta] = field(default_factory=list)
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False

    def feed(self, text: str, *, last: bool = False) -> tuple[str, tuple[ToolDelta, ...]]:
        """Takes new text; gives the text that belongs to no call, and the pieces of calls. last: no more comes."""
        self._held += text
        steps = {"text": self._text, "between": self._between, "arguments": self._arguments, "tail": self._tail}
        while self._held and steps[self._state](last):
            pass
        if last and self._held:
            self._say(len(self._held))
        said, deltas = "".join(self._out), tuple(self._deltas)
        self._out, self._deltas = [], []
        return said, deltas

    def _say(self, size: int) -> None:
        said, self._held = self._held[:size], self._held[size:]
        # White space between calls, or after the last, is no answer.
        if said and (not self.calls or said.strip()):
            self._said = self._said or bool(said.strip())
            self._out.append(said)

    def _text(self, last: bool) -> bool:
        opens = self.family.opens
        if not opens:
            return self._bare_text(last)
        place = self._held.find(opens)
        if place >= 0:
            self._say(place)
            self._held = self._held[len(opens) :]
            self._state = "between"
            return True
        self._say(len(self._held) - (0 if last else begins(self._held, opens)))
        return False

    def _bare_text(self, last: bool) -> bool:
        """An answer of nothing but JSON objects, as Llama writes calls."""
        start = self._held.lstrip()
        if not self._said and not last and (not start or (_PYTHON_TAG.startswith(start) and start != _PYTHON_TAG)):
            return False
        if not self._said and start.startswith(("{", _PYTHON_TAG)):
            self._held = start.removeprefix(_PYTHON_TAG)
            self._state = "between"
            return True
        self._say(len(self._held))
        return False

    def _between(self, last: bool) -> bool:
        held, closes = self._held.lstrip(_PARTING), self.family.closes
        if closes and held.startswith(closes):
            self._held, self._state = held[len(closes) :], "text"
            return True
        if not held or (closes and closes.startswith(held)):
            self._held = held
            return False
        head = (_R1_HEAD if self.family is R1 else _JSON_HEAD).match(held)
        if head is not None:
            name = head.group(1) if self.family is R1 else _string(head.group(1))
            if name is None:
                self._state = "text"
                self._say(len(self._held) - len(held) + head.end())
                return True
            self._begin(name, "")
            self._held, self._state = held[head.end() :], "arguments"
            self._depth, self._in_string, self._escaped = 0, False, False
            return True
        if held.startswith("{") and (size := _balanced(held)):
            if not self._whole(held[:size]):
                self._state = "text"
                self._say(len(self._held) - len(held) + size)
                return True
            self._held = held[size:]
            return True
        starts = "<｜tool▁call▁begin｜>" if self.family is R1 else "{"
        if not held.startswith(starts) and not starts.startswith(held):
            self._state = "text"
            return True
        return False

    def _whole(self, text: str) -> bool:
        """A call whose parts come in another order: read when it is complete."""
        try:
            given = msgspec.json.decode(text, type=dict[str, Any])
            arguments = given.get("arguments", given.get("parameters", {}))
            written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        except (msgspec.DecodeError, RecursionError):
            return False
        if not isinstance(name := given.get("name"), str):
            return False
        self._begin(name, written)
        return True

    def _begin(self, name: str, arguments: str) -> None:
        call = ToolCall(f"call_{secrets.token_hex(12)}", name, arguments)
        self.calls.append(call)
        self._deltas.append(ToolDelta(len(self.calls) - 1, arguments, call.id, name))

    def _arguments(self, last: bool) -> bool:
        end = 0
        for end, one in enumerate(self._held, 1):  # noqa: B007 - where it stopped is what is wanted
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif one == "\\":
                    self._escaped = True
                elif one == '"':
                    self._in_string = False
            elif one == '"':
                self._in_string = True
            elif one in "{[":
                self._depth += 1
            elif one in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._state = "tail"
                    break
        piece, self._held = self._held[:end], self._held[end:]
        call = self.calls[-1]
        self.calls[-1] = ToolCall(call.id, call.name, call.arguments + piece)
        self._deltas.append(ToolDelta(len(self.calls) - 1, piece))
        return True

    def _tail(self, last: bool) -> bool:
        tail = (_R1_TAIL if self.family is R1 else _JSON_TAIL).match(self._held)
        if tail is not None:
            self._held, self._state = self._held[tail.end() :], "between"
            return True
        if last or len(self._held) > 64:  # it never comes: what follows is text
            self._state = "text"
            return True
        return False


def begins(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`, and is not all of it."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


def _string(text: str) -> str | None:
    """The JSON string that this text is; None where it is not one."""
    try:
        return msgspec.json.decode(text, type=str)
    except msgspec.DecodeError:
        return None


def _balanced(text: str) -> int:
    """Length of the JSON object at the start of `text`; 0 while it is not complete."""
    depth, in_string, escaped = 0, False, False
    for size, one in enumerate(text, 1):
        if in_string:
            escaped, in_string = (one == "\\" and not escaped), in_string and not (one == '"' and not escaped)
        elif one == '"':
            in_string = True
        elif one in "{[":
            depth += 1
        elif one in "}]":
            depth -= 1
            if depth == 0:
                return size
    return 0
