"""Schemas as grammars: what a real engine writes under them is what they allow; what cannot be held to is refused."""

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError
from deployments.common.messages import Add, EngineConfig, EngineRequest, Grammar, GrammarTag, Sampling
from deployments.engine.core import Engine
from deployments.generation.grammar import ebnf, ebnf_of_calls, integers
from deployments.generation.prompts import PromptRenderer

MOST = 1000
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": -3, "maximum": 25},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 9}}},
    {
        "type": "object",
        "properties": {
            "头": {"type": "integer", "minimum": 1, "maximum": 99},
            'quoted"\n': {"enum": ["鸡", 'a"b', 3, None, {"x": [1]}]},
            "c": {"anyOf": [{"type": "boolean"}, {"const": "no"}]},
        },
        "required": ["头", "c"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 2, "maxItems": 3},
    {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9, "minimum": 0}},
    {"type": "object", "properties": {"when": {"type": "string", "format": "date-time"}}, "required": ["when"]},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"oneOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
    TREE,
]


@pytest.fixture(scope="module")
def engine(bundled: ServedModel) -> Engine:
    return Engine(EngineConfig(str(bundled.folder), (0,), 16, 8, 256, 128))


@pytest.fixture(scope="module")
def prompts(bundled: ServedModel) -> PromptRenderer:
    return PromptRenderer(bundled)


def write(engine: Engine, prompts: PromptRenderer, grammar: Grammar, seed: int, most: int = 400) -> tuple[str, str]:
    """What the engine writes under a grammar, and why it ended. Hot, so that it tries every way that is open."""
    ids: list[int] = []
    finish = ""
    sampling = Sampling(most, temperature=1.5, seed=seed, grammar=grammar)
    engine.add(Add(seed, EngineRequest(prompts.encode("What is 3 + 4?"), sampling)))
    while engine.busy:
        for made in engine.step().streams.values():
            ids, finish = ids + made.ids, made.finish_reason or finish
    return prompts.decode(ids), finish


@pytest.mark.parametrize("schema", SCHEMAS, ids=[str(n) for n in range(len(SCHEMAS))])
def test_what_the_engine_writes_is_what_the_schema_allows(
    engine: Engine, prompts: PromptRenderer, schema: dict[str, Any]
) -> None:
    grammar = Grammar(ebnf(json.dumps(schema), "response_format", MOST))
    ended = 0
    for seed in range(1, 9):
        text, finish = write(engine, prompts, grammar, seed)
        if finish == "stop":
            ended += 1
            jsonschema.validate(json.loads(text), schema)
    assert ended >= 4


def test_any_object(engine: Engine, prompts: PromptRenderer) -> None:
    texts = [write(engine, prompts, Grammar(ebnf('{"type": "object"}', "x", MOST)), seed) for seed in range(20, 26)]
    whole = [json.loads(text) for text, finish in texts if finish == "stop"]
    assert whole and all(isinstance(one, dict) for one in whole)


NUMBER = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
CALLS = [('<call>{"f": ', NUMBER, "}</call>")]


def test_calls_are_held_to_their_schemas(engine: Engine, prompts: PromptRenderer) -> None:
    grammar = Grammar(ebnf_of_calls(CALLS * 2, ("[", ";", "]"), 2, "tools", MOST))
    text, finish = write(engine, prompts, grammar, 40)
    assert finish == "stop" and re.fullmatch(r'\[(<call>\{"f": \{ ?"n" ?: ?-?\d+ ?\}\}</call>;?){1,2}\]', text), text


def test_a_tag_in_free_text_is_held_to_its_grammar(engine: Engine, prompts: PromptRenderer) -> None:
    inner = ebnf(NUMBER, "tools", MOST)
    grammar = Grammar(trigger="7", tags=(GrammarTag("7", inner, "!"),))
    text, _ = write(engine, prompts, grammar, 50, most=60)
    assert all(re.match(r'7\{ ?"n" ?: ?-?\d+ ?\}!', text[at:]) for at in [m.start() for m in re.finditer("7\\{", text)])


BAD: list[tuple[Any, str]] = [
    ({"type": "nonsense"}, "nonsense"),
    ({"type": "string", "pattern": "a+"}, "pattern"),
    ({"type": "number", "minimum": 1}, "minimum"),
    ({"type": "integer", "minimum": 5, "maximum": 1}, "above"),
    ({"$ref": "#/nowhere"}, "points to nothing"),
    ({"$ref": "https://example.com/x"}, "does not point into"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "nothing but itself"),
    ({"enum": []}, "enum"),
    ({"type": "array", "minItems": 3, "maxItems": 1}, "above"),
    ({"type": "object", "properties": {"a": {"type": "object", "required": ["b"]}}}, "#/properties/a|/properties/a"),
    ({"not": {}}, "not"),
    ([], "must be an object"),
    ({"type": "object", "properties": {str(n): {} for n in range(MOST + 1)}}, "more than"),
]


@pytest.mark.parametrize(("schema", "said"), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_held_to_is_refused_by_name(schema: Any, said: str) -> None:
    with pytest.raises(ApiError, match=said) as refused:
        ebnf(json.dumps(schema), "response_format", MOST)
    error = refused.value.body.error
    assert (refused.value.status, error.param, error.code) == (400, "response_format", "invalid_json_schema")


def matches(expression: str, text: str) -> bool:
    """Whether an expression of terminals, classes, counts and groups stands for the text: read as a regex."""
    return re.fullmatch(expression.replace('"', "").replace(" ", ""), text) is not None


@given(st.integers(-1200, 1200), st.integers(0, 900), st.integers(-2500, 2500))
def test_integers_are_all_those_between(low: int, width: int, number: int) -> None:
    assert matches(integers(low, low + width), str(number)) == (low <= number <= low + width)
    assert matches(integers(low, None), str(number)) == (number >= low)
    assert matches(integers(None, low), str(number)) == (number <= low)
