"""What llguidance may spend on one grammar, the same on routers, which check it, and on engines, which follow it."""

from llguidance import LLMatcher, LLParserLimits

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

MAX_CHARACTERS = 400_000
"""Of a grammar: several times what the limits of a schema's parts allow."""


def json_grammar(schema: str) -> str:
    """The grammar of a JSON value that the schema (JSON text) allows, as llguidance takes it."""
    return f'{{"grammars":[{{"json_schema":{schema}}}]}}'


def grammar_error(grammar: str) -> str:
    """Why llguidance does not take the grammar, in one line; empty if it does."""
    try:
        return first_line(LLMatcher.validate_grammar(grammar, limits=LIMITS))
    except BaseException as error:
        # A panic in Rust is no Exception, so that it would end the process; its class cannot be imported. One is in
        # llguidance 1.9.1's own errors about long values that are not ASCII.
        if type(error).__name__ != "PanicException":
            raise
        return "llguidance failed on it"


def first_line(message: str) -> str:
    """llguidance's message without what it says of its own state, which may contain texts of the client."""
    return message.partition("\n")[0].strip()
