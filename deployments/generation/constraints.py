"""Grammars of answers that are no JSON: a regular expression, one of several texts, or a client's own grammar.

A client's grammar may use rules, texts, regular expressions and llguidance's library. What else llguidance's Lark has
is refused: JSON Schemas there would pass by the checks of `schemas.py`, and single tokens are not for clients.
Source: docs/syntax.md of llguidance 1.9.
"""

import re
from collections.abc import Callable

from deployments.common.errors import ApiError, invalid_request, shortened
from deployments.common.grammars import CLIENT_LIMITS, choice_grammar, grammar_error, lark_grammar, regex_grammar
from deployments.common.messages import Grammar
from deployments.common.types import Constraint
from deployments.generation import schema_cost
from deployments.generation.context import FORMAT_FIELD

_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*')
"""Texts, regular expressions and comments. What llguidance takes for one and this does not leaves a quotation mark or
a slash."""
_LIBRARY = re.compile(r"%(?:ignore|import)\b|%llguidance \{\}")
_RULE = re.compile(r"^\s*[?!]?([A-Za-z_]\w*)[^:\n]*:|(\|)", re.MULTILINE)
"""The start of a rule or terminal, or one of its further alternatives."""
_NOT_ALLOWED = re.compile(r'%\w*|[<@/"]')


def constraint_grammar(constraint: Constraint, max_parts: int) -> Grammar:
    """The grammar for an answer. max_parts: its maximum size, in parts of a schema.

    Raises ApiError 400 for one that is invalid, too large, or cannot be enforced.
    """
    parts = _cost(constraint)
    grammar = _GRAMMARS[constraint.kind](constraint) if parts <= max_parts else ""
    parts = max(parts, schema_cost.of_rules(_alternatives(grammar)) if constraint.kind == "grammar" else 0)
    if parts > max_parts:
        raise _refusal(f"it is too large: it counts {parts} parts; the maximum is {max_parts}")
    if error := grammar_error(grammar, CLIENT_LIMITS):
        raise _refusal(error)
    return Grammar(grammar, foreign=True)


def _cost(constraint: Constraint) -> int:
    if constraint.kind == "choice":
        return sum(1 + schema_cost.of_text(text) for text in constraint.texts)
    return schema_cost.of_pattern(constraint.texts[0])


def _client_grammar(constraint: Constraint) -> str:
    try:
        grammar = lark_grammar(constraint.texts[0])
    except ValueError as error:
        raise _refusal(str(error)) from None
    if found := _NOT_ALLOWED.search(_LIBRARY.sub(" ", _QUOTED.sub(" ", grammar))):
        raise _refusal(
            f"{found[0]!r} is not supported; write rules, texts and regular expressions, or a json_schema instead"
        )
    return grammar


def _alternatives(grammar: str) -> int:
    """How many alternatives the rules have, and not the terminals, whose names are in capitals."""
    alternatives, in_rule = 0, False
    for name, _ in _RULE.findall(_QUOTED.sub(" ", grammar)):
        in_rule = name.islower() if name else in_rule
        alternatives += in_rule
    return alternatives


def _refusal(message: str) -> ApiError:
    return invalid_request(
        FORMAT_FIELD, f"The answer cannot be held to this: {shortened(message, 200)}.", code="invalid_grammar"
    )


_GRAMMARS: dict[str, Callable[[Constraint], str]] = {
    "regex": lambda constraint: regex_grammar(constraint.texts[0]),
    "choice": lambda constraint: choice_grammar(constraint.texts),
    "grammar": _client_grammar,
}
