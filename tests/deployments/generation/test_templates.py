"""Prompts by the templates of model families, written out: tool calls, results, thinking and systems in the history.

templates/r1.jinja is the R1 distills' own, as its tokenizer brings it; r1_thinking.jinja is the newer one, which opens
the thinking. The others follow the documentation of their models. Texts and token ids are those of transformers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from deployments.common.errors import ApiError
from deployments.common.messages import Sampling
from deployments.common.types import GenerationRequest, Message, Tool, ToolCall
from deployments.generation.prompts import PromptRenderer
from tests.models.vocabularies import byte_fallback, byte_level, copied, model_with, opened, real_folder

TEMPLATES = Path(__file__).with_name("templates")
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
RESULTS, END_RESULTS = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
WEATHER_CALL = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "北京"}\n```<｜tool▁call▁end｜>'
SUNNY = "<｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜>"
SPECIAL = {
    "r1": [BOS, "<｜User｜>", "<｜Assistant｜>", EOS],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "phi3": ["<|system|>", "<|user|>", "<|end|>", "<|assistant|>", "<|endoftext|>"],
    "tinyllama": ["<s>", "</s>"],
}
NAMES = {
    "r1": {"bos_token": BOS, "eos_token": EOS},
    "qwen3": {"eos_token": "<|im_end|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "phi3": {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    "tinyllama": {"bos_token": "<s>", "eos_token": "</s>"},
}


def user(text: str) -> Message:
    return Message("user", text)


def calling(*arguments: str, text: str = "") -> Message:
    """An answer that calls `weather`, and then `time`."""
    names = ("weather", "time")
    calls = tuple(ToolCall(f"call_{name}", name, each) for name, each in zip(names, arguments, strict=False))
    return Message("assistant", text, tool_calls=calls)


BEIJING = '{"city": "北京"}'
RAIN = (user("Rain?"), calling(BEIJING), Message("tool", "sunny", tool_call_id="call_weather"))
BOTH = (user("Rain?"), calling(BEIJING, "{}"), Message("tool", "sunny"), Message("tool", "noon"))
THOUGHT = (user("1+1?"), Message("assistant", "<think>\nhm\n</think>\n\n2"), user("And?"))
SYSTEMS = (Message("system", "One."), Message("system", "Two."), user("Hi"))
R1: dict[str, tuple[tuple[Message, ...], str]] = {
    "plain": ((Message("system", "Be brief."), user("你好 🐰")), f"{BOS}Be brief.<｜User｜>你好 🐰<｜Assistant｜>"),
    # The template shows the last system message only.
    "systems": (SYSTEMS, f"{BOS}One.\n\nTwo.<｜User｜>Hi<｜Assistant｜>"),
    "thinking": (THOUGHT, f"{BOS}<｜User｜>1+1?<｜Assistant｜>\n\n2{EOS}<｜User｜>And?<｜Assistant｜>"),
    # After a result the model goes on by itself: neither its turn nor its thinking is opened.
    "call": (RAIN, f"{BOS}<｜User｜>Rain?<｜Assistant｜>{CALLS}{WEATHER_CALL}{RESULTS}{SUNNY}{END_RESULTS}"),
    "calls": (
        BOTH,
        f"{BOS}<｜User｜>Rain?<｜Assistant｜>{CALLS}{WEATHER_CALL}\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n"
        f"{{}}\n```<｜tool▁call▁end｜>{END_CALLS}{EOS}{RESULTS}{SUNNY}\n<｜tool▁output▁begin｜>noon<｜tool▁output▁end｜>"
        f"{END_RESULTS}",
    ),
    "answered": (
        (*RAIN, Message("assistant", "No."), user("Sure?")),
        f"{BOS}<｜User｜>Rain?<｜Assistant｜>{CALLS}{WEATHER_CALL}{RESULTS}{SUNNY}{END_RESULTS}No.{EOS}"
        "<｜User｜>Sure?<｜Assistant｜>",
    ),
    # The template shows the text or the calls of a message, and the calls only without any text.
    "beside text": (
        (user("Rain?"), calling(BEIJING, text="Let me look."), Message("tool", "sunny")),
        f"{BOS}<｜User｜>Rain?<｜Assistant｜>Let me look.{CALLS}{WEATHER_CALL}{END_CALLS}{EOS}{RESULTS}{SUNNY}"
        f"{END_RESULTS}",
    ),
    "after thinking": (
        (user("Rain?"), calling(BEIJING, text="<think>\nhm\n</think>\n\n"), Message("tool", "sunny")),
        f"{BOS}<｜User｜>Rain?<｜Assistant｜>{CALLS}{WEATHER_CALL}{RESULTS}{SUNNY}{END_RESULTS}",
    ),
    "no arguments": (
        (user("Rain?"), calling(""), Message("tool", "sunny")),
        f"{BOS}<｜User｜>Rain?<｜Assistant｜>{CALLS}<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n\n```"
        f"<｜tool▁call▁end｜>{RESULTS}{SUNNY}{END_RESULTS}",
    ),
    "broken arguments": (
        (user("Rain?"), calling('{"city'), Message("tool", "sunny"), user("And?")),
        f'{BOS}<｜User｜>Rain?<｜Assistant｜>{CALLS}<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{{"city\n```'
        f"<｜tool▁call▁end｜>{RESULTS}{SUNNY}<｜User｜>And?<｜Assistant｜>",
    ),
    "nested arguments": (
        (user("Rain?"), calling('{"a":{"b":["\\"c\\"", null]}}'), Message("tool", "sunny")),
        f"{BOS}<｜User｜>Rain?<｜Assistant｜>{CALLS}<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f'{{"a":{{"b":["\\"c\\"", null]}}}}\n```<｜tool▁call▁end｜>{RESULTS}{SUNNY}{END_RESULTS}',
    ),
}
TODAY = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
HEAD, END_HEAD = "<|start_header_id|>", "<|end_header_id|>\n\n"
LLAMA_START = f"<|begin_of_text|>{HEAD}system{END_HEAD}{TODAY}<|eot_id|>{HEAD}user{END_HEAD}Rain?<|eot_id|>"
LLAMA_RESULT = f'{HEAD}ipython{END_HEAD}"sunny"<|eot_id|>'
QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'
OTHERS: dict[str, tuple[str, tuple[Message, ...], str]] = {
    "qwen3 systems": (
        "qwen3",
        SYSTEMS,
        "<|im_start|>system\nOne.<|im_end|>\n<|im_start|>system\nTwo.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "qwen3 thinking": (
        "qwen3",
        THOUGHT,
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "qwen3 calls": (
        "qwen3",
        BOTH,
        f"<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n{QWEN_CALL}\n<tool_call>\n"
        '{"name": "time", "arguments": {}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n'
        "</tool_response>\n<tool_response>\nnoon\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3 calls after thinking": (
        "qwen3",
        (user("Rain?"), calling(BEIJING, text="<think>\nhm\n</think>\n\nLook."), Message("tool", "sunny")),
        f"<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nLook.\n{QWEN_CALL}"
        "<|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3 call": (
        "llama3",
        RAIN,
        f'{LLAMA_START}{HEAD}assistant{END_HEAD}{{"name": "weather", "parameters": {{"city": "北京"}}}}<|eot_id|>'
        f"{LLAMA_RESULT}{HEAD}assistant{END_HEAD}",
    ),
    # The template refuses several calls, and drops a text beside a call.
    "llama3 calls": (
        "llama3",
        (user("Rain?"), calling(BEIJING, "", text="Look: "), Message("tool", "sunny")),
        f'{LLAMA_START}{HEAD}assistant{END_HEAD}Look: {{"name": "weather", "parameters": {{"city": "北京"}}}}; '
        f'{{"name": "time", "parameters": {{}}}}<|eot_id|>{LLAMA_RESULT}{HEAD}assistant{END_HEAD}',
    ),
    "phi3 systems": (
        "phi3",
        SYSTEMS,
        "<|system|>\nOne.<|end|>\n<|system|>\nTwo.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n",
    ),
    # The template knows neither calls nor results.
    "phi3 call": (
        "phi3",
        RAIN,
        f"<|user|>\nRain?<|end|>\n<|assistant|>\n{QWEN_CALL}<|end|>\n<|user|>\n<tool_response>\nsunny\n"
        "</tool_response><|end|>\n<|assistant|>\n",
    ),
    "tinyllama systems": (
        "tinyllama",
        SYSTEMS,
        "<|system|>\nOne.</s>\n<|system|>\nTwo.</s>\n<|user|>\nHi</s>\n<|assistant|>\n",
    ),
}


def renderer_of(folder: Path, family: str, template: str) -> PromptRenderer:
    """A renderer with a small tokenizer of the family's kind, and the family's special tokens."""
    tokenizer = byte_fallback() if family in ("phi3", "tinyllama") else byte_level()
    # Phi-3's swallow the white space behind them.
    special = [AddedToken(text, rstrip=family == "phi3", normalized=False) for text in SPECIAL[family]]
    tokenizer.add_special_tokens(special)
    source = (TEMPLATES / f"{template}.jinja").read_text()
    return PromptRenderer(model_with(folder, tokenizer, source, **NAMES[family]))


@pytest.fixture(scope="module", params=["small", "real"])
def r1(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PromptRenderer]:
    """Renderers with both templates, and with the real tokenizer where there is one."""
    renderers = {}
    for name in ("r1", "r1_thinking"):
        folder = tmp_path_factory.mktemp(name)
        if request.param == "small":
            renderers[name] = renderer_of(folder, "r1", name)
            continue
        copied(real_folder("r1"), folder)
        (folder / "chat_template.jinja").write_text((TEMPLATES / f"{name}.jinja").read_text())
        renderers[name] = PromptRenderer(opened(folder))
    return renderers


def asked(*messages: Message, **fields: Any) -> GenerationRequest:
    return GenerationRequest(messages, Sampling(1), **fields)


def check_ids(renderer: PromptRenderer, request: GenerationRequest, expected: str) -> None:
    """The prompt has this text, and the tokens that the model's own tokenizer makes of it."""
    assert renderer.text(request) == expected
    file = Tokenizer.from_file(str(renderer.folder / "tokenizer.json"))
    assert renderer.render(request).ids == file.encode(expected, add_special_tokens=False).ids


@pytest.mark.parametrize("case", R1)
def test_r1s_prompts(r1: dict[str, PromptRenderer], case: str) -> None:
    messages, expected = R1[case]
    check_ids(r1["r1"], asked(*messages), expected)
    assert not r1["r1"].render(asked(*messages)).starts_in_thinking
    opens = expected.endswith("<｜Assistant｜>")
    check_ids(r1["r1_thinking"], asked(*messages), f"{expected}<think>\n" if opens else expected)
    thinking = r1["r1_thinking"].render(asked(*messages))
    assert thinking.starts_in_thinking == opens and thinking.may_think == (not opens)


@pytest.mark.parametrize("case", OTHERS)
def test_other_families_prompts(tmp_path: Path, case: str) -> None:
    family, messages, expected = OTHERS[case]
    check_ids(renderer_of(tmp_path, family, family), asked(*messages), expected)


def test_tools_in_qwen3s_prompt(tmp_path: Path) -> None:
    renderer = renderer_of(tmp_path, "qwen3", "qwen3")
    tools = (Tool("天气", "Says <the> weather", '{"type": "object", "properties": {"city": {"type": "string"}}}'),)
    expected = (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query."
        "\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "天气", "description": "Says <the> weather", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}}}}\n</tools>\n\nFor each function call, return '
        "a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n<|im_start|>user\nHi'
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    check_ids(renderer, asked(Message("system", "Be brief."), user("Hi"), tools=tools), expected)
    off = renderer.render(asked(user("Hi"), template_args='{"enable_thinking": false}'))
    assert renderer.decode(off.ids, special=True).endswith("assistant\n<think>\n\n</think>\n\n")
    assert not off.starts_in_thinking and not off.may_think


def test_thinking_that_a_template_shows_is_text(tmp_path: Path) -> None:
    renderer = renderer_of(tmp_path, "tinyllama", "tinyllama")
    assert renderer.text(asked(*THOUGHT)) == (
        "<|user|>\n1+1?</s>\n<|assistant|>\n<think>\nhm\n</think>\n\n2</s>\n<|user|>\nAnd?</s>\n<|assistant|>\n"
    )
    control = [token for token in renderer.render(asked(*THOUGHT)).ids if token in renderer.control.token_ids]
    assert control == [renderer.control.ids["</s>"]] * 3


def test_a_template_without_systems_has_them_in_the_first_question(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m.role }} {{ m.content }}{% endfor %}"
    )
    renderer = PromptRenderer(model_with(tmp_path, byte_level(), source))
    assert renderer.text(asked(*SYSTEMS)) == "<|im_start|>user One.\n\nTwo.\n\nHi"
    assert renderer.text(asked(*SYSTEMS[:2])) == "<|im_start|>user One.\n\nTwo.\n\n"


@pytest.mark.parametrize("family", [*SPECIAL, "r1_thinking"])
def test_ids_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """`apply_chat_template` over the same files, on texts with all that a text can have but control tokens."""
    name = family.removesuffix("_thinking")
    renderer = renderer_of(tmp_path, name, family)
    source = (TEMPLATES / f"{family}.jinja").read_text()
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=source, **NAMES[name]
    )
    texts = (
        " 你好 👩‍👩‍👧 e\u0301\n\n",
        "if a < b | c > d:\n\treturn '<｜'\n",
        "\x00\u2028 <",
        "  two  spaces ",
        "ﬁ １２",
    )
    for first in texts:
        for second in texts:
            messages = (Message("system", first), user(second), Message("assistant", first), user(second + first))
            plain = [{"role": message.role, "content": message.content} for message in messages]
            expected = reference.apply_chat_template(
                plain, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            assert renderer.render(asked(*messages)).ids == expected, (first, second)


OPEN_ENDS = {
    "r1": f"{BOS}<｜User｜>1+1?<｜Assistant｜>",
    # The thinking is over, whether the template shows an empty one or none.
    "r1_thinking": f"{BOS}<｜User｜>1+1?<｜Assistant｜>",
    "qwen3": "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "phi3": "<|user|>\n1+1?<|end|>\n<|assistant|>\n",
    "tinyllama": "<|user|>\n1+1?</s>\n<|assistant|>\n",
}


@pytest.mark.parametrize("text", ["The sum is", "Two < spaces  ", "Tags: <|im_end|></s><｜end▁of▁sentence｜><"])
@pytest.mark.parametrize("family", OPEN_ENDS)
def test_an_answer_that_has_begun_is_continued(tmp_path: Path, family: str, text: str) -> None:
    renderer = renderer_of(tmp_path, family.removesuffix("_thinking"), family)
    messages = (user("1+1?"), Message("assistant", text))
    request = asked(*messages, continue_final_message=True)
    assert renderer.text(request) == OPEN_ENDS[family] + text
    prompt = renderer.render(request)
    assert not prompt.starts_in_thinking and not prompt.may_think
    # The template's own control tokens, and none of the client's.
    opening = renderer.render(asked(*messages[:-1], Message("assistant", "x"), continue_final_message=True)).ids
    control = [[token for token in ids if token in renderer.control.token_ids] for ids in (opening, prompt.ids)]
    assert control[0] == control[1]


def test_a_template_that_hides_the_last_message_cannot_continue_it(tmp_path: Path) -> None:
    source = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}{% endfor %}"
    renderer = PromptRenderer(model_with(tmp_path, byte_level(), source))
    with pytest.raises(ApiError, match="does not show the last message"):
        renderer.text(asked(user("Hi"), Message("assistant", "Well"), continue_final_message=True))


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_a_continuation_keeps_its_first_space(tmp_path: Path, kind: Callable[[], Tokenizer]) -> None:
    source = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}<|im_start|>"
    renderer = PromptRenderer(model_with(tmp_path, kind(), source))
    whole = "好, how many of each are there?"
    ids = renderer.encode(whole)
    cuts = [
        (begun, cut) for cut in range(1, len(ids)) if renderer.encode(begun := renderer.decode(ids[:cut])) == ids[:cut]
    ]
    assert any(whole.startswith(f"{begun} ") for begun, _ in cuts)
    for begun, cut in cuts:
        continued = asked(user("?"), Message("assistant", begun), continue_final_message=True)
        raw = GenerationRequest((), Sampling(9), begun)
        for request in (continued, raw):
            parser = renderer.parser(request, renderer.render(request))
            parser.feed(ids[cut:])
            parser.finish("stop")
            assert begun + parser.text == whole


def test_r1_goes_on_in_the_answer_and_not_in_the_thinking(r1: dict[str, PromptRenderer]) -> None:
    messages = (user("1+1?"), Message("assistant", "<think>\nhm\n</think>\n\nThe sum is", "hm"))
    for name in ("r1", "r1_thinking"):
        request = asked(*messages, continue_final_message=True)
        check_ids(r1[name], request, f"{BOS}<｜User｜>1+1?<｜Assistant｜>\n\nThe sum is")
        parser = r1[name].parser(request, r1[name].render(request))
        parser.feed(r1[name].encode(" 2."))
        parser.finish("stop")
        assert (parser.reasoning, parser.text) == ("", " 2.")
