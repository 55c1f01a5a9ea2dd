"""Turns a JSON Schema into the grammar (EBNF) that constrains an engine's output.

XGrammar can read schemas itself, but a schema that it does not understand ends the engine. So schemas are converted
here, and a keyword that no grammar can enforce is refused by name. Properties are written in the schema's order.
Sources: JSON Schema 2020-12; the EBNF that XGrammar documents.
"""

import json
from dataclasses import dataclass, field

from deployments.common.errors import ApiError, invalid_request
from deployments.generation.terminals import BASE_RULES, FORMATS, MAX_DIGITS, integers, literal, quoted, repeat

Schema = dict[str, object]
"""A schema as the client sent it: every keyword may hold any JSON value until it has been checked."""

_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly"}
)
"""Keywords that describe a value and do not constrain it."""
_DEFINITIONS = frozenset({"$defs", "definitions"})
_KEYWORDS: dict[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "format"}),
    "integer": frozenset({"minimum", "maximum"}),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
"""What a grammar can enforce, by type."""
_MAX_REPEATS = 1000
_MAX_DEPTH = 64
"""Of schemas within schemas, references included: each level takes up to six frames of Python's stack."""


@dataclass(slots=True)
class _Writer:
    """Collects the rules for one or more schemas. param: the request's field, for errors."""

    param: str
    max_nodes: int
    rules: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    depth: int = 0
    root: object = None
    references: dict[str, str] = field(default_factory=dict)

    def document(self, schema: str) -> str:
        """An expression for a value that this schema (JSON text) allows."""
        self.root, self.references = json.loads(schema), {}
        return self.value(self.root, "")

    def finish(self, *first: str) -> str:
        """The whole grammar, which starts with these rules."""
        return "\n".join([*first, *(f"{name} ::= {body}" for name, body in self.rules.items())]) + BASE_RULES

    def refuse(self, where: str, message: str) -> ApiError:
        """The error for the part of the schema at this path."""
        return invalid_request(
            self.param, f"Schema at {_cut(where, 120) or '#'}: {message}.", code="invalid_json_schema"
        )

    def rule(self, body: str) -> str:
        """Adds a rule and returns its name."""
        name = f"r{len(self.rules)}"
        self.rules[name] = body
        return name

    def value(self, schema: object, where: str) -> str:
        """An expression for a value that the schema allows."""
        self.nodes += 1
        if self.nodes > self.max_nodes:
            raise self.refuse(where, f"more than {self.max_nodes} parts; make the schema smaller")
        if self.depth == _MAX_DEPTH:
            raise self.refuse(where, f"nested deeper than {_MAX_DEPTH} levels; make the schema flatter")
        if schema is True:
            return "json"
        if not isinstance(schema, dict):
            raise self.refuse(where, "it must be an object")
        self.depth += 1
        expression = self._expression(schema, where)
        self.depth -= 1
        return expression

    def _expression(self, schema: Schema, where: str) -> str:
        if "$ref" in schema:
            return self._reference(schema["$ref"], where)
        if "const" in schema:
            return literal(schema["const"])
        if "enum" in schema:
            return self._enum(schema["enum"], where)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._any_of(schema, keyword, where)
        all_of = schema.get("allOf")
        if isinstance(all_of, list) and len(all_of) == 1:
            return self.value(all_of[0], f"{where}/allOf/0")
        return self._typed(schema, where)

    def _reference(self, target: object, where: str) -> str:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise self.refuse(where, f"$ref {_shown(target)} does not point into this schema")
        if target not in self.references:
            # Named before it is written: a schema may refer to itself.
            name = self.references[target] = self.rule("")
            body = self.value(self._find(target, where), target)
            self.rules[name] = body
            while body in self.rules:
                body = self.rules[body]
                if body == name:
                    raise self.refuse(where, f"$ref {_shown(target)} refers to nothing but itself")
        return self.references[target]

    def _find(self, target: str, where: str) -> object:
        schema = self.root
        for part in target.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(schema, dict) or key not in schema:
                raise self.refuse(where, f"$ref {_shown(target)} points to nothing")
            schema = schema[key]
        return schema

    def _enum(self, values: object, where: str) -> str:
        if not isinstance(values, list) or not values:
            raise self.refuse(where, "enum must be a list of values")
        self.nodes += len(values)
        return self.rule(" | ".join(map(literal, values)))

    def _any_of(self, schema: Schema, keyword: str, where: str) -> str:
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            raise self.refuse(where, f"{keyword} must be a list of schemas")
        self._only(schema, {keyword, "type", "discriminator"}, where)
        return self.rule(
            " | ".join(self.value(option, f"{where}/{keyword}/{index}") for index, option in enumerate(options))
        )

    def _typed(self, schema: Schema, where: str) -> str:
        types = self._types(schema, where)
        self._only(schema, {"type"}.union(*(_KEYWORDS[name] for name in types)), where)
        if not types:
            return "json"
        expressions = [self._of_type(name, schema, where) for name in types]
        return expressions[0] if len(expressions) == 1 else self.rule(" | ".join(expressions))

    def _types(self, schema: Schema, where: str) -> list[str]:
        """The types that a value may have; an empty list: any."""
        if "type" not in schema:
            return ["object"] if "properties" in schema else []
        names = schema["type"]
        types: list[str] = []
        for name in names if isinstance(names, list) else [names]:
            if not isinstance(name, str) or name not in _KEYWORDS:
                raise self.refuse(where, f"type {_shown(name)} is not one of {', '.join(_KEYWORDS)}")
            if name in types:
                raise self.refuse(where, f"type names {name!r} twice")
            types.append(name)
        if not types:
            raise self.refuse(where, "type is an empty list; name a type or leave it out")
        return types

    def _of_type(self, name: str, schema: Schema, where: str) -> str:
        if name == "object":
            return self._object(schema, where)
        if name == "array":
            return self._array(schema, where)
        if name == "string":
            return self._string(schema, where)
        if name == "integer":
            return self._integer(schema, where)
        return {"number": "json-number", "boolean": '("true" | "false")', "null": '"null"'}[name]

    def _only(self, schema: Schema, known: set[str], where: str) -> None:
        """Raises ApiError for a keyword that would have no effect here."""
        if unknown := sorted(schema.keys() - known - _ANNOTATIONS - _DEFINITIONS):
            raise self.refuse(
                where, f"{_shown(unknown[0])} cannot be enforced; leave it out or put it in the description"
            )

    def _object(self, schema: Schema, where: str) -> str:
        properties, required = schema.get("properties", {}), self._required(schema, where)
        if not isinstance(properties, dict):
            raise self.refuse(where, "properties must be an object of schemas")
        if missing := sorted(required - properties.keys()):
            raise self.refuse(where, f"required names {_shown(missing[0])}, which is not among the properties")
        extra = schema.get("additionalProperties", not properties)
        if properties and extra is not False and "additionalProperties" in schema:
            raise self.refuse(where, "additionalProperties beside properties must be false")
        if not properties:
            return '"{" ws "}"' if extra is False else self._map(extra, f"{where}/additionalProperties")
        pairs = [
            (f'{literal(name)} ws ":" ws {self.value(member, f"{where}/properties/{name}")}', name in required)
            for name, member in properties.items()
        ]
        return self.rule(f'"{{" ws {self._in_order(pairs)} ws "}}"')

    def _required(self, schema: Schema, where: str) -> set[str]:
        names = schema.get("required", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.refuse(where, "required must be a list of the properties' names")
        return set(names)

    def _map(self, values: object, where: str) -> str:
        """An object with any names, and values of this schema."""
        pair = f'json-string ws ":" ws {self.value(values, where)}'
        return self.rule(f'"{{" ws ({pair} (ws "," ws {pair})*)? ws "}}"')

    def _in_order(self, pairs: list[tuple[str, bool]]) -> str:
        """The pairs in their order with commas between them; each that is not required may be missing."""
        # Built from the end. `after`: what may follow a pair that is present; `start`: what may follow "{".
        after = start = '""'
        for pair, required in reversed(pairs):
            following = self.rule(f'ws "," ws {pair} {after}' if required else f'(ws "," ws {pair} {after}) | {after}')
            start = self.rule(f"{pair} {after}" if required else f"({pair} {after}) | {start}")
            after = following
        return start

    def _array(self, schema: Schema, where: str) -> str:
        low, high = self._bounds(schema, "minItems", "maxItems", where)
        if high == 0:
            return '"[" ws "]"'
        item = self.value(schema.get("items", {}), f"{where}/items")
        more = f'(ws "," ws {item}){repeat(max(0, low - 1), None if high is None else high - 1)}'
        inner = f"{item} {more}" if low else f"({item} {more})?"
        return self.rule(f'"[" ws {inner} ws "]"')

    def _string(self, schema: Schema, where: str) -> str:
        if "format" in schema:
            name = schema["format"]
            if not isinstance(name, str) or name not in FORMATS:
                raise self.refuse(where, f"format {_shown(name)} is not one of {', '.join(FORMATS)}")
            return self.rule(FORMATS[name])
        low, high = self._bounds(schema, "minLength", "maxLength", where)
        if low == 0 and high is None:
            return "json-string"
        return self.rule(f'"\\"" json-char{repeat(low, high)} "\\""')

    def _integer(self, schema: Schema, where: str) -> str:
        limit = 10**MAX_DIGITS - 1
        low = self._bound(schema, "minimum", where, -limit, limit)
        high = self._bound(schema, "maximum", where, -limit, limit)
        if low is None and high is None:
            return "json-integer"
        if low is not None and high is not None and low > high:
            raise self.refuse(where, "minimum is above maximum")
        return self.rule(integers(low, high))

    def _bounds(self, schema: Schema, minimum: str, maximum: str, where: str) -> tuple[int, int | None]:
        low = self._bound(schema, minimum, where, 0, _MAX_REPEATS) or 0
        high = self._bound(schema, maximum, where, 0, _MAX_REPEATS)
        if high is not None and low > high:
            raise self.refuse(where, f"{minimum} is above {maximum}")
        return low, high

    def _bound(self, schema: Schema, keyword: str, where: str, low: int, high: int) -> int | None:
        """The keyword's value; None where the schema does not have it."""
        if keyword not in schema:
            return None
        bound = schema[keyword]
        # True is an int to Python, and not to JSON.
        if not isinstance(bound, int) or isinstance(bound, bool) or not low <= bound <= high:
            raise self.refuse(where, f"{keyword} must be an integer from {low} to {high}")
        return bound


def ebnf(schema: str, param: str, max_nodes: int) -> str:
    """A grammar whose root is a JSON value that the schema allows.

    schema: JSON text. param: the request's field, for errors. max_nodes: how many parts the schema may have.
    Raises ApiError 400 for a schema that is invalid, or that no grammar can enforce.
    """
    writer = _Writer(param, max_nodes)
    return writer.finish(f"root ::= {writer.document(schema)}")


def ebnf_of_calls(
    calls: list[tuple[str, str, str]], around: tuple[str, str, str], max_calls: int, param: str, max_nodes: int
) -> str:
    """A grammar of 1 to `max_calls` tool calls.

    calls: for each tool the text before its arguments, their schema (JSON text), and the text after them. around: the
    texts before the first call, between two calls, and after the last. The rest, and errors, as in `ebnf`.
    """
    writer = _Writer(param, max_nodes)
    call = " | ".join(
        f"({quoted(before)} {writer.document(schema)} {quoted(after)})" for before, schema, after in calls
    )
    first, between, last = map(quoted, around)
    return writer.finish(f"root ::= {first} call ({between} call){repeat(0, max_calls - 1)} {last}", f"call ::= {call}")


def _shown(value: object) -> str:
    """A part of the schema in an error message."""
    return _cut(json.dumps(value, ensure_ascii=False), 60)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else f"{text[:max_chars]}…"
