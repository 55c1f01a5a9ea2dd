"""POST /v1/responses: OpenAI's newer API."""

from typing import Annotated, Any, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.answer_format import JsonObjectFormat, TextFormat
from deployments.api.protocol.common import (
    Effort,
    LogitBias,
    MaxTokens,
    Name,
    Natural,
    Penalty,
    Probability,
    Seed,
    TopLogprobs,
    check_count,
    check_logit_bias,
    check_stop,
    max_tokens_of,
    sampling_for,
    schema_text,
    stop_strings,
    template_arguments,
    thinking_limit,
    with_logprobs,
)
from deployments.api.protocol.parsing import parse
from deployments.api.protocol.response_input import InputItem, conversation_of
from deployments.api.protocol.response_tools import (
    Choice,
    ResponseTool,
    choice_of,
    functions_of,
    skipped_tools,
    tools_of,
)
from deployments.common.errors import ApiError, ErrorBody, invalid_request
from deployments.common.types import GenerationRequest, Message


class ResponseSchemaFormat(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="json_schema", tag_field="type"
):
    """JSON that a schema allows. strict: a schema that cannot be enforced as a whole is refused."""

    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer's format."""

    format: TextFormat | JsonObjectFormat | ResponseSchemaFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much the model may think. Responses have the thinking itself, and no summaries."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/responses. Unknown fields are refused by name."""

    model: str
    input: str | Annotated[list[InputItem], msgspec.Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: TopLogprobs | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    # As chat completions have them; OpenAI's responses do not.
    min_tokens: Natural | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=2)] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    logit_bias: LogitBias | None = None
    max_thinking_tokens: Natural | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Accepted without effect on the answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    max_tool_calls: int | None = None
    client_metadata: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # Not supported: accepted only with the value that requests nothing.
    conversation: None = None
    prompt: None = None

    @property
    def reported_logprobs(self) -> int | None:
        """How many alternatives to report for each token; None: no log probabilities."""
        if self.top_logprobs or _LOGPROBS in (self.include or ()):
            return self.top_logprobs or 0
        return None

    @property
    def items(self) -> list[InputItem]:
        """The input; a text is a message of the user."""
        return [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    @property
    def all_tools(self) -> list[ResponseTool]:
        """The tools, and those that items of the input add."""
        return [*(self.tools or ()), *(tool for item in self.items for tool in item.tools or ())]

    @property
    def ignored(self) -> tuple[str, ...]:
        """What cannot be done here and is left out: tools, and items of the input, by their types."""
        items = (f"input.{item.type}" for item in self.items if not item.is_used)
        return tuple(dict.fromkeys([*skipped_tools(self.all_tools, self.tool_choice), *items]))


class ResponseCount(msgspec.Struct, frozen=True):
    """input_tokens: tokens of the prompt."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


decode = msgspec.json.Decoder(ResponseRequest)
_LOGPROBS = "message.output_text.logprobs"
"""What `include` lists for log probabilities; anything else in it has no effect."""
_PARAMS = {"messages": "input", "response_format": "text.format"}
"""This API's names of fields, by those that errors of the shared parts have."""


def read_response(body: bytes, limits: LimitSettings) -> ResponseRequest:
    """Decodes a body and checks it against the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    check_count(len(request.items), limits.messages, "input")
    check_count(len(request.tools or ()), limits.tools, "tools")
    check_stop(request.stop, limits, "stop")
    check_logit_bias(request.logit_bias)
    return request


def response_generation(request: ResponseRequest, model: ServedModel, limits: LimitSettings) -> GenerationRequest:
    """The request in the form that all APIs share. Raises ApiError 400 that names the field."""
    functions = functions_of(request.all_tools)
    names = {(function.namespace, function.name): function.key for function in functions}
    messages = [Message("system", request.instructions)] if request.instructions else []
    messages += conversation_of(request.items, names, request.model, limits)
    if not any(message.content.strip() for message in messages):
        raise invalid_request("input", "The input is empty; it needs text.", code="empty_prompt")
    parallel = request.parallel_tool_calls is not False
    tools, choice = choice_of(request.tool_choice, functions, tools_of(functions, limits), parallel)
    max_tokens = max_tokens_of(request.max_output_tokens, "max_output_tokens")
    effort = request.reasoning.effort if request.reasoning else None
    answer_format = request.text.format if request.text else None
    return GenerationRequest(
        messages=tuple(messages),
        sampling=with_logprobs(sampling_for(model, limits, max_tokens, request), request.reported_logprobs),
        tools=tools,
        tool_choice=choice,
        schema=_schema(request, limits),
        template_args=template_arguments(request.chat_template_kwargs, effort, limits),
        stop=stop_strings(request.stop),
        max_thinking_tokens=thinking_limit(effort, request.max_thinking_tokens),
        strict_schema=isinstance(answer_format, ResponseSchemaFormat) and answer_format.strict is True,
    )


def response_error(error: ApiError) -> ErrorBody:
    """The body of an error, with this API's names of fields."""
    detail = error.body.error
    return ErrorBody(msgspec.structs.replace(detail, param=_PARAMS.get(detail.param or "", detail.param)))


def _schema(request: ResponseRequest, limits: LimitSettings) -> str:
    answer_format = request.text.format if request.text else None
    if isinstance(answer_format, JsonObjectFormat):
        return schema_text(answer_format.schema or {"type": "object"}, "text.format", limits)
    if isinstance(answer_format, ResponseSchemaFormat):
        return schema_text(answer_format.schema, "text.format", limits)
    return ""
