"""Schemas as grammars: what is written under them is what they allow, and what cannot be held is refused."""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.models.folder import BUNDLED_FOLDER
from deployments.common.errors import ApiError
from deployments.common.grammars import json_grammar
from deployments.common.messages import Grammar
from deployments.generation.schemas import SchemaPreparer
from tests.deployments.grammars import Walker

MAX_PARTS = 1000


@pytest.fixture(scope="module")
def walker() -> Walker:
    """The bundled model, with more logits than its tokenizer has tokens."""
    return Walker(BUNDLED_FOLDER, 2080, [1])


def prepared(schema: Any, *, strict: bool = True) -> str:
    return SchemaPreparer("response_format", MAX_PARTS).prepare(json.dumps(schema), strict=strict)


def check(walker: Walker, schema: Any, *, walks: int = 4, strict: bool = True) -> int:
    """Checks what random walks write under a schema. Returns how many of them came to the end."""
    grammar, whole = Grammar(json_grammar(prepared(schema, strict=strict))), 0
    for seed in range(walks):
        text, ended = walker.walk(grammar, seed)
        if ended:
            whole += 1
            # Decimal: a float would round what is just beyond a bound.
            value, allowed = (json.loads(part, parse_float=Decimal) for part in (text, json.dumps(schema)))
            jsonschema.validate(value, allowed, jsonschema.Draft202012Validator)
            assert not re.search(r"\s\s", re.sub(r'"(\\.|[^"\\])*"', '""', text)), text
    return whole


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
    {"type": "number", "minimum": -2.5, "exclusiveMaximum": 7},
    {"type": "integer", "multipleOf": 7, "minimum": -100, "maximum": 100},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.25},
    {"type": "number", "exclusiveMinimum": -3, "exclusiveMaximum": -2.5},
    {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    {"enum": [2**53, -0.125, 1e-7, 0]},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "pattern": "^(鸡|兔)+$", "maxLength": 6},
    {"enum": ["e\u0301", "é", "<｜User｜>", "</think>", "😀", "中文，标点"]},
    {"$ref": "#/properties/a~1b", "properties": {"a/b": {"type": "integer"}}, "type": ["object", "integer"]},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a", "b"], "additionalProperties": True},
    {"allOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}, {"required": ["b"]}], "type": "object"},
    {"type": "object", "patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": False},
    {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": {
            name: {"type": "object", "properties": {"kind": {"const": name}, "n": {}}, "required": ["kind"]}
            for name in ("cat", "dog")
        },
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=[str(n) for n in range(len(SCHEMAS))])
def test_what_is_written_is_what_the_schema_allows(walker: Walker, schema: dict[str, Any]) -> None:
    assert check(walker, schema, walks=8) >= 4


def test_annotations_do_not_constrain(walker: Walker) -> None:
    annotated = {
        "title": "T",
        "description": "d",
        "example": {"type": "nonsense"},
        "x-order": 3,
        "default": 1,
        "nullable": True,
        "x-guidance": {"whitespace_pattern": r"\s+", "no_such": 1},
        "type": "object",
        "properties": {"a": {"type": "integer", "format": "int32", "maximum": 9, "examples": [3]}},
        "required": ["a"],
    }
    assert check(walker, annotated) == 4
    assert prepared(annotated) == prepared(
        {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
    )
    assert check(walker, {"type": "string", "format": "color", "maxLength": 5}) >= 3


def test_any_object(walker: Walker) -> None:
    grammar = Grammar(json_grammar(prepared({"type": "object"})))
    whole = [json.loads(text) for text, ended in (walker.walk(grammar, seed) for seed in range(6)) if ended]
    assert whole and all(isinstance(value, dict) for value in whole)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["鸡兔同笼", "，", "e\u0301", "🐔"]
)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2), max_leaves=4
)


def bounded(low: str, high: str, numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={low: numbers, high: numbers}).filter(
        lambda bounds: low not in bounds or high not in bounds or bounds[low] <= bounds[high]
    )


def merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda all_parts: {key: value for part in all_parts for key, value in part.items()})


def typed(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.just({"type": name})


numbers = st.integers(-1000, 1000) | st.decimals(-50, 50, places=2).map(float)
leaves = st.one_of(
    merged(typed("integer"), bounded("minimum", "maximum", st.integers(-(10**6), 10**6))),
    merged(typed("integer"), st.fixed_dictionaries({"multipleOf": st.integers(1, 30)})),
    merged(typed("number"), bounded("minimum", "maximum", numbers)),
    merged(typed("number"), bounded("exclusiveMinimum", "maximum", numbers)).filter(
        lambda schema: schema.get("exclusiveMinimum") != schema.get("maximum", "none")
    ),
    merged(typed("string"), bounded("minLength", "maxLength", st.integers(0, 12))),
    st.sampled_from(["^a+$", "[0-9]{2}", "^(ab|cd)*$", "^[^a-z]*$", "^[一-龥]{1,4}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.sampled_from(["date", "time", "uuid", "ipv4", "email", "duration"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.lists(values, min_size=1, max_size=4).map(lambda options: {"enum": options}),
    values.map(lambda value: {"const": value}),
    st.sampled_from(["boolean", "null"]).map(lambda name: {"type": name}),
    st.just({"type": ["string", "null"], "maxLength": 4}),
)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(texts, inner, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    schema = {"type": "object", "properties": properties, "required": required}
    return schema | draw(
        st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "null"}}])
    )


satisfiable = st.recursive(
    leaves,
    lambda inner: st.one_of(
        objects(inner),
        merged(
            typed("array"), inner.map(lambda item: {"items": item}), bounded("minItems", "maxItems", st.integers(0, 4))
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=6,
)


@settings(max_examples=80)
@given(satisfiable)
def test_any_schema_of_what_is_documented_is_held(walker: Walker, schema: dict[str, Any]) -> None:
    check(walker, schema, walks=2)


BAD: list[tuple[Any, str]] = [
    ({"type": "nonsense"}, "nonsense"),
    ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum"),
    ({"$ref": "#/nowhere"}, "points to nothing"),
    ({"$ref": "https://example.com/x"}, "does not point into"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "nothing but itself"),
    ({"enum": []}, "/enum"),
    ({"type": "array", "minItems": 3, "maxItems": 1}, "minItems"),
    ([], "must be an object"),
    ({"type": "object", "properties": {str(n): {} for n in range(MAX_PARTS + 1)}}, "more than"),
    ({"type": "object", "required": [str(n) for n in range(MAX_PARTS + 1)]}, "more than"),
    ({"enum": ["a" * 100 * MAX_PARTS]}, "more than"),
    ({"type": {}}, "type {} is not one of object, "),
    ({"type": None}, "type null is not one of"),
    ({"type": ["string", ["null"]]}, "is not one of"),
    ({"type": ["null", "null"]}, "twice"),
    ({"type": "string", "format": []}, r"format \[\] is not"),
    ({"type": "object", "required": [[]]}, "required must be a list"),
    ({"type": "string", "minLength": None}, "minLength must be an integer from 0 to"),
    ({"type": "string", "maxLength": True}, "maxLength must be an integer"),
    ({"type": "array", "maxItems": -1}, "maxItems must be an integer"),
    ({"type": "integer", "minimum": None}, "minimum must be a number"),
    ({"anyOf": [{"$ref": "#"}]}, "nothing but itself"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "nothing but itself"),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "nothing but itself"),
    ({"type": "object", "properties": {"a": {"pattern": 3}}}, "/properties/a/pattern"),
    (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "nothing but itself",
    ),
    (
        {"$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(900)} | {"900": {}}, "$ref": "#/$defs/0"},
        "nested deeper than 64 levels",
    ),
]
CANNOT_BE_HELD: list[tuple[dict[str, Any], str]] = [
    ({"not": {}}, "/not"),
    ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "/uniqueItems"),
    ({"properties": {"a": {"type": "array", "contains": {}}}}, "/properties/a/contains"),
    ({"type": "string", "pattern": "(?=a)b"}, "/pattern"),
    ({"type": "string", "maxLength": 10**9}, "/maxLength"),
    ({"const": -(2**63)}, "/const"),
    ({"enum": [2**53 + 1, "a"]}, "/enum"),
    ({"const": 0.12345678901234567891}, "/const"),
    (
        {"type": "object", "properties": {"a": {}, "b": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}},
        "/properties/b",
    ),
    ({"$defs": {"a": {"if": True, "then": True}}, "type": "array", "items": {"$ref": "#/$defs/a"}}, "/$defs/a/if"),
]


def refusal(schema: Any, *, strict: bool) -> ApiError | None:
    """The API's error for a schema, or None if it is taken. Any other exception fails the test."""
    try:
        prepared(schema, strict=strict)
    except ApiError as refused:
        error = refused.body.error
        assert (refused.status, error.param, error.code) == (400, "response_format", "invalid_json_schema")
        assert len(error.message) < 400
        return refused
    return None


@pytest.mark.parametrize(("schema", "message"), BAD, ids=[str(n) for n in range(len(BAD))])
@pytest.mark.parametrize("strict", [False, True])
def test_an_invalid_schema_is_refused_and_its_place_named(schema: Any, message: str, strict: bool) -> None:
    refused = refusal(schema, strict=strict)
    assert refused is not None and re.search(message, refused.message), refused


@pytest.mark.parametrize(("schema", "place"), CANNOT_BE_HELD, ids=[str(n) for n in range(len(CANNOT_BE_HELD))])
def test_what_cannot_be_held_is_refused_if_strict_and_else_left_out(
    walker: Walker, schema: dict[str, Any], place: str
) -> None:
    refused = refusal(schema, strict=True)
    assert refused is not None and f"Schema at {place}:" in refused.message and "cannot be enforced" in refused.message
    assert walker.walk(Grammar(json_grammar(prepared(schema, strict=False))), 1)[0]


def test_an_error_does_not_repeat_a_long_schema() -> None:
    for schema in ({"properties": {"a" * 10_000: 3}}, {"$ref": "#/" + "a" * 10_000}, {"type": "a" * 10_000}):
        assert refusal(schema, strict=True) is not None


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
    *(
        "pattern",
        "patternProperties",
        "prefixItems",
        "multipleOf",
        "exclusiveMinimum",
        "minProperties",
        "maxProperties",
    ),
    *("uniqueItems", "not", "x-guidance"),
)
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
ODD_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        7,
        2**64,
        10**4000,
        1.5,
        1e300,
        "",
        "a",
        "\x00",
        "\U000e0001",
        "#",
        "#/$defs/a",
        "(",
        "a{9}",
    ),
    *([], [[]], [None], [{}], ["a"], [True], [{"type": []}], {}, {"": None}, {"a": {}}, {"a": []}, {"type": {}}),
]
POSITIONS: list[Callable[[Any], Any]] = [
    lambda schema: schema,
    lambda schema: {"type": "object", "properties": {"a": schema}},
    lambda schema: {"anyOf": [{"type": "null"}, schema]},
    lambda schema: {"$defs": {"a": schema}, "type": "array", "items": {"$ref": "#/$defs/a"}},
]


def test_every_keyword_with_any_value_is_held_or_refused(walker: Walker) -> None:
    schemas = [
        {"type": name, keyword: value} if name else {keyword: value}
        for keyword in KEYWORDS
        for value in ODD_VALUES
        for name in ("", "object", "string", "number")
    ]
    taken = set()
    for number, schema in enumerate(schemas):
        placed = POSITIONS[number % len(POSITIONS)](schema)
        for strict in (False, True):
            if refusal(placed, strict=strict) is None:
                taken.add(prepared(placed, strict=strict))
    assert len(taken) > 100
    for text in sorted(taken)[::20]:
        assert walker.allowed(walker.compiler.compile(Grammar(json_grammar(text))).mask()), text


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**63, 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
any_schemas = st.recursive(
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


@settings(max_examples=400)
@given(any_schemas, st.booleans())
def test_any_json_as_a_schema_is_held_or_refused(schema: Any, strict: bool) -> None:
    refusal(schema, strict=strict)
    refusal({"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}, strict=strict)
