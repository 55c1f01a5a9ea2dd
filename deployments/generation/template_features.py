"""What a chat template can do with a conversation, found out by rendering a few short ones with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from deployments.generation.template_budget import TemplateTooDear

TEMPLATE_ERRORS = TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
"""What a template can raise on messages and arguments that it does not expect."""

Render = Callable[[Sequence[Mapping[str, Any]], list[dict[str, Any]] | None], str]
_USER = {"role": "user", "content": "probe-user"}
_TOOL_NAME = "probe_tool"
_TOOL = {"name": _TOOL_NAME, "description": "probe-description", "parameters": {"type": "object", "properties": {}}}
_NAME, _OTHER_NAME, _TEXT, _RESULT = "probe_call", "probe_second", "probe-text", "probe-result"
_ARGUMENTS = {"probe_key": "probe-value"}
_ARGUMENTS_TEXTS = ('{"probe_key": "probe-value"}', '{"probe_key":"probe-value"}')


@dataclass(frozen=True, slots=True)
class CallFeatures:
    """How a template shows the tool calls of an earlier answer.

    as_objects: it wants their arguments as objects, and not as JSON text. null_content: only of messages whose content
    is null. several: more than one in a message. beside_text: with the text of the same message.
    """

    as_objects: bool
    null_content: bool
    several: bool
    beside_text: bool


@dataclass(frozen=True, slots=True)
class TemplateFeatures:
    """system, several_systems: it shows system messages. tools: it shows tools. results: it shows messages of tools.
    calls: how it shows tool calls; None: it shows none."""

    system: bool
    several_systems: bool
    tools: bool
    results: bool
    calls: CallFeatures | None


def features_of(render: Render) -> TemplateFeatures | None:
    """What a template can do. None: it cannot be rendered at all, or takes too much. render: by messages and tools."""

    def shows(messages: Sequence[Mapping[str, Any]], *texts: str, tools: list[dict[str, Any]] | None = None) -> bool:
        try:
            text = render(messages, tools)
        except TemplateTooDear:
            raise
        except TEMPLATE_ERRORS:
            return False
        return all(part in text for part in texts)

    first, second = {"role": "system", "content": "probe-first"}, {"role": "system", "content": "probe-second"}
    try:
        if not shows([_USER], "probe-user"):
            return None
        calls = _calls(shows)
        return TemplateFeatures(
            system=shows([first, _USER], "probe-first", "probe-user"),
            several_systems=shows([first, second, _USER], "probe-first", "probe-second", "probe-user"),
            tools=shows([_USER], _TOOL_NAME, tools=[{"type": "function", "function": _TOOL}]),
            results=shows([_USER, *_asked(calls), {"role": "tool", "content": _RESULT, "name": _NAME}], _RESULT),
            calls=calls,
        )
    except TemplateTooDear:
        return None


def _calls(shows: Callable[..., bool]) -> CallFeatures | None:
    for as_objects, null_content in _ways():
        content = None if null_content else ""
        one = [_USER, _answer(content, as_objects, _NAME)]
        # Written by Python and not as JSON, arguments were not meant to be objects.
        if not any(shows(one, _NAME, arguments) for arguments in _ARGUMENTS_TEXTS):
            continue
        return CallFeatures(
            as_objects,
            null_content,
            several=shows([_USER, _answer(content, as_objects, _NAME, _OTHER_NAME)], _NAME, _OTHER_NAME),
            beside_text=shows([_USER, _answer(_TEXT, as_objects, _NAME)], _NAME, _TEXT),
        )
    return None


def _ways() -> Iterator[tuple[bool, bool]]:
    """Ways to pass calls, the usual one first: whether arguments are objects, and whether the content is null."""
    return ((as_objects, null_content) for as_objects in (True, False) for null_content in (False, True))


def _answer(content: str | None, as_objects: bool, *names: str) -> dict[str, Any]:
    arguments = _ARGUMENTS if as_objects else _ARGUMENTS_TEXTS[0]
    calls = [
        {"id": f"call{index:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, name in enumerate(names)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _asked(calls: CallFeatures | None) -> list[dict[str, Any]]:
    """The answer before a tool's result."""
    if calls is None:
        return [{"role": "assistant", "content": _TEXT}]
    return [_answer(None if calls.null_content else "", calls.as_objects, _NAME)]
