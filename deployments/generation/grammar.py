"""JSON Schema to the grammar that holds an engine's output to it.

XGrammar could read the schema itself, and ends the engine on one that it does not understand. So schemas are turned to
EBNF here, where what cannot be held to is refused by name; white space is held to one space, since small models
otherwise go on with white space for ever. Properties come in the schema's order. Source of the rules: JSON Schema
2020-12, and the EBNF that XGrammar documents.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from deployments.common.errors import ApiError, invalid_request

_BASE = r"""
ws ::= " "?
json ::= json-object | json-array | json-string | json-number | "true" | "false" | "null"
json-object ::= "{" ws (json-pair (ws "," ws json-pair)*)? ws "}"
json-pair ::= json-string ws ":" ws json
json-array ::= "[" ws (json (ws "," ws json)*)? ws "]"
json-string ::= "\"" json-char* "\""
json-char ::= [^"\\\x00-\x1f\x7f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
json-integer ::= "-"? ("0" | [1-9] [0-9]{0,17})
json-number ::= json-integer ("." [0-9]{1,17})? ([eE] [+-]? [0-9]{1,3})?
date ::= [0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,9})? ("Z" | [+-] [0-9]{2} ":" [0-9]{2})
hex ::= [0-9a-fA-F]
"""
_FORMATS = {
    "date-time": '"\\"" date "T" time "\\""',
    "date": '"\\"" date "\\""',
    "time": '"\\"" time "\\""',
    "uuid": '"\\"" hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12} "\\""',
    "ipv4": '"\\"" [0-9]{1,3} "." [0-9]{1,3} "." [0-9]{1,3} "." [0-9]{1,3} "\\""',
    "email": '"\\"" [a-zA-Z0-9._%+-]+ "@" [a-zA-Z0-9-]+ ("." [a-zA-Z0-9-]+)+ "\\""',
}
# Said of a value and no constraint on it.
_NOTES = frozenset(
    {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly"}
)
_KNOWN = {
    "string": {"minLength", "maxLength", "format"},
    "integer": {"minimum", "maximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_MOST_REPEATS = 1000
_MOST_DIGITS = 18


@dataclass(slots=True)
class _Writer:
    """The rules written so far, of one or more schemas. param: the request's field, for errors."""

    param: str
    most_nodes: int
    rules: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    root: Any = None
    references: dict[str, str] = field(default_factory=dict)

    def document(self, schema: str) -> str:
        """An expression for a value that this schema (JSON text) allows."""
        self.root, self.references = json.loads(schema), {}
        return self.value(self.root, "")

    def finish(self, *first: str) -> str:
        """The whole grammar, behind these rules."""
        return "\n".join([*first, *(f"{name} ::= {body}" for name, body in self.rules.items())]) + _BASE

    def refuse(self, where: str, message: str) -> ApiError:
        return invalid_request(self.param, f"Schema at {where or '#'}: {message}.", code="invalid_json_schema")

    def rule(self, body: str) -> str:
        """Adds a rule; gives its name."""
        name = f"r{len(self.rules)}"
        self.rules[name] = body
        return name

    def value(self, schema: Any, where: str) -> str:
        """An expression for a value that the schema allows."""
        self.nodes += 1
        if self.nodes > self.most_nodes:
            raise self.refuse(where, f"more than {self.most_nodes} parts; make the schema smaller")
        if schema is True or schema == {}:
            return "json"
        if not isinstance(schema, dict):
            raise self.refuse(where, "it must be an object")
        if "$ref" in schema:
            return self._reference(schema["$ref"], where)
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return self._enum(schema["enum"], where)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self._any_of(schema, several, where)
        if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
            return self.value(schema["allOf"][0], f"{where}/allOf/0")
        kinds = schema.get("type", "object" if "properties" in schema else None)
        if isinstance(kinds, list):
            if not kinds:
                raise self.refuse(where, "type names nothing")
            return self.rule(" | ".join(self._typed({**schema, "type": kind}, where, among=kinds) for kind in kinds))
        return self._typed({**schema, "type": kinds}, where, among=[kinds])

    def _reference(self, target: Any, where: str) -> str:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise self.refuse(where, f"$ref {target!r} does not point into this schema")
        if target not in self.references:
            found: Any = self.root
            for part in target.split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                if not isinstance(found, dict) or key not in found:
                    raise self.refuse(where, f"$ref {target!r} points to nothing")
                found = found[key]
            # Named before it is written: a schema may refer to itself.
            name = self.references[target] = self.rule("")
            body = self.value(found, target)
            if body == name:
                raise self.refuse(where, f"$ref {target!r} refers to nothing but itself")
            self.rules[name] = body
        return self.references[target]

    def _enum(self, values: Any, where: str) -> str:
        if not isinstance(values, list) or not values:
            raise self.refuse(where, "enum must be a list of values")
        self.nodes += len(values)
        return self.rule(" | ".join(map(_literal, values)))

    def _any_of(self, schema: dict[str, Any], name: str, where: str) -> str:
        options = schema[name]
        if not isinstance(options, list) or not options:
            raise self.refuse(where, f"{name} must be a list of schemas")
        self._only(schema, {name, "type", "$defs", "definitions", "discriminator"}, where)
        return self.rule(" | ".join(self.value(one, f"{where}/{name}/{n}") for n, one in enumerate(options)))

    def _typed(self, schema: dict[str, Any], where: str, among: list[Any]) -> str:
        kind = schema["type"]
        if kind is None:
            self._only(schema, {"type", "$defs", "definitions"}, where)
            return "json"
        if kind not in _KNOWN:
            raise self.refuse(where, f"type {kind!r} is no JSON type")
        known = set[str]().union(*(_KNOWN.get(one, set()) for one in among))
        self._only(schema, known | {"type", "$defs", "definitions"}, where)
        if kind == "object":
            return self._object(schema, where)
        if kind == "array":
            return self._array(schema, where)
        if kind == "string":
            return self._string(schema, where)
        if kind == "integer":
            return self._integer(schema, where)
        return {"number": "json-number", "boolean": '("true" | "false")', "null": '"null"'}[kind]

    def _only(self, schema: dict[str, Any], known: set[str], where: str) -> None:
        if strange := sorted(schema.keys() - known - _NOTES):
            raise self.refuse(where, f"{strange[0]!r} cannot be held to; leave it out or say it in the description")

    def _object(self, schema: dict[str, Any], where: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise self.refuse(where, "properties must be an object, and required a list of their names")
        if missing := [name for name in required if name not in properties]:
            raise self.refuse(where, f"required names {missing[0]!r}, which is not among the properties")
        extra = schema.get("additionalProperties", not properties)
        if properties and extra is not False and "additionalProperties" in schema:
            raise self.refuse(where, "additionalProperties beside properties must be false")
        if not properties:
            if extra is False:
                return '"{" ws "}"'
            value = self.value({} if extra is True else extra, f"{where}/additionalProperties")
            pair = f'json-string ws ":" ws {value}'
            return self.rule(f'"{{" ws ({pair} (ws "," ws {pair})*)? ws "}}"')
        pairs = [
            (f'{_literal(name)} ws ":" ws {self.value(one, f"{where}/properties/{name}")}', name in required)
            for name, one in properties.items()
        ]
        return self.rule(f'"{{" ws {self._in_order(pairs)} ws "}}"')

    def _in_order(self, pairs: list[tuple[str, bool]]) -> str:
        """The pairs in their order, those not required left out or not, commas between those that are there."""
        # From the end: `after` continues behind a pair that is there, `start` begins where none is yet.
        after = start = '""'
        for pair, required in reversed(pairs):
            going_on = self.rule(f'ws "," ws {pair} {after}' if required else f'(ws "," ws {pair} {after}) | {after}')
            start = self.rule(f"{pair} {after}" if required else f"({pair} {after}) | {start}")
            after = going_on
        return start

    def _array(self, schema: dict[str, Any], where: str) -> str:
        least, most = self._bounds(schema, "minItems", "maxItems", where)
        if most == 0:
            return '"[" ws "]"'
        item = self.value(schema.get("items", {}), f"{where}/items")
        more = f'(ws "," ws {item}){_times(max(0, least - 1), None if most is None else most - 1)}'
        inner = f"{item} {more}" if least else f"({item} {more})?"
        return self.rule(f'"[" ws {inner} ws "]"')

    def _string(self, schema: dict[str, Any], where: str) -> str:
        if "format" in schema:
            if schema["format"] not in _FORMATS:
                raise self.refuse(where, f"format {schema['format']!r} is none of {', '.join(_FORMATS)}")
            return self.rule(_FORMATS[schema["format"]])
        least, most = self._bounds(schema, "minLength", "maxLength", where)
        if least == 0 and most is None:
            return "json-string"
        return self.rule(f'"\\"" json-char{_times(least, most)} "\\""')

    def _integer(self, schema: dict[str, Any], where: str) -> str:
        low, high = schema.get("minimum"), schema.get("maximum")
        for bound in (low, high):
            if bound is not None and (type(bound) is not int or abs(bound) >= 10**_MOST_DIGITS):
                raise self.refuse(where, f"minimum and maximum must be integers of at most {_MOST_DIGITS} digits")
        if low is None and high is None:
            return "json-integer"
        if low is not None and high is not None and low > high:
            raise self.refuse(where, "minimum is above maximum")
        return self.rule(integers(low, high))

    def _bounds(self, schema: dict[str, Any], low: str, high: str, where: str) -> tuple[int, int | None]:
        least, most = schema.get(low, 0), schema.get(high)
        for name, bound in ((low, least), (high, most)):
            if bound is not None and (not isinstance(bound, int) or not 0 <= bound <= _MOST_REPEATS):
                raise self.refuse(where, f"{name} must be from 0 to {_MOST_REPEATS}")
        if most is not None and least > most:
            raise self.refuse(where, f"{low} is above {high}")
        return least, most


def ebnf(schema: str, param: str, most_nodes: int) -> str:
    """A grammar whose root is a JSON value that the schema (JSON text) allows.

    Raises ApiError 400 with `param` where the schema is not valid, or asks for what no grammar here holds to.
    """
    writer = _Writer(param, most_nodes)
    return writer.finish(f"root ::= {writer.document(schema)}")


def ebnf_of_calls(
    calls: list[tuple[str, str, str]], between: tuple[str, str, str], most: int, param: str, most_nodes: int
) -> str:
    """A grammar of one to `most` tool calls. calls: for each tool the text before its arguments, their schema, and the
    text after them. between: texts before all calls, between two, and after all. Errors as `ebnf`."""
    writer = _Writer(param, most_nodes)
    call = " | ".join(f"({_quoted(one)} {writer.document(schema)} {_quoted(two)})" for one, schema, two in calls)
    first, middle, last = map(_quoted, between)
    return writer.finish(f"root ::= {first} call ({middle} call){_times(0, most - 1)} {last}", f"call ::= {call}")


def integers(low: int | None, high: int | None) -> str:
    """An expression for the whole numbers from `low` to `high`, both included; None: no bound on that side."""
    options = []
    if low is None or low < 0:
        options.append(f'"-" ({_natural(1 if high is None or high >= 0 else -high, None if low is None else -low)})')
    if high is None or high >= 0:
        options.append(_natural(max(0, low or 0), high))
    return " | ".join(options)


def _natural(low: int, high: int | None) -> str:
    """Numbers without a sign."""
    longest = len(str(low if high is None else high))
    options = [] if high is not None else [f"[1-9] [0-9]{{{longest},{max(longest, _MOST_DIGITS - 1)}}}"]
    for digits in range(len(str(low)), longest + 1):
        first, last = max(low, 10 ** (digits - 1) if digits > 1 else 0), 10**digits - 1
        options.append(_between(str(first), str(last if high is None else min(last, high))))
    return " | ".join(options)


def _between(low: str, high: str) -> str:
    """Numbers of as many digits as both have."""
    if not low:
        return '""'
    rest = len(low) - 1
    if low[0] == high[0]:
        return f'"{low[0]}" ({_between(low[1:], high[1:])})'
    options, start, end = [], int(low[0]), int(high[0])
    if set(low[1:]) - {"0"}:
        options.append(f'"{low[0]}" ({_between(low[1:], "9" * rest)})')
        start += 1
    if set(high[1:]) - {"9"}:
        options.append(f'"{high[0]}" ({_between("0" * rest, high[1:])})')
        end -= 1
    if start <= end:
        options.append(f"[{start}-{end}] [0-9]{{{rest}}}" if rest else f"[{start}-{end}]")
    return " | ".join(options)


def _times(least: int, most: int | None) -> str:
    if most is None:
        return "*" if least == 0 else f"{{{least},}}"
    return f"{{{least},{most}}}"


def _literal(value: Any) -> str:
    """A JSON value as a terminal: the text that stands for it."""
    return _quoted(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def _quoted(text: str) -> str:
    """Text as a terminal of the grammar."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(one, one if one.isprintable() else f"\\u{ord(one):04x}") for one in text) + '"'
