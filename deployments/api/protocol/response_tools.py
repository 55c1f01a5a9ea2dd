"""The tools of the Responses API: functions, and functions in namespaces. Others cannot run here."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.settings import LimitSettings
from deployments.api.protocol.common import check_count, schema_text
from deployments.api.protocol.parsing import OfManyTypes
from deployments.common.errors import invalid_request, shortened
from deployments.common.types import Tool, ToolChoice

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_MAX_NAME = 64
_CHOICES = ("function", "allowed_tools")
"""Types of choices that can be made here."""


class NamespacedTool(OfManyTypes, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A tool that the model may call: a `function`. Tools of other types run only at OpenAI's, and are left out.
    strict: its arguments are constrained to the parameters' schema."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @staticmethod
    def has_own_fields(kind: str | None) -> bool:
        return kind not in ("function", "namespace")

    def described(self) -> dict[str, Any]:
        """The tool as responses repeat it."""
        shown: dict[str, Any] = {"type": self.type, "name": self.name, "description": self.description}
        return shown | {"parameters": self.parameters, "strict": self.strict}


class ResponseTool(NamespacedTool, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A tool that the model may call, or a `namespace` with several."""

    tools: list[NamespacedTool] | None = None

    def described(self) -> dict[str, Any]:
        if self.type != "namespace":
            return NamespacedTool.described(self)
        tools = [tool.described() for tool in self.tools or ()]
        return {"type": self.type, "name": self.name, "description": self.description, "tools": tools}


class ResponseToolChoice(OfManyTypes, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A function that must be called (`function`), or the tools that may be (`allowed_tools`)."""

    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None

    @staticmethod
    def has_own_fields(kind: str | None) -> bool:
        return kind not in _CHOICES


Choice = Literal["none", "auto", "required"] | ResponseToolChoice


@dataclass(frozen=True, slots=True)
class Function:
    """A function as the model knows it. key: the name in the prompt, which no two functions share. namespace: empty
    for a function outside of one."""

    key: str
    namespace: str
    tool: NamespacedTool

    @property
    def name(self) -> str:
        return self.tool.name or ""


def functions_of(tools: Sequence[ResponseTool]) -> list[Function]:
    """All functions, also those in namespaces; of one that is there again, the last. A name that several have is
    preceded by the namespace."""
    found = {(namespace, tool.name or ""): tool for namespace, tool in _members(tools) if tool.type == "function"}
    uses = Counter(name for _, name in found)
    functions = []
    for (namespace, name), tool in found.items():
        if namespace and uses[name] > 1:
            name = f"{namespace}__{name}"[-_MAX_NAME:]
        functions.append(Function(name, namespace, tool))
    return functions


def skipped_tools(tools: Sequence[ResponseTool], choice: Choice | None) -> list[str]:
    """What of the tools and the choice cannot be done here, as fields of the request."""
    skipped = [f"tools.{tool.type}" for _, tool in _members(tools) if tool.type != "function"]
    if isinstance(choice, ResponseToolChoice) and taken_choice(choice) != choice:
        skipped.append(f"tool_choice.{choice.type}")
    return skipped


def taken_choice(choice: Choice | None) -> Choice:
    """The choice that counts: none of a tool that cannot be used here."""
    forced = isinstance(choice, ResponseToolChoice) and choice.type not in _CHOICES
    return "auto" if choice is None or forced else choice


def tools_of(functions: Sequence[Function], limits: LimitSettings) -> tuple[Tool, ...]:
    """The functions in the form that all APIs share. Raises ApiError 400 for a name that none may have, and for too
    many."""
    check_count(len(functions), limits.tools, "tools")
    return tuple(_tool(function, limits) for function in functions)


def choice_of(
    choice: Choice | None, functions: Sequence[Function], tools: tuple[Tool, ...], parallel: bool
) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that may be called, and whether they must be. Raises ApiError 400 for a choice of none of them."""
    if isinstance(choice, ResponseToolChoice) and choice.type == "allowed_tools":
        allowed = {(str(tool.get("namespace") or ""), str(tool.get("name"))) for tool in choice.tools or ()}
        kept = {function.key for function in functions if (function.namespace, function.name) in allowed}
        tools = tuple(tool for tool in tools if tool.name in kept)
        return choice_of(choice.mode or "auto", functions, tools, parallel)
    if isinstance(choice, ResponseToolChoice) and choice.type == "function":
        wanted = (choice.namespace, choice.name)
        key = next((each.key for each in functions if (choice.namespace and each.namespace, each.name) == wanted), None)
        if key is None:
            message = f"tool_choice names '{shortened(choice.name or '')}', which is not among the tools."
            raise invalid_request("tool_choice", message)
        return tools, ToolChoice("required", key, parallel=False)
    mode = choice if isinstance(choice, str) else "auto"
    if mode == "required" and not tools:
        raise invalid_request("tool_choice", "tool_choice requires tools, and functions among them.")
    return tools, ToolChoice(mode if tools else "none", parallel=parallel)


def _members(tools: Sequence[ResponseTool]) -> Iterator[tuple[str, NamespacedTool]]:
    """The tools, and those of namespaces in their place. Namespaces do not contain others."""
    for tool in tools:
        if tool.type == "namespace":
            yield from ((tool.name or "namespace", member) for member in tool.tools or ())
        else:
            yield "", tool


def _tool(function: Function, limits: LimitSettings) -> Tool:
    tool = function.tool
    if not _NAME.fullmatch(function.name):
        message = f"'{shortened(function.name)}' is no name of a function: it needs 1 to 64 letters, digits, _, . or -."
        raise invalid_request("tools", message)
    parameters = schema_text(tool.parameters or {"type": "object", "properties": {}}, "tools", limits)
    # OpenAI's default here is strict; but a schema that no grammar can enforce is refused then, so it must be explicit.
    return Tool(function.key, tool.description or "", parameters, tool.strict is True)
