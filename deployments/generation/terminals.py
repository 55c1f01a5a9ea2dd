"""EBNF expressions, in XGrammar's notation, for JSON: literals, strings, numbers, and rules that all grammars share."""

import json

MAX_DIGITS = 18
"""Longest integer: any number of this many digits fits into 64 bits. The rules below repeat it (17 after the first)."""

BASE_RULES = r"""
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
"""Rules that every grammar ends with. White space is at most one space: small models would emit it forever."""

FORMATS = {
    "date-time": '"\\"" date "T" time "\\""',
    "date": '"\\"" date "\\""',
    "time": '"\\"" time "\\""',
    "uuid": '"\\"" hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12} "\\""',
    "ipv4": '"\\"" [0-9]{1,3} "." [0-9]{1,3} "." [0-9]{1,3} "." [0-9]{1,3} "\\""',
    "email": '"\\"" [a-zA-Z0-9._%+-]+ "@" [a-zA-Z0-9-]+ ("." [a-zA-Z0-9-]+)+ "\\""',
}
"""JSON strings by JSON Schema's `format`."""


def literal(value: object) -> str:
    """A terminal for exactly this JSON value."""
    return quoted(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def quoted(text: str) -> str:
    """A terminal for exactly this text."""
    return '"' + "".join(map(_escaped, text)) + '"'


def repeat(low: int, high: int | None) -> str:
    """The suffix that repeats an expression `low` to `high` times; None: any number of times."""
    if high is None:
        return "*" if low == 0 else f"{{{low},}}"
    return f"{{{low},{high}}}"


def integers(low: int | None, high: int | None) -> str:
    """An expression for the integers from `low` to `high`, both included; None: no bound on that side."""
    options = []
    if low is None or low < 0:
        options.append(f'"-" ({_natural(1 if high is None or high >= 0 else -high, None if low is None else -low)})')
    if high is None or high >= 0:
        options.append(_natural(max(0, low or 0), high))
    return " | ".join(options)


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _natural(low: int, high: int | None) -> str:
    """Integers from `low` to `high` without a sign."""
    longest = len(str(low if high is None else high))
    options = [] if high is not None else [f"[1-9] [0-9]{{{longest},{max(longest, MAX_DIGITS - 1)}}}"]
    for digits in range(len(str(low)), longest + 1):
        first, last = max(low, 10 ** (digits - 1) if digits > 1 else 0), 10**digits - 1
        options.append(_between(str(first), str(last if high is None else min(last, high))))
    return " | ".join(options)


def _between(low: str, high: str) -> str:
    """Integers from `low` to `high`, which have the same number of digits."""
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
