"""What is checked on a schema as a whole: whether a finite value satisfies it, and what llguidance does not take."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from urllib.parse import unquote

from deployments.common.errors import shortened
from deployments.common.grammars import grammar_error, json_grammar

Schema = dict[str, object]
Prepared = Schema | bool
"""A schema whose parts have been checked: every keyword holds what it should."""

MAX_NUMBER = 2**53
"""llguidance 1.9.1 computes in floating point, in which larger integers run together, and dies of const -2^63."""
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
"""What llguidance holds. Any other format is an annotation, as JSON Schema has it."""
_LOOKAROUND = re.compile(r"\(\?<?[=!]")
_MAX_SEARCH_S = 0.1
"""For the place of an error, which is only there to help."""


def is_held_format(name: object) -> bool:
    """Whether this is the name of a format to which a text can be held."""
    return isinstance(name, str) and name in _FORMATS


def adds_nothing(keyword: str, value: object, schema: Schema) -> bool:
    """Whether a keyword that cannot be held says nothing that others do not, as zod writes them: names of properties
    are texts, and an address has a pattern with lookaround beside its format."""
    if keyword == "propertyNames":
        return value in (True, {}, {"type": "string"})
    lookaround = keyword == "pattern" and isinstance(value, str) and _LOOKAROUND.search(value)
    return bool(lookaround) and is_held_format(schema.get("format"))


def text_of(schema: Prepared, definitions: Sequence[Prepared], options: Schema) -> str:
    """The schema as JSON text, with all definitions. options: llguidance's."""
    document: Schema = schema if isinstance(schema, dict) else {} if schema else {"allOf": [False]}
    numbered = {str(number): definition for number, definition in enumerate(definitions)}
    return json.dumps({**document, "$defs": numbered, "x-guidance": options}, ensure_ascii=False)


def numbers_in(value: object) -> Iterator[int | float]:
    """All numbers in a JSON value."""
    pending = [value]
    while pending:
        member = pending.pop()
        if isinstance(member, dict):
            pending += member.values()
        elif isinstance(member, list):
            pending += member
        elif isinstance(member, int | float):
            yield member


def is_exact(number: int | float) -> bool:
    """Whether llguidance can hold a value to be this very number."""
    few_digits = isinstance(number, int) or len(Decimal(repr(number)).as_tuple().digits) <= 15
    return abs(number) <= MAX_NUMBER and few_digits


def without_near_exclusive_bounds(schema: Schema) -> Schema:
    """The schema, with an inclusive bound in place of an exclusive one within 1 of the other side's.

    llguidance 1.9.1 takes the bound itself then, if it is an integer. The new bound is a thousandth of the range
    further in: what satisfies it satisfies the old one.
    """
    changed = dict(schema)
    for bound, inclusive, others in (
        ("exclusiveMinimum", "minimum", ("maximum", "exclusiveMaximum")),
        ("exclusiveMaximum", "maximum", ("minimum", "exclusiveMinimum")),
    ):
        values = [float(schema[other]) for other in others if type(schema.get(other)) in (int, float)]  # type: ignore[arg-type]
        if values and type(schema.get(bound)) in (int, float):
            start = float(schema[bound])  # type: ignore[arg-type]
            end = min(values, key=lambda value: abs(value - start))
            if 0 < abs(end - start) < 1 and inclusive not in schema:
                del changed[bound]
                changed[inclusive] = start + (end - start) / 1000
    return changed


def pointed_to(document: object, reference: str) -> object:
    """What a JSON pointer points to, such as `#/$defs/a`. Raises LookupError."""
    place = document
    for part in reference.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict):
            place = place[key]
        elif isinstance(place, list) and key.isascii() and key.isdigit() and len(key) < 10:
            place = place[int(key)]
        else:
            raise LookupError(reference)
    return place


def finite_definitions(definitions: Sequence[Prepared]) -> set[str]:
    """The references to those definitions that a finite value can satisfy: not, say, a list that needs itself."""
    finite: set[str] = set()
    while True:
        # Backwards, as a definition mostly refers to later ones.
        found = {
            f"#/$defs/{number}"
            for number in range(len(definitions) - 1, -1, -1)
            if f"#/$defs/{number}" not in finite and is_finite(definitions[number], finite)
        }
        if not found:
            return finite
        finite |= found


def is_finite(schema: object, finite: set[str]) -> bool:
    """Whether a finite value can satisfy the schema. finite: the references of which that is known."""
    if not isinstance(schema, dict):
        return schema is not False
    if "$ref" in schema and schema["$ref"] not in finite:
        return False
    if not all(is_finite(part, finite) for part in schema.get("allOf", ())):
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and not any(is_finite(option, finite) for option in schema[keyword]):
            return False
    if "const" in schema or "enum" in schema or "type" not in schema:
        return True
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    checks: dict[str, Callable[[Schema, set[str]], bool]] = {"object": _object_is_finite, "array": _array_is_finite}
    return any(name not in checks or checks[name](schema, finite) for name in types)


def _object_is_finite(schema: Schema, finite: set[str]) -> bool:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    assert isinstance(properties, dict) and isinstance(required, list)
    return all(is_finite(properties.get(name, True), finite) for name in required)


def _array_is_finite(schema: Schema, finite: set[str]) -> bool:
    first, fewest = schema.get("prefixItems", []), schema.get("minItems", 0)
    assert isinstance(first, list) and isinstance(fewest, int)
    needed = [*first[:fewest], *([schema.get("items", True)] if fewest > len(first) else [])]
    return all(is_finite(item, finite) for item in needed)


def are_tagged(options: object, definitions: Sequence[Prepared]) -> bool:
    """Whether the schemas are of objects that some required property tells apart: it has other texts in each."""
    assert isinstance(options, list)
    schemas = [_behind_reference(option, definitions) for option in options]
    tags: dict[str, list[set[str]]] = {}
    for schema in schemas:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        assert isinstance(properties, dict) and isinstance(required, list)
        for name in set(required) if schema.get("type") == "object" else ():
            if texts := _texts_of(properties.get(name)):
                tags.setdefault(name, []).append(texts)
    return any(len(rows) == len(schemas) and len(set().union(*rows)) == sum(map(len, rows)) for rows in tags.values())


def _behind_reference(schema: Prepared, definitions: Sequence[Prepared]) -> Schema:
    """The schema, or what it refers to and nothing else."""
    if isinstance(schema, dict) and schema.keys() == {"$ref"}:
        schema = definitions[int(str(schema["$ref"]).rpartition("/")[2])]
    return schema if isinstance(schema, dict) else {}


def _texts_of(schema: object) -> set[str]:
    """The only texts that the schema allows; empty if it allows anything else."""
    if not isinstance(schema, dict):
        return set()
    options = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return set(options) if all(isinstance(option, str) for option in options) else set()


def place_of_fault(
    schema: Prepared, definitions: Sequence[Prepared], targets: Sequence[str], options: Schema, error: str
) -> tuple[str, str]:
    """The path of the smallest part that llguidance does not take, as its errors name no place; and its error there.

    targets: the reference to each definition in the client's schema. error: of the whole schema.
    """
    until = time.monotonic() + _MAX_SEARCH_S

    def within(part: Prepared, where: str) -> tuple[str, str] | None:
        if part is False or time.monotonic() > until:
            return None
        fault = grammar_error(json_grammar(text_of(part, definitions, options)))
        if not fault:
            return None
        found = (within(inner, f"{where}/{path}") for path, inner in _parts(part))
        return next(filter(None, found), (where, fault))

    # Definitions that others refer to come later, so the last ones first.
    places = [*zip(reversed(definitions), reversed(targets), strict=True), (schema, "")]
    found = (within(part, where.removeprefix("#")) for part, where in places)
    return next(filter(None, found), ("", error))


def _parts(schema: Prepared) -> Iterator[tuple[str, Prepared]]:
    """The schemas directly within one, with their paths."""
    for keyword, value in schema.items() if isinstance(schema, dict) else ():
        if keyword in ("items", "additionalProperties"):
            yield keyword, value  # type: ignore[misc]
        elif keyword in ("properties", "patternProperties"):
            assert isinstance(value, dict)
            yield from ((f"{keyword}/{shortened(name)}", part) for name, part in value.items())
        elif keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
            assert isinstance(value, list)
            yield from ((f"{keyword}/{index}", part) for index, part in enumerate(value))
