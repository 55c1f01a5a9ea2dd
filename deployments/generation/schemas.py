"""Checks JSON Schemas, and writes them in the form in which llguidance holds an answer to them.

llguidance reads schemas itself. But its errors name no place, it follows references as deep as they go and writes out
as many items as `maxItems` says. So every part is checked here first, and what does not constrain is left out.
Sources: JSON Schema 2020-12; docs/json_schema.md of llguidance 1.9.
"""

import json
from dataclasses import dataclass, field
from decimal import Decimal

from deployments.common.errors import ApiError, invalid_request, shortened
from deployments.common.grammars import grammar_error, json_grammar
from deployments.generation import schema_cost
from deployments.generation.schema_checks import (
    MAX_NUMBER,
    Prepared,
    Schema,
    adds_nothing,
    are_tagged,
    finite_definitions,
    is_exact,
    is_finite,
    is_held_format,
    numbers_in,
    place_of_fault,
    pointed_to,
    text_of,
    without_near_exclusive_bounds,
)

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_UNSUPPORTED = {
    *("not", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas", "propertyNames"),
    *("contains", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
    *("$dynamicRef", "$recursiveRef"),
}
"""Keywords that constrain and that llguidance does not know. Any other that is unknown is an annotation."""
_COUNTS = {
    **dict.fromkeys(("minLength", "maxLength"), 100_000),
    **dict.fromkeys(("minItems", "maxItems", "minProperties", "maxProperties"), 1000),
}
"""The largest value of each."""
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_MAX_DEPTH = 64
"""Of schemas within schemas, references included: llguidance recurses along both."""
WHITE_SPACE = " "
"""A regular expression for what may stand between JSON's tokens, once: small models would emit more for ever."""


@dataclass(slots=True)
class SchemaPreparer:
    """Prepares the schemas of one request.

    param: the request's field, for errors. max_parts: how many parts all its schemas may have together.
    """

    param: str
    max_parts: int
    _parts: int = 0

    def prepare(self, schema: str, *, strict: bool) -> str:
        """The schema, as JSON text for llguidance.

        schema: JSON text. strict: what cannot be held is refused; else it is left out. Raises ApiError 400 for a
        schema that is invalid or too large, and for one that no value satisfies.
        """
        return _Document(self, json.loads(schema), strict).text()

    def count(self, parts: int, where: str) -> None:
        """Counts parts. Raises ApiError 400 for too many."""
        self._parts += parts
        if self._parts > self.max_parts:
            raise self.refusal(where, f"more than {self.max_parts} parts; make the schema smaller")

    def refusal(self, where: str, message: str) -> ApiError:
        """The error for the part of a schema at this path."""
        place, message = shortened(where, 120) or "#", shortened(message, 200)
        return invalid_request(self.param, f"Schema at {place}: {message}.", code="invalid_json_schema")


@dataclass(slots=True)
class _Document:
    """One schema while it is prepared."""

    owner: SchemaPreparer
    root: object
    strict: bool
    _definitions: list[Prepared] = field(default_factory=list)
    _targets: list[str] = field(default_factory=list)
    """The reference to each definition in the client's schema."""
    _depth: int = 0
    _combined: bool = False
    """Whether a value must satisfy several schemas at once, anywhere."""
    _open: list[Schema] = field(default_factory=list)
    """Objects that list their properties and do not say whether there may be more."""
    _exclusive: list[Schema] = field(default_factory=list)
    """Schemas with `oneOf`."""
    _factors: list[Decimal] = field(default_factory=list)
    """The values of `multipleOf`."""
    _patterns: int = 0
    """How many patterns of properties there are."""

    def text(self) -> str:
        prepared = self._schema(self.root, "")
        self.owner.count(schema_cost.of_property_patterns(self._patterns), "")
        if self._combined:
            self.owner.count(schema_cost.of_multiples(self._factors), "")
        else:
            # By the standard there may be more, and a small model would go on with them for ever. But where schemas
            # are combined, each must leave room for the others' properties.
            for schema in self._open:
                schema["additionalProperties"] = False
        for schema in self._exclusive:
            # llguidance sees by itself that types differ, but does not look behind references.
            if "anyOf" not in schema and are_tagged(schema["oneOf"], self._definitions):
                schema["anyOf"] = schema.pop("oneOf")
        if not is_finite(prepared, finite_definitions(self._definitions)):
            raise self.owner.refusal("", "no finite value satisfies it: it refers to nothing but itself")
        options: Schema = {"whitespace_pattern": WHITE_SPACE, "lenient": not self.strict}
        text = text_of(prepared, self._definitions, options)
        if error := grammar_error(json_grammar(text)):
            where, error = place_of_fault(prepared, self._definitions, self._targets, options, error)
            raise self.owner.refusal(where, f"it cannot be enforced: {error}")
        return text

    def _schema(self, schema: object, where: str) -> Prepared:
        self.owner.count(1, where)
        if self._depth == _MAX_DEPTH:
            raise self.owner.refusal(where, f"nested deeper than {_MAX_DEPTH} levels; make the schema flatter")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self.owner.refusal(where, "it must be an object")
        self._depth += 1
        prepared: Schema = {}
        for keyword, value in schema.items():
            if adds_nothing(keyword, value, schema):
                continue
            self._keyword(prepared, keyword, value, f"{where}/{shortened(keyword)}")
        self._depth -= 1
        prepared = without_near_exclusive_bounds(prepared)
        self._complete(prepared)
        return prepared

    def _keyword(self, prepared: Schema, keyword: str, value: object, where: str) -> None:
        """Checks a keyword, and copies it if it constrains."""
        match keyword:
            case "type":
                prepared[keyword] = self._types(value, where)
            case "$ref":
                prepared[keyword] = f"#/$defs/{self._reference(value, where)}"
            case "properties" | "patternProperties":
                prepared[keyword] = schemas = self._map(value, where)
                if keyword == "patternProperties":
                    self._patterns += len(schemas)
                    for pattern in schemas:
                        self.owner.count(schema_cost.of_pattern(pattern), where)
            case "allOf" | "anyOf" | "oneOf" | "prefixItems":
                prepared[keyword] = options = self._list(value, where)
                self.owner.count(schema_cost.of_options(len(options)), where)
            case "items" if isinstance(value, list):
                # Before 2020-12, `items` was what `prefixItems` is now, and `additionalItems` what `items` is.
                prepared["prefixItems"] = self._list(value, where)
            case "additionalItems" if "prefixItems" in prepared:
                prepared["items"] = self._schema(value, where)
            case "items" | "additionalProperties":
                prepared[keyword] = self._schema(value, where)
            case _ if keyword in _UNSUPPORTED:
                if self.strict and value is not False:
                    raise self.owner.refusal(where, "it cannot be enforced; leave it out or put it in the description")
            case _ if keyword in _NUMBERS:
                prepared[keyword] = self._number(keyword, value, where)
            case _ if self._holds(keyword, value, where):
                prepared[keyword] = value

    def _holds(self, keyword: str, value: object, where: str) -> bool:
        """Whether a keyword whose value is no schema constrains, and can be held. Raises ApiError."""
        if keyword == "const":
            return self._holds_value(value, where)
        if keyword == "enum":
            if not isinstance(value, list) or not value:
                raise self.owner.refusal(where, "enum must be a list of values")
            return self._holds_value(value, where)
        if keyword == "required":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise self.owner.refusal(where, "required must be a list of the properties' names")
            return self._holds_value(value, where)
        if keyword in _COUNTS:
            return self._holds_count(keyword, value, where)
        if keyword == "pattern":
            return self._holds_pattern(value, where)
        if keyword == "format":
            if not isinstance(value, str):
                raise self.owner.refusal(where, f"format {_shown(value)} is not the name of a format")
            return is_held_format(value)
        return False

    def _holds_count(self, keyword: str, value: object, where: str) -> bool:
        limit = _COUNTS[keyword]
        # True is an int to Python, and not to JSON.
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.owner.refusal(where, f"{keyword} must be an integer from 0 to {limit}")
        if value > limit and self.strict:
            raise self.owner.refusal(where, f"it cannot be enforced above {limit}")
        return value <= limit

    def _holds_pattern(self, value: object, where: str) -> bool:
        if not isinstance(value, str):
            raise self.owner.refusal(where, f"pattern {_shown(value)} is not a regular expression")
        self.owner.count(schema_cost.of_pattern(value), where)
        error = grammar_error(json_grammar(json.dumps({"type": "string", "pattern": value})))
        if error and self.strict:
            raise self.owner.refusal(where, f"it cannot be enforced: {error}")
        return not error

    def _holds_value(self, value: object, where: str) -> bool:
        """Whether this very value, or one of these, can be held."""
        self.owner.count(schema_cost.of_value(value, self.owner.max_parts), where)
        held = all(map(is_exact, numbers_in(value)))
        if not held and self.strict:
            raise self.owner.refusal(where, "a number of more than 15 digits cannot be enforced")
        return held

    def _number(self, keyword: str, value: object, where: str) -> object:
        """The value of a keyword that holds numbers to something."""
        if isinstance(value, bool) and keyword.startswith("exclusive"):
            return value  # as in draft 4, where it says how to read the bound beside it
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.owner.refusal(where, f"{keyword} must be a number")
        if keyword == "multipleOf":
            if value <= 0:
                raise self.owner.refusal(where, "multipleOf must be above 0")
            self._factors.append(Decimal(str(value)))
            self.owner.count(schema_cost.of_multiples(self._factors[-1:]), where)
            return value
        if value > MAX_NUMBER if keyword.lower().endswith("minimum") else value < -MAX_NUMBER:
            raise self.owner.refusal(where, f"it cannot be enforced beyond {MAX_NUMBER}")
        # A bound such as 2^63 - 1 is narrowed: what satisfies that satisfies it too.
        return min(max(value, -MAX_NUMBER), MAX_NUMBER)

    def _complete(self, prepared: Schema) -> None:
        """Adds what clients leave unsaid, and notes what depends on the whole schema."""
        properties, required = prepared.get("properties"), prepared.get("required", [])
        if prepared.get("minProperties"):
            self.owner.count(schema_cost.of_optional_properties(len(properties or ())), "")  # type: ignore[arg-type]
        if properties is not None:
            prepared.setdefault("type", "object")
        sources = prepared.keys() & {"allOf", "anyOf", "oneOf", "$ref"}
        several = len(prepared["allOf"]) > 1 if "allOf" in prepared else False  # type: ignore[arg-type]
        if "oneOf" in prepared:
            self._exclusive.append(prepared)
        self._combined |= bool(sources) and (several or len(sources | (prepared.keys() - {"type"})) > 1)
        unsaid = not prepared.keys() & {"additionalProperties", "patternProperties", "minProperties", "maxProperties"}
        if properties and unsaid and properties.keys() >= set(required):  # type: ignore[attr-defined, call-overload]
            self._open.append(prepared)

    def _types(self, value: object, where: str) -> object:
        names = value if isinstance(value, list) else [value]
        for index, name in enumerate(names):
            if not isinstance(name, str) or name not in _TYPES:
                raise self.owner.refusal(where, f"type {_shown(name)} is not one of {', '.join(_TYPES)}")
            if name in names[:index]:
                raise self.owner.refusal(where, f"type names {name!r} twice")
        if not names:
            raise self.owner.refusal(where, "type is an empty list; name a type or leave it out")
        return value

    def _list(self, value: object, where: str) -> list[Prepared]:
        if not isinstance(value, list) or not value:
            raise self.owner.refusal(where, "it must be a list of schemas")
        return [self._schema(option, f"{where}/{index}") for index, option in enumerate(value)]

    def _map(self, value: object, where: str) -> dict[str, Prepared]:
        if not isinstance(value, dict):
            raise self.owner.refusal(where, "it must be an object of schemas")
        self.owner.count(sum(map(schema_cost.of_text, value)), where)
        return {name: self._schema(member, f"{where}/{shortened(name)}") for name, member in value.items()}

    def _reference(self, target: object, where: str) -> int:
        """The number of the definition that a $ref points to."""
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise self.owner.refusal(where, f"$ref {_shown(target)} does not point into this schema")
        if target not in self._targets:
            # Numbered before it is prepared: a schema may refer to itself.
            number = len(self._targets)
            self._targets.append(target)
            self._definitions.append(False)
            try:
                schema = pointed_to(self.root, target)
            except LookupError:
                raise self.owner.refusal(where, f"$ref {_shown(target)} points to nothing") from None
            self._definitions[number] = self._schema(schema, target.removeprefix("#"))
        return self._targets.index(target)


def _shown(value: object) -> str:
    """A part of the schema in an error message."""
    return shortened(json.dumps(value, ensure_ascii=False), 60)
