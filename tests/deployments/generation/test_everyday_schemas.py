"""Schemas as pydantic, zod and MCP servers write them: taken, and what is written under them fits them."""

import datetime
import enum
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, RootModel

from cluster.models.folder import BUNDLED_FOLDER
from deployments.common.errors import ApiError
from deployments.common.grammars import json_grammar
from deployments.common.messages import Grammar
from deployments.generation.schemas import SchemaPreparer
from tests.deployments.grammars import Walker

MAX_PARTS = 1000


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(9, ge=1, le=9, description="How many.")


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: Annotated[float, Field(gt=0, lt=99)]


class Node(BaseModel):
    value: int = Field(ge=0, le=9)
    next: "Node | None" = None


class Everything(BaseModel):
    """What fields of pydantic models are made of."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=5, examples=["a"])
    colour: Colour = Field(description="A reference with a neighbour.")
    favourite: Colour | None = Field(None, title="Favourite", description="Maybe one.")
    pet: Cat | Dog = Field(discriminator="kind")
    tree: Node
    born: datetime.date
    at: datetime.datetime | None = None
    lasted: datetime.timedelta
    id: uuid.UUID
    pair: tuple[int, bool]
    scores: dict[str, Annotated[int, Field(le=9, ge=0)]] = Field(max_length=3)
    tags: list[Literal["x", "y"]] = Field(min_length=1, max_length=2)
    code: str = Field(pattern=r"^[A-Z]{2}\d{1,3}$")
    even: int = Field(multiple_of=2, ge=0, le=98)
    anything: Any = None
    page: AnyUrl | None = None


class Loose(BaseModel):
    """What cannot be held as a whole."""

    price: Decimal
    distinct: set[int]


ZOD_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
ZOD_UUID = (
    "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
    "|00000000-0000-0000-0000-000000000000|ffffffff-ffff-ffff-ffff-ffffffffffff)$"
)
ZOD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "email": {"type": "string", "format": "email", "pattern": ZOD_EMAIL},
        "id": {"type": "string", "format": "uuid", "pattern": ZOD_UUID},
        "count": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
        "age": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        "role": {"type": "string", "enum": ["admin", "user"], "default": "user"},
        "maybe": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
        "literal": {"type": "string", "const": "x"},
        "pair": {"type": "array", "prefixItems": [{"type": "string", "maxLength": 3}, {"type": "number"}]},
        "map": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "boolean"}},
        "shape": {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"type": {"type": "string", "const": name}, "size": {"type": "number"}},
                    "required": ["type", "size"],
                    "additionalProperties": False,
                }
                for name in ("circle", "square")
            ]
        },
        "both": {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
            ]
        },
        "unknown": {},
    },
    "required": ["email", "id", "count", "age", "role", "maybe", "literal", "pair", "map", "shape", "both"],
    "additionalProperties": False,
}
ZOD_RECURSIVE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 3}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "children"],
    "additionalProperties": False,
}
ZOD_3 = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$ref": "#/definitions/answer",
    "definitions": {
        "answer": {
            "type": "object",
            "properties": {
                "steps": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"text": {"type": "string"}, "sure": {"type": ["boolean", "null"]}},
                        "required": ["text", "sure"],
                        "additionalProperties": False,
                    },
                    "maxItems": 2,
                },
                "again": {"$ref": "#/definitions/answer/properties/steps/items/properties/sure"},
            },
            "required": ["steps", "again"],
            "additionalProperties": False,
        }
    },
}
MCP_SERVERS: dict[str, dict[str, Any]] = {
    "fetch": {
        "description": "Parameters for fetching a URL.",
        "properties": {
            "url": {"description": "URL", "format": "uri", "minLength": 1, "title": "Url", "type": "string"},
            "max_length": {
                "default": 5000,
                "exclusiveMaximum": 1000000,
                "exclusiveMinimum": 0,
                "title": "Max Length",
                "type": "integer",
            },
            "raw": {"default": False, "type": "boolean"},
        },
        "required": ["url"],
        "title": "Fetch",
        "type": "object",
    },
    "edit": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "edits": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "oldText": {"type": "string", "description": "Text to search for - must match exactly"},
                        "newText": {"type": "string"},
                    },
                    "required": ["oldText", "newText"],
                    "additionalProperties": False,
                },
            },
            "dryRun": {"type": "boolean", "default": False},
        },
        "required": ["path", "edits"],
        "additionalProperties": False,
        "$schema": "http://json-schema.org/draft-07/schema#",
    },
    "no parameters": {"type": "object", "properties": {}, "additionalProperties": False, "$schema": "x"},
    "nullable of OpenAPI": {
        "type": "object",
        "properties": {
            "a": {"type": "string", "nullable": True, "maxLength": 3},
            "b": {"type": "integer", "format": "int32"},
        },
        "required": ["a", "b"],
    },
    "an untyped list": {
        "type": "object",
        "properties": {"list": {"type": "array"}, "ids": {"items": {}, "type": "array"}},
    },
    "several types": {
        "type": "object",
        "properties": {
            "id": {"type": ["string", "number"]},
            "when": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "required": ["id", "when"],
    },
    "free keys": {
        "type": "object",
        "properties": {"env": {"type": "object", "additionalProperties": {"type": "string"}}},
    },
}
SIBLINGS: dict[str, dict[str, Any]] = {
    "of $ref": {"$ref": "#/$defs/s", "maxLength": 2, "$defs": {"s": {"type": "string", "pattern": "^[ab]+$"}}},
    "of $ref, in a property": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n", "maximum": 5, "description": "few"}},
        "required": ["a"],
        "$defs": {"n": {"type": "integer", "minimum": 3}},
    },
    "of $ref, which names more properties": {
        "$ref": "#/$defs/o",
        "type": "object",
        "properties": {"b": {"type": "boolean"}},
        "required": ["b"],
        "$defs": {"o": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    },
    "of const": {"const": "ab", "type": "string", "maxLength": 2},
    "of enum": {"enum": [1, 2, 30, "x", None], "maximum": 9, "type": ["integer", "null"]},
    "of enum, a pattern": {"enum": ["ab", "cd", "abc"], "pattern": "^a", "maxLength": 2},
    "of allOf": {"allOf": [{"type": "integer", "minimum": 3}], "maximum": 5},
    "of anyOf": {"anyOf": [{"minimum": 3}, {"maximum": -3}], "type": "integer", "minimum": -5, "maximum": 5},
    "of oneOf": {"oneOf": [{"type": "string"}, {"type": "integer", "minimum": 7}], "maximum": 9, "maxLength": 1},
    "of enum, a reference": {"$ref": "#/$defs/e", "enum": ["b", "c"], "$defs": {"e": {"enum": ["a", "b"]}}},
}
IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "two constants": {"const": 1, "enum": [2, 3]},
    "a constant of another type": {"const": 1, "type": "string"},
    "a constant beyond the bound": {"const": 10, "type": "integer", "maximum": 9},
    "a mutual cycle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a mutual cycle in allOf": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
    },
    "a cycle of required properties": {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
            "b": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
        },
    },
}


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker(BUNDLED_FOLDER, 2080, [1])


def prepared(schema: Any, *, strict: bool) -> str:
    return SchemaPreparer("response_format", MAX_PARTS).prepare(json.dumps(schema), strict=strict)


def check(walker: Walker, schema: dict[str, Any], *, strict: bool, walks: int = 4, fits: Any = None) -> list[Any]:
    """What random walks write under the schema, which all fits it."""
    grammar = Grammar(json_grammar(prepared(schema, strict=strict)))
    results = [walker.walk(grammar, seed, 900) for seed in range(walks)]
    values = [json.loads(text) for text, ended in results if ended]
    assert values
    for value in values:
        jsonschema.validate(value, fits or schema, jsonschema.Draft202012Validator)
    return values


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("schema", [ZOD, ZOD_RECURSIVE, ZOD_3, *MCP_SERVERS.values()])
def test_schemas_of_zod_and_of_mcp_servers(walker: Walker, schema: dict[str, Any], strict: bool) -> None:
    # The lookaround of the address' pattern cannot be held; its format is.
    fits = json.loads(json.dumps(schema).replace(json.dumps(ZOD_EMAIL), '"@"'))
    check(walker, schema, strict=strict, fits=fits)


@pytest.mark.parametrize("strict", [False, True])
def test_models_of_pydantic_take_what_is_written(walker: Walker, strict: bool) -> None:
    for value in check(walker, Everything.model_json_schema(), strict=strict, walks=6):
        value.pop("page", None)  # not every URL by the standard is one to pydantic
        value.pop("at", None)  # nor every second: a minute may have 61
        Everything.model_validate(value | {"lasted": "P1D"})


def test_what_of_pydantic_cannot_be_held_is_left_out_or_refused(walker: Walker) -> None:
    schema = Loose.model_json_schema()
    fits = json.loads(json.dumps(schema).replace(', "uniqueItems": true', ""))
    fits["properties"]["price"] = {"type": ["number", "string"]}
    check(walker, schema, strict=False, fits=fits)
    with pytest.raises(ApiError, match=r"price|distinct") as refusal:
        prepared(schema, strict=True)
    assert refusal.value.status == 400


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", SIBLINGS)
def test_neighbours_hold_too(walker: Walker, name: str, strict: bool) -> None:
    check(walker, SIBLINGS[name], strict=strict, walks=8)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_nothing_satisfies_is_refused(name: str, strict: bool) -> None:
    with pytest.raises(ApiError) as refusal:
        prepared(IMPOSSIBLE[name], strict=strict)
    assert refusal.value.status == 400


def test_the_root_may_be_any_schema(walker: Walker) -> None:
    class Numbers(RootModel[list[int]]):
        pass

    assert all(isinstance(value, list) for value in check(walker, Numbers.model_json_schema(), strict=True))
