"""Tool calls in streamed text: each family's format, however the text is cut."""

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.common.types import Tool, ToolCall
from deployments.generation.tool_formats import HERMES, LLAMA, PHI, R1, CallSyntax, ToolFormat, tool_format_of
from deployments.generation.tool_parser import JsonScanner, ToolCallParser

# A format that Dray does not ship: everything that the parser knows of a format is in its ToolFormat.
ADDED = ToolFormat(
    name="added",
    opens="[CALLS]",
    closes="</CALLS>",
    begin="[CALLS]",
    between=", ",
    end="</CALLS>",
    before="!",
    middle="[ARGS]",
    after="",
    bare=True,
    syntax=CallSyntax("!", re.compile(r"!([^\[]++)\[ARGS\](?=\{)"), re.compile("")),
)
FAMILIES = (HERMES, LLAMA, PHI, R1, ADDED)
ARGUMENTS = ['{"city": "北京", "days": [1, {"x": "}\\"{"}]}', "{}", '{"a": "</tool_call>"}']


def read(family: ToolFormat, text: str, cut: int) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls (name, arguments) of an answer that arrives in pieces of `cut` characters; checks the deltas."""
    parser = ToolCallParser(family)
    parts = [parser.feed(text[start : start + cut]) for start in range(0, len(text), cut)]
    parts.append(parser.feed("", last=True))
    streamed: dict[int, list[str]] = {}
    for _, deltas in parts:
        for delta in deltas:
            if delta.id:
                assert delta.index == len(streamed) and delta.id.startswith("call_") and delta.name
                streamed[delta.index] = [delta.name, ""]
            streamed[delta.index][1] += delta.arguments
    calls = [(call.name, call.arguments) for call in parser.calls]
    assert [tuple(call) for call in streamed.values()] == calls
    assert len({call.id for call in parser.calls}) == len(calls)
    return "".join(text for text, _ in parts), calls


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 10**6])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_a_family_writes_is_parsed_back(family: ToolFormat, cut: int) -> None:
    calls = [ToolCall("x", f"tool_{n}", arguments) for n, arguments in enumerate(ARGUMENTS)]
    text, read_calls = read(family, family.write(calls), cut)
    assert (text.strip(), read_calls) == ("", [(call.name, call.arguments) for call in calls])


@pytest.mark.parametrize("cut", [1, 4, 10**6])
@pytest.mark.parametrize("family", [HERMES, PHI, R1], ids=lambda family: family.name)
def test_text_around_calls_stays(family: ToolFormat, cut: int) -> None:
    written = family.write([ToolCall("x", "f", '{"n": 1}')])
    text, calls = read(family, f"Let me see. {written} Done.", cut)
    assert text.split() == ["Let", "me", "see.", "Done."] and calls == [("f", '{"n": 1}')]


@pytest.mark.parametrize("cut", [1, 5, 10**6])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "a < b <tool",
        '{"answer": 42}',
        '{"name": 3}',
        "{not json}",
        "<|tool",
        "```json\n{}\n```",
        "{",
        " \n",
    ],
)
def test_text_that_is_not_a_call_stays_text(family: ToolFormat, text: str, cut: int) -> None:
    assert read(family, text, cut) == (text, [])


@pytest.mark.parametrize("cut", [1, 3, 10**6])
def test_variants_of_the_same_call(cut: int) -> None:
    for text, expected in (
        ('<tool_call>{"arguments": {"n": 1}, "name": "f"}</tool_call>', [("f", '{"n": 1}')]),
        ('<tool_call>\n{"name":"f","arguments":"{\\"n\\": 1}"}\n</tool_call>', [("f", '{"n": 1}')]),
        ('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
        (
            '<tool_call>{"name": "f", "arguments": {}}<tool_call>{"name": "g", "arguments": {}}',
            [("f", "{}"), ("g", "{}")],
        ),
    ):
        rest, calls = read(HERMES, text, cut)
        assert calls == expected and not rest.strip()
    assert read(LLAMA, '<|python_tag|>{"name": "f", "parameters": {"n": 1}}', cut) == ("", [("f", '{"n": 1}')])


def test_a_call_that_is_cut_off_keeps_its_beginning() -> None:
    rest, calls = read(HERMES, '<tool_call>\n{"name": "f", "arguments": {"city": "Bei', 4)
    assert (rest, calls) == ("", [("f", '{"city": "Bei')])
    rest, calls = read(HERMES, '<tool_call>\n{"name": "f', 4)
    assert calls == [] and '{"name": "f' in rest


@pytest.mark.parametrize("step", [1, 7, 10**6])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_call_that_the_limit_cuts_leaves_no_marks(family: ToolFormat, step: int) -> None:
    """However much of the call there is, no part of it is text; what came before it is."""
    text = family.write([ToolCall("", "weather", '{"city": "北京"}')])
    before = "" if family is LLAMA else "Let me look. "
    for size in range(len(text)):
        parser, out = ToolCallParser(family), ""
        written = before + text[:size]
        for start in range(0, len(written), step):
            out += parser.feed(written[start : start + step])[0]
        out += parser.feed("", last=True, cut=True)[0]
        # Llama's calls have no mark; before the first key it may still be an answer in JSON.
        assert out.strip() == (text[:size] if family is LLAMA and size < len('{"name"') else before.strip()), size
        assert len(parser.calls) <= 1 and all(call.name == "weather" for call in parser.calls)
    parser = ToolCallParser(LLAMA)
    assert parser.feed('{"answer": 4', last=True, cut=True) == ('{"answer": 4', ())


def test_families_are_recognized_by_their_templates() -> None:
    assert tool_format_of("{{ '<tool_call>' }}") is HERMES
    assert tool_format_of("... <｜tool▁calls▁begin｜> ...") is R1
    assert tool_format_of("{% if 'ipython' %}") is LLAMA
    assert tool_format_of("<|tool|>") is PHI
    assert tool_format_of("{{ messages }}") is HERMES


def test_a_call_that_follows_the_instruction_is_parsed() -> None:
    tools = (Tool("weather", "What the weather is", '{"type": "object"}'),)
    for family in FAMILIES:
        instruction = family.instruct(tools)
        assert "weather" in instruction and "What the weather is" in instruction
        pattern = instruction.split("nothing but\n")[1].split("\nwhere ARGUMENTS")[0]
        written = pattern.replace("NAME", "weather").replace("ARGUMENTS", '{"city": 1}')
        assert read(family, written, 5) == ("", [("weather", '{"city": 1}')])


PIECES = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<|tool_call|>",
        "<|python_tag|>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
    ),
    *(
        "function<｜tool▁sep｜>",
        "\n```json\n",
        "```<｜tool▁call▁end｜>",
        '{"name": ',
        '"f"',
        ', "arguments": ',
        "{",
        "}",
    ),
    *('"\\ud800"', '"\\x"', '"a\nb"', '"a": ', "[", "]", "1" * 5000, "NaN", "null", "3", " ", "\\", "鸡", "[" * 2000),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FAMILIES), st.lists(st.sampled_from(PIECES), max_size=9).map("".join), st.integers(1, 9))
def test_whatever_a_model_writes_can_be_sent(family: ToolFormat, text: str, cut: int) -> None:
    rest, calls = read(family, text, cut)
    msgspec.json.encode([rest, calls])


@pytest.mark.parametrize("name", ['"\\ud800"', '"a\nb"', '"\\x"'])
@pytest.mark.parametrize("family", [HERMES, LLAMA, PHI], ids=lambda family: family.name)
def test_an_invalid_name_makes_no_call(family: ToolFormat, name: str) -> None:
    text = family.write([ToolCall("x", "f", '{"n": 1}')]).replace('"f"', name)
    rest, calls = read(family, text, 3)
    assert calls == [] and name in rest


def test_arguments_that_cannot_be_sent_stay_text() -> None:
    for arguments in ('"\\ud800"', '{"a": "\\ud800"}', "[" * 2000 + "]" * 2000):
        call = f'{{"arguments": {arguments}, "name": "f"}}'
        rest, calls = read(HERMES, f"<tool_call>{call}</tool_call>", 10**6)
        assert calls == [] and call in rest


@pytest.mark.parametrize("family", [HERMES, LLAMA, PHI], ids=lambda family: family.name)
def test_an_object_without_end_is_read_once(family: ToolFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from its start with each token: a long answer would take its router seconds."""
    read, scan = 0, JsonScanner.scan

    def counted(self: JsonScanner, text: str) -> int:
        nonlocal read
        read += len(text)
        return scan(self, text)

    monkeypatch.setattr(JsonScanner, "scan", counted)
    parser, text = ToolCallParser(family), family.opens + '{"arguments": {"a": "' + "x" * 5000
    for character in text:
        parser.feed(character)
    assert read <= 2 * len(text)
    out, _ = parser.feed('"}, "name": "f"}', last=True)
    assert [(call.name, len(call.arguments)) for call in parser.calls] == [("f", 5009)] and not out.strip()
