"""What llguidance may spend on one grammar, the same on routers, which check it, and on engines, which follow it."""

import json
import re
from collections.abc import Iterable

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import gbnf_to_lark

LIMITS = LLParserLimits(
    # An object with 1,000 optional properties needs 4 items for each; a mask over them, 5 such rows.
    max_items_in_row=4000,
    step_max_items=20_000,
    max_lexer_states=100_000,
    # Else an error repeats the grammar and the text so far.
    verbose_errors=False,
)
"""With these, the worst that attacks have brought about is 0.2 s for a grammar and its first mask, and 0.02 s for a
later step: `tests/security/test_grammars.py`."""

CLIENT_LIMITS = LLParserLimits(
    # What an item takes grows with their number: at 4,000, rules that are ambiguous take minutes for a token.
    max_items_in_row=500,
    step_max_items=5000,
    max_lexer_states=LIMITS.max_lexer_states,
    verbose_errors=False,
    initial_lexer_fuel=200_000,
)
"""For grammars and regular expressions of clients: where each line doubles what the next one means, 40 of them are
beyond all bounds."""

_LARK_START = re.compile(r"^\s*\??start\s*:(?!:=)", re.MULTILINE)

MAX_CHARACTERS = 400_000
"""Of a grammar: several times what the limits of a schema's parts allow."""


def json_grammar(schema: str) -> str:
    """The grammar of a JSON value that the schema (JSON text) allows, as llguidance takes it."""
    return f'{{"grammars":[{{"json_schema":{schema}}}]}}'


def regex_grammar(pattern: str) -> str:
    """The grammar of a text that matches the regular expression as a whole, with or without anchors at its ends."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    return LLMatcher.grammar_from_regex(pattern)


def choice_grammar(texts: Iterable[str]) -> str:
    """The grammar of a text that is one of these. As one terminal, it is cheaper to follow than as a rule."""
    return f"start: CHOICE\nCHOICE: {' | '.join(json.dumps(text, ensure_ascii=False) for text in texts)}"


def lark_grammar(text: str) -> str:
    """A grammar in Lark, of one in Lark or in GBNF, as llama.cpp has it. Raises ValueError for GBNF that is wrong."""
    if "::=" not in text or _LARK_START.search(text):
        return text
    try:
        return gbnf_to_lark(_with_joined_alternatives(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except IndexError:
        raise ValueError("it ends too early") from None
    except Exception as error:  # noqa: BLE001 - the converter raises Exception itself
        raise ValueError(first_line(str(error))) from None


def _with_joined_alternatives(text: str) -> str:
    """GBNF with each rule on one line: the converter does not know alternatives on lines of their own."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and line.lstrip().startswith("|") and "#" not in lines[-1]:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def grammar_error(grammar: str, limits: LLParserLimits = LIMITS) -> str:
    """Why llguidance does not take the grammar, in one line; empty if it does."""
    try:
        return first_line(LLMatcher.validate_grammar(grammar, limits=limits))
    except BaseException as error:
        # A panic in Rust is no Exception, so that it would end the process; its class cannot be imported. One is in
        # llguidance 1.9.1's own errors about long values that are not ASCII.
        if type(error).__name__ != "PanicException":
            raise
        return "llguidance failed on it"


def first_line(message: str) -> str:
    """llguidance's message without what it says of its own state, which may contain texts of the client."""
    return message.partition("\n")[0].strip()
