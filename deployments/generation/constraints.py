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
_NOT_ALLOWED = re.compile(r'%\w*|[<@/"]')


def constraint_grammar(constraint: Constraint, max_parts: int) -> Grammar:
    """The grammar for an answer. max_parts: its maximum size, in parts of a schema.

    Raises ApiError 400 for one that is invalid, too large, or cannot be enforced.
    """
    if (parts := _cost(constraint)) > max_parts:
        raise _refusal(f"it is too large: it counts {parts} parts; the maximum is {max_parts}")
    grammar = _GRAMMARS[constraint.kind](constraint)
    if error := grammar_error(grammar, CLIENT_LIMITS):
        raise _refusal(error)
    return Grammar(grammar)


def _cost(constraint: Constraint) -> int:
    if constraint.kind == "choice":
        return sum(1 + schema_cost.of_text(text) for text in constraint.texts)
    return schema_cost.of_pattern(constraint.texts[0])


def _client_grammar(constraint: Constraint) -> str:
    try:
        grammar = lark_grammar(constraint.texts[0])
    except ValueError as error:
        raise _refusal(str(error)) from None
    bare = _LIBRARY.sub(" ", _QUOTED.sub(" ", grammar))
    if found := _NOT_ALLOWED.search(bare):
        raise _refusal(
            f"{found[0]!r} is not supported; write rules, texts and regular expressions, or a json_schema instead"
        )
    return grammar


def _refusal(message: str) -> ApiError:
    return invalid_request(
        FORMAT_FIELD, f"The answer cannot be held to this: {shortened(message, 200)}.", code="invalid_grammar"
    )


_GRAMMARS: dict[str, Callable[[Constraint], str]] = {
    "regex": lambda constraint: regex_grammar(constraint.texts[0]),
    "choice": lambda constraint: choice_grammar(constraint.texts),
    "grammar": _client_grammar,
}
