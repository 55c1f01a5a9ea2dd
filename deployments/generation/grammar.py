"""The grammar that constrains an answer: to a schema, to calls of tools, or to either.

Written in llguidance's Lark. A mark of a tool format that is a special token of the vocabulary must be written as that
token: as text, the model could not generate it. Source: docs/syntax.md of llguidance 1.9.
"""

import json
import re
from collections.abc import Iterable, Mapping

from deployments.common.grammars import json_grammar
from deployments.common.messages import Grammar
from deployments.common.types import GenerationRequest, Tool, ToolChoice
from deployments.generation.constraints import constraint_grammar
from deployments.generation.context import FORMAT_FIELD
from deployments.generation.schemas import WHITE_SPACE, SchemaPreparer
from deployments.generation.tool_formats import MARKERS, ToolFormat

_MAX_CALLS = 16
"""Maximum calls in an answer that must call tools, and in one run of calls."""
_ANY_OBJECT = json.dumps({"type": "object", "x-guidance": {"whitespace_pattern": WHITE_SPACE}})
_MARK = re.compile(f"({'|'.join(map(re.escape, MARKERS))})")
_TEXT = r"TEXT: /(?s:.*)/"


def grammar_of(
    request: GenerationRequest, tool_format: ToolFormat, special: Mapping[str, int], max_parts: int
) -> Grammar | None:
    """The grammar for the answer to a request; None: it is free.

    special: the special tokens among the marks of tool formats, by their text. max_parts: of the schemas together.
    Raises ApiError 400 for a schema that is invalid or, if it is strict, cannot be enforced.
    """
    if request.constraint is not None:
        return constraint_grammar(request.constraint, max_parts)
    answer = ""
    if request.schema:
        answer = SchemaPreparer(FORMAT_FIELD, max_parts).prepare(request.schema, strict=request.strict_schema)
    choice, tools = request.tool_choice, request.tools
    if not tools or choice.mode == "none":
        return Grammar(json_grammar(answer)) if answer else None
    writer = _Writer(tool_format, special, SchemaPreparer("tools", max_parts))
    if choice.mode == "required":
        return writer.calls_only([tool for tool in tools if choice.name in ("", tool.name)], choice)
    if answer:
        return writer.answer_or_calls(answer, tools, choice)
    if tool_format.opens and any(tool.strict for tool in tools):
        return writer.text_with_calls(tools, choice)
    # In Llama's format a call begins like any other JSON.
    return None


class _Writer:
    """Writes one grammar. schemas: prepares those of the tools."""

    def __init__(self, tool_format: ToolFormat, special: Mapping[str, int], schemas: SchemaPreparer) -> None:
        self._format = tool_format
        self._special = special
        self._schemas = schemas

    def calls_only(self, tools: Iterable[Tool], choice: ToolChoice) -> Grammar:
        """The answer is a run of calls. Schemas that are not strict are followed as far as they can be held."""
        arguments = [(tool, self._arguments(tool)) for tool in tools]
        return _grammar(f"start: {self._run(choice)}", *self._calls(arguments))

    def answer_or_calls(self, schema: str, tools: Iterable[Tool], choice: ToolChoice) -> Grammar:
        """The answer is a value that the schema allows, or a run of calls."""
        arguments = [(tool, self._arguments(tool) if tool.strict else _ANY_OBJECT) for tool in tools]
        # llguidance decides at the first "{" whether JSON or text has begun, so that JSON it must be in both cases.
        calls = self._calls(arguments) if self._format.opens else self._calls_as_json(arguments)
        return _grammar(f"start: answer | {self._run(choice)}", f"answer: %json {schema}", *calls)

    def text_with_calls(self, tools: Iterable[Tool], choice: ToolChoice) -> Grammar:
        """The answer is any text. A call in it names a tool, and follows its schema if that is strict."""
        arguments = [(tool, self._arguments(tool) if tool.strict else _ANY_OBJECT) for tool in tools]
        opens, begin = self._format.opens, self._format.begin
        # A mark that is a token of its own ends the text; one that is text ends it where it comes first: `lazy`.
        opening = f"opening{'' if opens in self._special else '[lazy]'}: TEXT {self._text(opens)}"
        if begin:
            run, calls = f"opening {self._run(choice, begin.removeprefix(opens))}", self._calls(arguments)
        else:
            run, calls = "opening call", self._calls(arguments, opened=opens)
        return _grammar("start: run* rest", f"run: {run}", "rest: TEXT", opening, _TEXT, *calls)

    def _arguments(self, tool: Tool) -> str:
        """The schema of a call's arguments, which are an object whatever else is said."""
        if tool.parameters == "{}":
            return _ANY_OBJECT
        return self._schemas.prepare(tool.parameters, strict=tool.strict)

    def _run(self, choice: ToolChoice, begin: str | None = None) -> str:
        """An expression for one call or several. begin: what precedes the first, if it is not what the format says."""
        more = f" ({self._text(self._format.between)} call){{0,{_MAX_CALLS - 1}}}"
        several = choice.parallel and not choice.name
        begin = self._format.begin if begin is None else begin
        return f"{self._text(begin)} call{more if several else ''} {self._text(self._format.end)}"

    def _calls(self, arguments: Iterable[tuple[Tool, str]], opened: str = "") -> list[str]:
        """The rule for a call, and those that it needs. opened: what of the call has been generated before it."""
        rules = []
        for tool, schema in arguments:
            before, after = self._format.around(tool.name)
            before = before.removeprefix(opened)
            rules.append(f"{self._text(before)} %json {schema} {self._text(after)}")
        return _alternatives(rules)

    def _calls_as_json(self, arguments: Iterable[tuple[Tool, str]]) -> list[str]:
        """The same for a format whose calls are JSON: as objects, between whose parts there may be white space."""
        rules = []
        for tool, schema in arguments:
            document = json.loads(schema)
            whole = {key: document.pop(key) for key in ("$defs", "x-guidance") if key in document}
            call = json.loads("{}".join(self._format.around(tool.name)))
            parts = {key: {"const": value} if isinstance(value, str) else document for key, value in call.items()}
            whole |= {"type": "object", "properties": parts, "required": [*parts], "additionalProperties": False}
            rules.append(f"%json {json.dumps(whole)}")
        return _alternatives(rules)

    def _text(self, text: str) -> str:
        """An expression for exactly this text, marks that are special tokens included."""
        if not self._special:
            return _quoted(text)
        pieces = _MARK.split(text)
        return " ".join(f"<[{self._special[piece]}]>" if piece in self._special else _quoted(piece) for piece in pieces)


def _quoted(text: str) -> str:
    """A terminal for exactly this text; nothing for an empty one."""
    return json.dumps(text) if text else ""


def _alternatives(calls: list[str]) -> list[str]:
    """The rule for a call, and one for each kind of call."""
    names = [f"call_{index}" for index in range(len(calls))]
    return [f"call: {' | '.join(names)}", *(f"{name}: {call}" for name, call in zip(names, calls, strict=True))]


def _grammar(*rules: str) -> Grammar:
    return Grammar("\n".join(("%llguidance {}", *rules)))
