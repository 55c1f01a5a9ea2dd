"""POST /v1/chat/completions: OpenAI's shapes, with what DeepSeek, llama-server and vLLM have added to them."""

from typing import Annotated, Any, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.common import (
    Penalty,
    Probability,
    check_stop,
    reasoning_bound,
    sampling_for,
    schema_text,
    stop_strings,
    template_arguments,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import invalid_request
from deployments.common.messages import Sampling
from deployments.common.types import (
    GenerationRequest,
    Message,
    Tool,
    ToolCall,
    ToolChoice,
)

Count = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class TextPart(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """A content part. Only text is served."""

    text: str


class RefusalPart(msgspec.Struct, frozen=True, tag="refusal", tag_field="type"):
    """A part of an earlier answer that refused."""

    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Content = str | list[TextPart]


class FunctionCall(msgspec.Struct, frozen=True):
    """Which function an earlier answer called, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallParam(msgspec.Struct, frozen=True):
    """A call in an earlier answer."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class SystemMessage(msgspec.Struct, frozen=True, tag="system", tag_field="role"):
    """Instructions."""

    content: Content
    name: str | None = None

    def to_message(self) -> Message:
        return Message("system", text_of(self.content), name=self.name or "")


class DeveloperMessage(SystemMessage, frozen=True, tag="developer"):
    """Instructions, by OpenAI's newer name."""


class UserMessage(msgspec.Struct, frozen=True, tag="user", tag_field="role"):
    """What a person says."""

    content: Content
    name: str | None = None

    def to_message(self) -> Message:
        return Message("user", text_of(self.content), name=self.name or "")


class AssistantMessage(msgspec.Struct, frozen=True, tag="assistant", tag_field="role"):
    """An earlier answer. Its thinking is taken, and dropped where the chat template drops it."""

    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallParam] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    audio: None = None
    function_call: None = None

    def to_message(self) -> Message:
        return Message(
            "assistant",
            text_of(self.content) or self.refusal or "",
            self.reasoning_content or self.reasoning or "",
            tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ()),
            name=self.name or "",
        )


class ToolMessage(msgspec.Struct, frozen=True, tag="tool", tag_field="role"):
    """What a tool gave back."""

    content: Content
    tool_call_id: str

    def to_message(self) -> Message:
        return Message("tool", text_of(self.content), tool_call_id=self.tool_call_id)


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionSpec(msgspec.Struct, frozen=True):
    """A function that may be called; strict: its arguments are held to the parameters' schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool. Only functions are."""

    function: FunctionSpec
    type: Literal["function"] = "function"


class FunctionName(msgspec.Struct, frozen=True):
    """Which function."""

    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """The one tool that must be called."""

    function: FunctionName
    type: Literal["function"] = "function"


class TextFormat(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """Free text."""


class JsonFormat(msgspec.Struct, frozen=True, tag="json_object", tag_field="type"):
    """Any JSON object."""


class SchemaSpec(msgspec.Struct, frozen=True):
    """A named JSON Schema. The answer is held to it whether or not `strict` is set."""

    name: Name
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, frozen=True, tag="json_schema", tag_field="type"):
    """JSON that a schema allows."""

    json_schema: SchemaSpec


class StreamOptions(msgspec.Struct, frozen=True):
    """Whether a last chunk tells the usage. Obfuscation is padding that Dray never adds."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions. A name that is not here is refused by its name."""

    model: str
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    min_tokens: Natural | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=2)] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    n: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    max_thinking_tokens: Natural | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Taken and without effect, as for OpenAI's own models that lack them.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    prediction: dict[str, Any] | None = None
    # Taken at the value that asks for nothing.
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    web_search_options: None = None
    functions: None = None
    function_call: None = None


decode = msgspec.json.Decoder(ChatRequest)


def read_chat(body: bytes, limits: LimitSettings) -> ChatRequest:
    """The request in a body, within the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    if len(request.messages) > limits.messages:
        raise invalid_request(
            "messages",
            f"{len(request.messages)} messages; at most {limits.messages} are taken.",
            code="array_above_max_length",
        )
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise invalid_request(
            "max_tokens", "max_tokens and max_completion_tokens exclude each other; send max_completion_tokens."
        )
    if request.stream_options is not None and not request.stream:
        raise invalid_request("stream_options", "stream_options needs stream: true.")
    if len(request.tools or ()) > limits.tools:
        raise invalid_request("tools", f"At most {limits.tools} tools are taken.", code="array_above_max_length")
    check_stop(request.stop, limits, "stop")
    if (request.n or 1) > limits.choices:
        raise invalid_request("n", f"At most {limits.choices} choices are made for one request.")
    if (request.top_logprobs or 0) > 1:
        raise invalid_request(
            "top_logprobs", "The engine knows the chosen token's logprob only: top_logprobs is 0 or 1."
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid_request("top_logprobs", "top_logprobs needs logprobs: true.")
    if request.logit_bias:
        raise invalid_request("logit_bias", "The engine takes no logit_bias.", code="unsupported_parameter")
    return request


def chat_generation(request: ChatRequest, model: ServedModel, limits: LimitSettings) -> GenerationRequest:
    """What the request asks. Raises ApiError 400 that names the field."""
    turns = tuple(message.to_message() for message in request.messages)
    if not any(turn.content.strip() for turn in turns):
        raise invalid_request("messages", "The messages are empty: at least one needs text.", code="empty_prompt")
    wish = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    sampling: Sampling = sampling_for(model, limits, wish, request)
    tools = tuple(_tool(spec.function, limits) for spec in request.tools or ())
    return GenerationRequest(
        messages=turns,
        sampling=msgspec.structs.replace(sampling, logprobs=True) if request.logprobs else sampling,
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        schema=_schema(request, limits),
        template_args=template_arguments(request.chat_template_kwargs, request.reasoning_effort, limits),
        stop=stop_strings(request.stop),
        num_choices=request.n or 1,
        max_thinking_tokens=reasoning_bound(request.reasoning_effort, request.max_thinking_tokens),
    )


def text_of(content: "str | list[Any] | None") -> str:
    """The text of a message's content."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _tool(function: FunctionSpec, limits: LimitSettings) -> Tool:
    parameters = schema_text(function.parameters or {"type": "object", "properties": {}}, "tools", limits)
    return Tool(function.name, function.description or "", parameters, bool(function.strict))


def _tool_choice(request: ChatRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    chosen, parallel = request.tool_choice, request.parallel_tool_calls is not False
    if chosen is None:
        return ToolChoice("auto" if tools else "none", parallel=parallel)
    if not tools and chosen != "none":
        raise invalid_request("tool_choice", "tool_choice needs tools.")
    if isinstance(chosen, str):
        return ToolChoice(chosen, parallel=parallel)
    if chosen.function.name not in {tool.name for tool in tools}:
        raise invalid_request("tool_choice", f"No tool is named '{chosen.function.name}'.")
    return ToolChoice("required", chosen.function.name, parallel=False)


def _schema(request: ChatRequest, limits: LimitSettings) -> str:
    form = request.response_format
    if isinstance(form, JsonFormat):
        return '{"type":"object"}'
    if isinstance(form, SchemaFormat):
        return schema_text(form.json_schema.schema, "response_format", limits)
    return ""
