"""Calls of tools as grammars: forced ones, those in free text, and those in place of an answer in a format."""

import json
from typing import Any

import jsonschema
import pytest
from tokenizers import Tokenizer

from deployments.common.errors import ApiError
from deployments.common.messages import Grammar, Sampling
from deployments.common.types import GenerationRequest, Message, Tool, ToolChoice
from deployments.engine.grammar import GrammarError
from deployments.generation.grammar import grammar_of
from deployments.generation.output_parser import Vocabulary
from deployments.generation.tool_formats import HERMES, LLAMA, MARKERS, PHI, R1, ToolFormat
from deployments.generation.tool_parser import ToolCallParser
from tests.deployments.grammars import Walker, add_tokens, bundled_with

MAX_PARTS = 1000
FAMILIES = (HERMES, LLAMA, PHI, R1)
NUMBER = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}'
TOOLS = (Tool("f", "", NUMBER, strict=True), Tool("查", "", '{"type": "object"}'))


@pytest.fixture(params=["no such tokens", "tokens", "special tokens"], scope="module")
def with_marks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Walker, dict[str, int]]:
    """A vocabulary in which the marks of tool formats are ordinary text, tokens, or special tokens; with the latter."""
    marks = [] if request.param == "no such tokens" else list(MARKERS)
    special = request.param == "special tokens"
    folder = bundled_with(
        tmp_path_factory.mktemp("marks"), lambda document: add_tokens(document, marks, special=special)
    )
    markers = Vocabulary(Tokenizer.from_file(str(folder / "tokenizer.json"))).special_markers
    assert len(markers) == (len(MARKERS) if special else 0)
    return Walker(folder, 2100, [1]), markers


def calls_of(family: ToolFormat, text: str) -> tuple[str, list[tuple[str, Any]]]:
    """The text outside of calls, and each call's name and arguments."""
    parser = ToolCallParser(family)
    rest, _ = parser.feed(text, last=True)
    return rest, [(call.name, json.loads(call.arguments)) for call in parser.calls]


def grammar_for(
    family: ToolFormat, special: dict[str, int], choice: ToolChoice, tools: tuple[Tool, ...] = TOOLS, schema: str = ""
) -> Grammar:
    request = GenerationRequest((Message("user", "hi"),), Sampling(9), tools=tools, tool_choice=choice, schema=schema)
    grammar = grammar_of(request, family, special, MAX_PARTS)
    assert grammar is not None
    return grammar


def check_call(name: str, arguments: Any) -> None:
    assert name in ("f", "查")
    jsonschema.validate(arguments, json.loads(NUMBER) if name == "f" else {"type": "object"})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_forced_calls_fit_their_schemas(family: ToolFormat, with_marks: tuple[Walker, dict[str, int]]) -> None:
    walker, special = with_marks
    for choice, max_calls in (
        (ToolChoice("required"), 16),
        (ToolChoice("required", parallel=False), 1),
        (ToolChoice("required", "f"), 1),
    ):
        grammar, whole = grammar_for(family, special, choice), 0
        for seed in range(6):
            text, ended = walker.walk(grammar, seed, 2000)
            if ended:
                whole += 1
                rest, calls = calls_of(family, text)
                assert not rest.strip() and 1 <= len(calls) <= max_calls, text
                for name, arguments in calls:
                    check_call(name, arguments)
                    assert name in (choice.name or name)
        assert whole >= 3


@pytest.mark.parametrize("family", [HERMES, PHI, R1], ids=lambda family: family.name)
def test_calls_in_free_text_fit_their_schemas(family: ToolFormat, with_marks: tuple[Walker, dict[str, int]]) -> None:
    walker, special = with_marks
    grammar = grammar_for(family, special, ToolChoice())
    opening = walker.encode(family.opens, special)
    for seed in range(4):
        matcher = walker.compiler.compile(grammar)
        matcher.consume(walker.encode("Let me see: 23 < 24. ", special))
        assert walker.stop_ids[0] in walker.allowed(matcher.mask()), "an answer without a call"
        matcher.consume(opening)
        assert walker.stop_ids[0] not in walker.allowed(matcher.mask())
        text, ended = walker.go_on(matcher, seed, 400)
        if ended or family.closes in text:
            _, calls = calls_of(family, family.opens + text)
            assert calls, text
            for name, arguments in calls:
                check_call(name, arguments)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_answer_in_a_format_may_be_a_call_instead(
    family: ToolFormat, with_marks: tuple[Walker, dict[str, int]]
) -> None:
    walker, special = with_marks
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    grammar = grammar_for(family, special, ToolChoice(), schema=json.dumps(schema))
    call, _ = TOOLS[0].name, TOOLS[0].parameters
    before, after = family.around(call)
    for text in ('{"sum": 5}', family.begin + before + '{"n": 3}' + after + family.end):
        matcher = walker.compiler.compile(grammar)
        matcher.consume(walker.encode(text, special))
        assert walker.stop_ids[0] in walker.allowed(matcher.mask()), text
    for text in ("hello", '{"sum": "5"}', family.begin + before + '{"n": 12}'):
        matcher = walker.compiler.compile(grammar)
        with pytest.raises(GrammarError):
            matcher.consume(walker.encode(text, special))


def test_tools_that_need_no_grammar_have_none() -> None:
    lax = (Tool("f", "", NUMBER),)
    for tools, choice in ((lax, ToolChoice()), (TOOLS, ToolChoice("none")), ((), ToolChoice("none"))):
        request = GenerationRequest((Message("user", "hi"),), Sampling(9), tools=tools, tool_choice=choice)
        assert grammar_of(request, HERMES, {}, MAX_PARTS) is None


def test_the_schemas_of_all_tools_together_have_a_maximum_size() -> None:
    many = json.dumps({"type": "object", "properties": {str(n): {} for n in range(MAX_PARTS // 2)}})
    tools = tuple(Tool(f"f{n}", "", many, strict=True) for n in range(3))
    request = GenerationRequest((Message("user", "hi"),), Sampling(9), tools=tools, tool_choice=ToolChoice("required"))
    with pytest.raises(ApiError, match="more than") as refused:
        grammar_of(request, HERMES, {}, MAX_PARTS)
    assert refused.value.body.error.param == "tools"
