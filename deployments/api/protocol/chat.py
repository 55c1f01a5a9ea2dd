"""POST /v1/chat/completions: OpenAI's request, with the additions of DeepSeek, llama-server and vLLM."""

from typing import Annotated, Any, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.answer_format import (
    Choices,
    ResponseFormat,
    SchemaParam,
    StructuredOutputs,
    answer_format,
)
from deployments.api.protocol.chat_messages import ChatMessage, answer_to_continue, check_continuation
from deployments.api.protocol.chat_tools import ChatTool, ChatToolChoice, tool_choice_of, tools_of
from deployments.api.protocol.common import (
    Count,
    Effort,
    LogitBias,
    MaxTokens,
    Natural,
    Penalty,
    Probability,
    Seed,
    StopToken,
    StreamOptions,
    TopLogprobs,
    check_count,
    check_logit_bias,
    check_stop,
    max_tokens_of,
    sampling_for,
    stop_strings,
    template_arguments,
    thinking_limit,
    with_logprobs,
)
from deployments.api.protocol.parsing import parse
from deployments.api.protocol.token_reports import PromptAlternatives, check_token_fields, with_token_fields
from deployments.common.errors import invalid_request
from deployments.common.types import GenerationRequest, Message


class ThinkingSwitch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the model thinks, as DeepSeek's API has it."""

    type: Literal["enabled", "disabled", "auto"]


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions. Unknown fields are refused by name."""

    model: str
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
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
    stop_token_ids: list[StopToken] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    n: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    prompt_logprobs: PromptAlternatives | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    logit_bias: LogitBias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: list[ChatTool] | None = None
    tool_choice: ChatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    max_thinking_tokens: Natural | None = None
    include_reasoning: bool | None = None
    # Other servers' names for the fields above.
    enable_thinking: bool | None = None
    thinking: ThinkingSwitch | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaParam | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # Accepted without effect on the answer, as OpenAI does for models that lack them.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    prediction: dict[str, Any] | None = None
    # Not supported: accepted only with the value that requests nothing.
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    web_search_options: None = None
    functions: None = None
    function_call: None = None

    @property
    def asks_thinking(self) -> bool:
        """Whether a field that the template does not get asks for thinking."""
        return self.enable_thinking is True or (self.thinking is not None and self.thinking.type == "enabled")


decode = msgspec.json.Decoder(ChatRequest)


def read_chat(body: bytes, limits: LimitSettings) -> ChatRequest:
    """Decodes a body and checks it against the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    check_count(len(request.messages), limits.messages, "messages")
    check_count(len(request.tools or ()), limits.tools, "tools")
    check_stop(request.stop, limits, "stop")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise invalid_request("max_tokens", "Send max_completion_tokens or max_tokens, not both.")
    if request.stream_options is not None and not request.stream:
        raise invalid_request("stream_options", "stream_options requires stream: true.")
    if (request.n or 1) > limits.choices:
        raise invalid_request("n", f"n is {request.n}; the maximum is {limits.choices}.")
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid_request("top_logprobs", "top_logprobs requires logprobs: true.")
    check_logit_bias(request.logit_bias)
    check_token_fields(request)
    return request


def chat_generation(request: ChatRequest, model: ServedModel, limits: LimitSettings) -> GenerationRequest:
    """The request in the form that all APIs share. Raises ApiError 400 that names the field."""
    messages = [message.to_message() for message in request.messages]
    continued = False
    if request.continue_final_message:
        messages, continued = _begun_answer(request, messages)
    if not any(message.content.strip() for message in messages):
        raise invalid_request("messages", "All messages are empty; at least one needs text.", code="empty_prompt")
    effort = _effort(request)
    newer = request.max_completion_tokens is not None
    max_tokens = max_tokens_of(
        request.max_completion_tokens if newer else request.max_tokens,
        "max_completion_tokens" if newer else "max_tokens",
    )
    sampling = sampling_for(model, limits, max_tokens, request)
    tools = tools_of(request.tools, request.tool_choice, limits)
    answer = answer_format(request, limits)
    choice = tool_choice_of(request.tool_choice, tools, request.parallel_tool_calls)
    if answer.constraint is not None and choice.mode != "none":
        message = f"{answer.field} cannot be combined with tools; set tool_choice to none, or send a JSON Schema."
        raise invalid_request(answer.field, message)
    generation = GenerationRequest(
        messages=tuple(messages),
        sampling=with_logprobs(sampling, (request.top_logprobs or 0) if request.logprobs else None),
        tools=tools,
        tool_choice=choice,
        schema=answer.schema,
        template_args=template_arguments(request.chat_template_kwargs, effort, limits),
        stop=stop_strings(request.stop),
        num_choices=request.n or 1,
        max_thinking_tokens=thinking_limit(effort, request.max_thinking_tokens),
        strict_schema=answer.strict,
        constraint=answer.constraint,
        continue_final_message=continued,
        add_generation_prompt=bool(request.continue_final_message) or request.add_generation_prompt is not False,
    )
    check_continuation(generation)
    return with_token_fields(generation, request)


def _begun_answer(request: ChatRequest, messages: list[Message]) -> tuple[list[Message], bool]:
    """As `answer_to_continue`, for a request that wants it."""
    if request.add_generation_prompt:
        message = "add_generation_prompt opens a new answer, so it excludes continue_final_message: send only one."
        raise invalid_request("continue_final_message", message)
    if messages[-1].role != "assistant":
        message = "continue_final_message continues an answer, but the last message's role is not assistant."
        raise invalid_request("continue_final_message", message)
    return answer_to_continue(messages)


def _effort(request: ChatRequest) -> str | None:
    """The reasoning effort, by whichever name the request has it."""
    off = request.enable_thinking is False or (request.thinking is not None and request.thinking.type == "disabled")
    return "none" if off and request.reasoning_effort is None else request.reasoning_effort
