"""Text to ids and back: chat templates, whole characters, thinking, stop strings, logprobs."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError
from deployments.common.messages import Sampling, TokenLogprobs
from deployments.common.types import GenerationRequest, Message, Tool, ToolCall, ToolChoice
from deployments.generation.output_parser import OutputParser
from deployments.generation.prompts import PromptRenderer

Encode = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def prompts(bundled: ServedModel) -> PromptRenderer:
    return PromptRenderer(bundled)


@pytest.fixture(scope="module")
def encode(bundled: ServedModel) -> Encode:
    tokenizer = AutoTokenizer.from_pretrained(str(bundled.folder))
    return lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def request_of(*messages: Message, stop: tuple[str, ...] = (), **fields: Any) -> GenerationRequest:
    return GenerationRequest(messages or (Message("user", "hi"),), Sampling(9), stop=stop, **fields)


def parser_for(prompts: PromptRenderer, request: GenerationRequest) -> OutputParser:
    return prompts.parser(request, prompts.render(request))


def read(prompts: PromptRenderer, ids: list[int], stop: list[str] | None = None, cut: int = 10**6) -> OutputParser:
    """Parses a completion whose ids arrive in pieces of `cut`."""
    parser = parser_for(prompts, request_of(stop=tuple(stop or ())))
    pieces = [parser.feed(ids[start : start + cut]) for start in range(0, len(ids), cut)]
    pieces.append(parser.finish("stop"))
    assert "".join(piece.reasoning for piece in pieces) == parser.reasoning
    assert "".join(piece.text for piece in pieces) == parser.text
    return parser


def test_prompts_follow_the_models_own_template(prompts: PromptRenderer, bundled: ServedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(bundled.folder))
    messages = (
        Message("system", "Be brief."),
        Message("user", "1+1?"),
        Message("assistant", "<think>\nx\n</think>\n\n2", "x"),
        Message("user", "你好"),
    )
    prompt = prompts.render(request_of(*messages))
    text = tokenizer.decode(prompt.ids)
    assert prompt.starts_in_thinking and text.endswith("<think>\n")
    assert "Be brief." in text and "x" not in text.replace("<think>", "")
    assert text.count(tokenizer.bos_token) == 1


def test_a_prompt_that_fills_the_context_is_refused(prompts: PromptRenderer) -> None:
    with pytest.raises(ApiError) as refused:
        prompts.render(request_of(Message("user", "1 " * 5000)))
    assert refused.value.body.error.code == "context_length_exceeded"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(thinking=st.text(max_size=40), answer=st.text(max_size=40), cut=st.integers(1, 9))
def test_any_text_is_parsed_the_same_in_any_pieces(
    prompts: PromptRenderer, encode: Encode, thinking: str, answer: str, cut: int
) -> None:
    ids = encode(thinking + "</think>" + answer)
    whole, pieces = read(prompts, ids), read(prompts, ids, cut=cut)
    assert (whole.reasoning, whole.text) == (pieces.reasoning, pieces.text)
    assert whole.tokens == pieces.tokens == len(ids)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.text(alphabet="鸡兔23只😀🐰 abé\n", min_size=1, max_size=30))
def test_characters_are_whole(prompts: PromptRenderer, encode: Encode, answer: str) -> None:
    parser = parser_for(prompts, request_of())
    ids = encode("</think>" + answer)
    pieces = [parser.feed([token]).text for token in ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == answer.lstrip()


def test_thinking_is_separated_from_the_answer_and_counted(prompts: PromptRenderer, encode: Encode) -> None:
    ids = encode("想一想。\n</think>\n\n答案是42。")
    parser = read(prompts, ids, cut=1)
    assert (parser.reasoning, parser.text) == ("想一想。", "答案是42。")
    assert 0 < parser.reasoning_tokens < parser.tokens


def test_a_completion_cut_in_its_thinking_has_no_answer(prompts: PromptRenderer, encode: Encode) -> None:
    parser = read(prompts, encode("still thinking "))
    assert (parser.reasoning, parser.text) == ("still thinking", "")


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answer=st.text(alphabet="abc", max_size=30),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cut=st.integers(1, 5),
)
def test_stop_strings_cut_where_the_first_begins(
    prompts: PromptRenderer, encode: Encode, answer: str, stop: list[str], cut: int
) -> None:
    parser = read(prompts, encode("cab abc bca\n</think>\n\n") + encode(answer), stop, cut)
    indexes = [index for text in stop if (index := answer.find(text)) >= 0]
    # A stop string that a later piece completes may begin before another that is already complete.
    assert parser.stopped == bool(indexes)
    if not indexes:
        assert parser.text == answer
    else:
        assert answer.startswith(parser.text)
        assert all(text not in parser.text for text in stop)
    assert parser.reasoning == "cab abc bca"


def test_a_raw_prompt_and_its_completion_are_not_changed(prompts: PromptRenderer, encode: Encode) -> None:
    for raw in ("1+1=", tuple(encode("1+1="))):
        request = GenerationRequest((), Sampling(9), raw)
        prompt = prompts.render(request)
        assert prompt.ids == encode("1+1=") and not prompt.starts_in_thinking
        parser = prompts.parser(request, prompt)
        parser.feed(encode(" 2\n</think>\n"))
        parser.finish("stop")
        assert (parser.reasoning, parser.text) == ("", " 2\n</think>\n")
    for outside in ((-1,), (10**6,)):
        with pytest.raises(ApiError, match="vocabulary"):
            prompts.render(GenerationRequest((), Sampling(9), outside))


def test_tools_are_described_in_the_system_prompt_if_the_template_has_none(prompts: PromptRenderer) -> None:
    tools = (Tool("天气", "What the weather is", '{"type": "object"}'),)
    messages = (
        Message("system", "Be brief."),
        Message("user", "Is it raining?"),
        Message("assistant", "", tool_calls=(ToolCall("call_1", "天气", '{"city": "北京"}'),)),
        Message("tool", "sunny", tool_call_id="call_1"),
    )
    text = prompts.text(request_of(*messages, tools=tools))
    assert text.count("Be brief.") == 1 and "What the weather is" in text and "sunny" in text
    assert '<tool_call>\n{"name": "天气", "arguments": {"city": "北京"}}\n</tool_call>' in text
    without = prompts.text(request_of(*messages, tools=tools, tool_choice=ToolChoice("none")))
    assert "What the weather is" not in without


CALLS_TEMPLATE = """{% for message in messages %}{{ message.content }}{% for call in message.tool_calls or [] %}
{{ call.function.arguments | tojson }}{% endfor %}{{ 100 // size }}{% endfor %}"""


@pytest.fixture(scope="module")
def calling(bundled: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> PromptRenderer:
    """Renders prompts with a chat template that writes tool calls, and divides by an argument."""
    folder = tmp_path_factory.mktemp("model")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(bundled.folder / name, folder)
    (folder / "chat_template.jinja").write_text(CALLS_TEMPLATE)
    return PromptRenderer(dataclasses.replace(bundled, folder=folder))


@pytest.mark.parametrize(
    "arguments",
    ['{"a": "北京"}', "{", "", '"\\ud800"', '{"a": "\\udc00"}', "NaN", "1" * 5000, "[" * 900 + "]" * 900, "[" * 10**5],
    ids=["json", "open", "empty", "string", "surrogate", "nan", "digits", "deep", "deeper"],
)
def test_a_calls_arguments_may_be_any_text(calling: PromptRenderer, arguments: str) -> None:
    messages = (Message("user", "hi"), Message("assistant", "", tool_calls=(ToolCall("c", "f", arguments),)))
    try:
        prompt = calling.render(request_of(*messages, template_args='{"size": 100}'))
    except ApiError as error:
        assert error.status == 400 and error.body.error.param == "messages"
        assert len(arguments) > 1000, "only arguments that are too long or too deep are refused"
    else:
        text = calling.decode(prompt.ids)
        assert arguments in text or json.dumps(arguments) in text


@pytest.mark.parametrize("size", ["0", "null", '"a"', "[]", "{}"])
def test_messages_that_the_template_cannot_use_are_refused(calling: PromptRenderer, size: str) -> None:
    with pytest.raises(ApiError, match="chat template") as refused:
        calling.render(request_of(template_args=f'{{"size": {size}}}'))
    assert refused.value.status == 400


def test_logprobs_are_those_of_the_answers_tokens(prompts: PromptRenderer, encode: Encode) -> None:
    parser = parser_for(prompts, request_of())
    ids = encode("3</think>") + encode("鸡😀a")
    pieces = [
        parser.feed([token], [TokenLogprobs(-float(n), ((ids[-1], -0.5), (ids[0], -0.6)))])
        for n, token in enumerate(ids)
    ]
    tokens = [token for piece in pieces for token in piece.logprobs]
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == "鸡😀a"
    assert [token.logprob for token in tokens] == [-float(n) for n in range(len(ids) - len(tokens), len(ids))]
    assert parser.choice("stop").logprobs == tuple(tokens)
    for token in tokens:
        assert [(likely.text, likely.logprob) for likely in token.top] == [("a", -0.5), ("3", -0.6)]


@pytest.mark.parametrize("cut", [1, 2, 99])
@pytest.mark.parametrize("answer", ["🐰鸡a", "ab🐰", "鸡\n🐰", "ab"])
def test_no_token_of_the_answer_lacks_its_logprob(
    prompts: PromptRenderer, encode: Encode, answer: str, cut: int
) -> None:
    raw = GenerationRequest((), Sampling(9), "x")
    for parser, ids in (
        (parser_for(prompts, request_of()), encode("3</think>\n\n") + encode(answer)),
        (parser_for(prompts, request_of(stop=("🐰!", "abc"))), encode("3</think>\n\n") + encode(answer)),
        (prompts.parser(raw, prompts.render(raw)), encode(answer)),
    ):
        deltas = [parser.feed(ids[at : at + cut], [TokenLogprobs(-1.0)] * cut) for at in range(0, len(ids), cut)]
        deltas.append(parser.finish("stop"))
        assert bytes(byte for delta in deltas for token in delta.logprobs for byte in token.bytes).decode() == answer
