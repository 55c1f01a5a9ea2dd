"""Regular expressions, choices and grammars of clients: what is written under them is what they allow."""

import re

import pytest

from cluster.models.folder import BUNDLED_FOLDER
from deployments.common.errors import ApiError
from deployments.common.types import Constraint
from deployments.generation.constraints import constraint_grammar
from tests.deployments.grammars import Walker

MAX_PARTS = 1000


@pytest.fixture(scope="module")
def walker() -> Walker:
    """The bundled model, with more logits than its tokenizer has tokens."""
    return Walker(BUNDLED_FOLDER, 2080, [1])


def written(walker: Walker, constraint: Constraint, walks: int = 6) -> set[str]:
    """What random walks write to the end."""
    grammar = constraint_grammar(constraint, MAX_PARTS)
    results = [walker.walk(grammar, seed) for seed in range(walks)]
    return {text for text, ended in results if ended}


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{3}-\d{4}",
        r"^\d{3}-\d{4}$",
        r"^yes|no$",
        r"[a-z]{2,5}@[a-z]{2,5}\.(com|org)\n",
        r"a/b\/c",
        'say "x" \\\\',
        r"cost: \$",
        "two\nlines",
        r"[\u4e00-\u4eff]{1,2}",
        r"(?:\w{1,4} ){2}",
    ],
)
def test_an_answer_matches_the_regular_expression_as_a_whole(walker: Walker, pattern: str) -> None:
    texts = written(walker, Constraint("regex", (pattern,)))
    whole = pattern.removeprefix("^").removesuffix("$") if not pattern.endswith(r"\$") else pattern
    assert texts and all(re.fullmatch(whole, text) for text in texts), texts


def test_an_answer_is_one_of_the_choices(walker: Walker) -> None:
    choices = ("yes", "yes, but", "否", 'a "quoted" one', "back\\slash", "two\nlines", "😀")
    assert written(walker, Constraint("choice", choices), 40) <= set(choices)
    for choice in choices:
        assert written(walker, Constraint("choice", (choice,)), 1) == {choice}


SQL = """
root ::= select_statement  # as in the examples of vLLM

select_statement ::= "SELECT " column " from " table " where " condition

column ::= "col_1 " | "col_2 "
table ::= "table_1 "
  | "table_2 "
condition ::= column "= " number
number ::= "1 " | "2 "
"""
CALC = r"""
?start: sum
sum: NUMBER (("+" | "-") NUMBER){0,3}
NUMBER: /[1-9][0-9]{0,2}/
%ignore / /
"""
LIBRARY = """
start: INT "," INT
%import common.INT
"""
LINES = """
root ::= ("- " [^\\n]{1,5} "\\n"){1,3}
"""
GRAMMARS = {
    SQL: r"SELECT col_[12]  from table_[12]  where col_[12] = [12] ",
    CALC: r" ?[1-9]\d{0,2}( *[+-] *[1-9]\d{0,2}){0,3} *",
    LIBRARY: r"\d+,\d+",
    LINES: r"(- [^\n]{1,5}\n){1,3}",
}


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_an_answer_fits_the_grammar(walker: Walker, grammar: str) -> None:
    texts = written(walker, Constraint("grammar", (grammar,)), 12)
    assert texts and all(re.fullmatch(GRAMMARS[grammar], text) for text in texts), texts


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Constraint("regex", ("(?=a)b",)), "regex"),
        (Constraint("regex", ("(a",)), "regex"),
        (Constraint("regex", ("a" * 6000,)), "too large"),
        (Constraint("choice", ("x",) * 1001), "too large"),
        (Constraint("grammar", ("start: nothing",)), "unknown name"),
        (Constraint("grammar", ('root ::= "a',)), "end of input"),
        (Constraint("grammar", ('root ::= "a\\',)), "too early"),
        (Constraint("grammar", ('other ::= "a"',)), "'root'"),
        (Constraint("grammar", (" ",)), "mpty"),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_reason(constraint: Constraint, words: str) -> None:
    with pytest.raises(ApiError, match=words) as refusal:
        constraint_grammar(constraint, MAX_PARTS)
    assert refusal.value.status == 400
