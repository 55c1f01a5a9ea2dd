"""Schemas as grammars: a real engine's output is what they allow, and what cannot be enforced is refused."""

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError
from deployments.common.messages import Add, EngineConfig, EngineRequest, Grammar, GrammarTag, Sampling
from deployments.engine.engine import Engine
from deployments.generation.grammar import ebnf, ebnf_of_calls
from deployments.generation.prompts import PromptRenderer
from deployments.generation.terminals import integers

MAX_NODES = 1000
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
    {"const": "\u200b\U000e0001\x7f"},
    TREE,
]


@pytest.fixture(scope="module")
def engine(bundled: ServedModel) -> Engine:
    return Engine(EngineConfig(str(bundled.folder), (0,), 16, 8, 256, 128))


@pytest.fixture(scope="module")
def prompts(bundled: ServedModel) -> PromptRenderer:
    return PromptRenderer(bundled)


def write(
    engine: Engine, prompts: PromptRenderer, grammar: Grammar, seed: int, max_tokens: int = 400
) -> tuple[str, str]:
    """The engine's output under a grammar, and its finish reason. A high temperature makes it explore the grammar."""
    ids: list[int] = []
    finish = ""
    sampling = Sampling(max_tokens, temperature=1.5, seed=seed, grammar=grammar)
    engine.add(Add(seed, EngineRequest(prompts.encode("What is 3 + 4?"), sampling)))
    while engine.busy:
        for batch in engine.step().streams.values():
            ids, finish = ids + batch.ids, batch.finish_reason or finish
    return prompts.decode(ids), finish


@pytest.mark.parametrize("schema", SCHEMAS, ids=[str(n) for n in range(len(SCHEMAS))])
def test_what_the_engine_writes_is_what_the_schema_allows(
    engine: Engine, prompts: PromptRenderer, schema: dict[str, Any]
) -> None:
    grammar = Grammar(ebnf(json.dumps(schema), "response_format", MAX_NODES))
    completed = 0
    for seed in range(1, 9):
        text, finish = write(engine, prompts, grammar, seed)
        if finish == "stop":
            completed += 1
            jsonschema.validate(json.loads(text), schema)
    assert completed >= 4


def test_any_object(engine: Engine, prompts: PromptRenderer) -> None:
    texts = [
        write(engine, prompts, Grammar(ebnf('{"type": "object"}', "x", MAX_NODES)), seed) for seed in range(20, 26)
    ]
    whole = [json.loads(text) for text, finish in texts if finish == "stop"]
    assert whole and all(isinstance(value, dict) for value in whole)


NUMBER = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
CALLS = [('<call>{"f": ', NUMBER, "}</call>")]


def test_calls_are_constrained_to_their_schemas(engine: Engine, prompts: PromptRenderer) -> None:
    grammar = Grammar(ebnf_of_calls(CALLS * 2, ("[", ";", "]"), 2, "tools", MAX_NODES))
    text, finish = write(engine, prompts, grammar, 40)
    assert finish == "stop" and re.fullmatch(r'\[(<call>\{"f": \{ ?"n" ?: ?-?\d+ ?\}\}</call>;?){1,2}\]', text), text


def test_a_tag_in_free_text_is_constrained_to_its_grammar(engine: Engine, prompts: PromptRenderer) -> None:
    inner = ebnf(NUMBER, "tools", MAX_NODES)
    grammar = Grammar(trigger="7", tags=(GrammarTag("7", inner, "!"),))
    text, _ = write(engine, prompts, grammar, 50, max_tokens=60)
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
    ({"type": "object", "properties": {str(n): {} for n in range(MAX_NODES + 1)}}, "more than"),
    ({"type": {}}, "type {} is not one of string, "),
    ({"type": None}, "type null is not one of"),
    ({"type": ["string", ["null"]]}, "is not one of"),
    ({"type": ["null", "null"]}, "twice"),
    ({"type": "string", "format": []}, r"format \[\] is not one of date-time, "),
    ({"type": "object", "required": [[]]}, "required must be a list"),
    ({"type": "string", "minLength": None}, "minLength must be an integer from 0 to 1000"),
    ({"type": "string", "maxLength": True}, "maxLength must be an integer"),
    ({"type": "integer", "minimum": None}, "minimum must be an integer"),
    ({"type": "integer", "maximum": 2**64}, "maximum must be an integer"),
    ({"anyOf": [{"$ref": "#"}]}, "nothing but itself"),
    (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "nothing but itself",
    ),
    (
        {"$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(900)} | {"900": {}}, "$ref": "#/$defs/0"},
        "nested deeper than 64 levels",
    ),
]


@pytest.mark.parametrize(("schema", "message"), BAD, ids=[message for _, message in BAD])
def test_a_schema_that_cannot_be_enforced_is_refused_by_name(schema: Any, message: str) -> None:
    with pytest.raises(ApiError, match=message) as refused:
        ebnf(json.dumps(schema), "response_format", MAX_NODES)
    error = refused.value.body.error
    assert (refused.value.status, error.param, error.code) == (400, "response_format", "invalid_json_schema")


KEYWORDS = (
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "minLength"),
    *(
        "maxLength",
        "format",
        "minimum",
        "maximum",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "$defs",
        "title",
    ),
)
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 7, 2**64, 10**4000, 1.5, 1e300, "", "a", "\x00", "\U000e0001", "#", "#/$defs/a"),
    *([], [[]], [None], [{}], ["a"], [True], [{"type": []}], {}, {"": None}, {"a": {}}, {"a": []}, {"type": {}}),
]
POSITIONS: list[Callable[[Any], Any]] = [
    lambda schema: schema,
    lambda schema: {"type": "object", "properties": {"a": schema}},
    lambda schema: {"type": "array", "items": schema, "minItems": 1},
    lambda schema: {"anyOf": [{"type": "null"}, schema]},
    lambda schema: {"allOf": [{"type": "object", "additionalProperties": schema}]},
    lambda schema: {"$defs": {"a": schema}, "type": "array", "items": {"$ref": "#/$defs/a"}},
]


def grammar_or_refusal(schema: Any) -> str | None:
    """The grammar, or None if the schema is refused with the API's error. Any other exception fails the test."""
    try:
        return ebnf(json.dumps(schema), "response_format", MAX_NODES)
    except ApiError as refused:
        error = refused.body.error
        assert (refused.status, error.param, error.code) == (400, "response_format", "invalid_json_schema")
        assert len(error.message) < 300
        return None


def test_every_keyword_with_any_value_is_enforced_or_refused(engine: Engine, prompts: PromptRenderer) -> None:
    schemas = [
        {"type": name, keyword: value} if name else {keyword: value}
        for keyword in KEYWORDS
        for value in ODD_VALUES
        for name in ("", *TYPES)
    ]
    grammars = {
        grammar for schema in schemas for position in POSITIONS if (grammar := grammar_or_refusal(position(schema)))
    }
    assert len(grammars) > 100
    for grammar in sorted(grammars)[::9]:
        assert write(engine, prompts, Grammar(grammar), 1, max_tokens=1)[1], grammar


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**63, 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=2), values, max_size=3),
    max_leaves=8,
)
schemas = st.recursive(
    json_values,
    lambda inner: st.dictionaries(
        st.sampled_from(KEYWORDS),
        inner
        | json_values
        | st.sampled_from([*TYPES, "date", "#", "#/$defs/a"])
        | st.lists(inner | st.sampled_from(TYPES), max_size=3)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        max_size=4,
    ),
    max_leaves=12,
)


def test_an_error_does_not_repeat_a_long_schema() -> None:
    for schema in ({"properties": {"a" * 10_000: 3}}, {"$ref": "#/" + "a" * 10_000}, {"type": "a" * 10_000}):
        with pytest.raises(ApiError) as refused:
            ebnf(json.dumps(schema), "tools", MAX_NODES)
        assert len(refused.value.message) < 400


@settings(max_examples=400, deadline=None)
@given(schemas)
def test_any_json_as_a_schema_is_enforced_or_refused(schema: Any) -> None:
    grammar_or_refusal(schema)
    grammar_or_refusal({"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]})


def matches(expression: str, text: str) -> bool:
    """Whether an expression of terminals, classes, counts and groups matches the text: it is evaluated as a regex."""
    return re.fullmatch(expression.replace('"', "").replace(" ", ""), text) is not None


@given(st.integers(-1200, 1200), st.integers(0, 900), st.integers(-2500, 2500))
def test_integers_are_those_in_the_range(low: int, width: int, number: int) -> None:
    assert matches(integers(low, low + width), str(number)) == (low <= number <= low + width)
    assert matches(integers(low, None), str(number)) == (number >= low)
    assert matches(integers(None, low), str(number)) == (number <= low)
