"""The tools of a chat completions request, and which of them may or must be called."""

from typing import Any, Literal

import msgspec

from cluster.settings import LimitSettings
from deployments.api.protocol.common import Name, check_tool_name, schema_text
from deployments.common.errors import invalid_request
from deployments.common.types import Tool, ToolChoice


class FunctionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call. strict: its arguments are constrained to the parameters' schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool. Only functions are supported."""

    function: FunctionSpec
    type: Literal["function"] = "function"


class FunctionName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function by its name."""

    name: str


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool by its name."""

    function: FunctionName
    type: Literal["function"] = "function"


class AllowedTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tools that may be called, or of which one must be."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ToolSelection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tool that must be called, or those that may be."""

    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None
    type: Literal["function", "allowed_tools"] = "function"


ChatToolChoice = Literal["none", "auto", "required"] | ToolSelection


def tools_of(tools: list[ChatTool] | None, choice: ChatToolChoice | None, limits: LimitSettings) -> tuple[Tool, ...]:
    """The tools that the model is shown: of those that the request allows. Raises ApiError 400."""
    all_tools = tuple(_tool(tool.function, limits) for tool in tools or ())
    if not isinstance(choice, ToolSelection) or choice.type != "allowed_tools":
        return all_tools
    if choice.allowed_tools is None or not choice.allowed_tools.tools:
        raise invalid_request("tool_choice", "tool_choice allowed_tools requires a list of tools.")
    names = {tool.function.name for tool in choice.allowed_tools.tools}
    for name in names:
        check_tool_name(name, all_tools)
    return tuple(tool for tool in all_tools if tool.name in names)


def tool_choice_of(choice: ChatToolChoice | None, tools: tuple[Tool, ...], parallel: bool | None) -> ToolChoice:
    """Whether tools may or must be called. parallel: whether several at a time. Raises ApiError 400."""
    several = parallel is not False
    if choice is None:
        return ToolChoice("auto" if tools else "none", parallel=several)
    if not tools and choice != "none":
        raise invalid_request("tool_choice", "tool_choice requires tools.")
    if isinstance(choice, str):
        return ToolChoice(choice, parallel=several)
    if choice.allowed_tools is not None and choice.type == "allowed_tools":
        return ToolChoice(choice.allowed_tools.mode, parallel=several)
    if choice.function is None:
        raise invalid_request("tool_choice", "tool_choice requires the function's name.")
    check_tool_name(choice.function.name, tools)
    return ToolChoice("required", choice.function.name, parallel=False)


def _tool(function: FunctionSpec, limits: LimitSettings) -> Tool:
    parameters = schema_text(function.parameters or {"type": "object", "properties": {}}, "tools", limits)
    return Tool(function.name, function.description or "", parameters, bool(function.strict))
