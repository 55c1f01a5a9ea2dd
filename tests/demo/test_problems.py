"""The problems that the bundled model was trained on: equations are true, held-out problems are never trained on."""

import random
import re

import pytest

from demo.fixed import FIXED
from demo.phrasings import TEMPLATES, phrase
from demo.problems import ARITHMETIC, FAMILIES, Problem, held_out, make

_EQUATION = re.compile(r"(?<![\d=])((?:\d+[+\-×])+\d+|\d+÷\d+)=(-?\d+)(?:余(\d+)| rest (\d+))?")


def problems(family: str, split: str, count: int = 400) -> list[Problem]:
    rng = random.Random(11)
    return [make(rng, family, rng.choice(("zh", "en")), split) for _ in range(count)]  # type: ignore[arg-type]


def value(left: str) -> int:
    """The value of a sum of products, such as 12-3×4."""
    total, product, sign = 0, 0, 1
    for operator, digits in re.findall(r"([+\-×]?)(\d+)", left):
        if operator == "×":
            product *= int(digits)
        else:
            total += sign * product
            product, sign = int(digits), -1 if operator == "-" else 1
    return total + sign * product


@pytest.mark.parametrize("family", ARITHMETIC)
@pytest.mark.parametrize("split", ["train", "numbers", "phrasings"])
def test_every_equation_in_a_thought_is_true(family: str, split: str) -> None:
    checked = 0
    for problem in problems(family, split):
        for left, right, rest_zh, rest_en in _EQUATION.findall(problem.thinking):
            checked += 1
            if "÷" in left:
                number, by = map(int, left.split("÷"))
                assert divmod(number, by) == (int(right), int(rest_zh or rest_en or 0)), problem
            else:
                assert value(left) == int(right), (left, right, problem)
    assert checked > 400


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_contains_the_expected_text(family: str) -> None:
    for problem in problems(family, "train"):
        assert all(part in problem.answer for part in problem.expect), problem
        assert problem.question.strip() and problem.thinking and "</think>" not in problem.thinking


def test_held_out_numbers_are_never_trained() -> None:
    # The other families have few different answers, so those of held-out numbers are trained with other numbers.
    for family in ("add", "subtract", "multiply"):
        trained = {problem.expect for problem in problems(family, "train", 2000)}
        held = {problem.expect for problem in problems(family, "numbers", 300)}
        assert not trained & held
    share = sum(held_out("add", a, b) for a in range(100) for b in range(100)) / 10_000
    assert 0.08 < share < 0.13


def test_held_out_phrasings_are_never_trained() -> None:
    def letters(text: str) -> str:
        return re.sub(r"[^\w{}]", "", text).lower()

    rng = random.Random(3)
    for family, languages in (TEMPLATES | FIXED).items():
        for language, listed in languages.items():
            held = {letters(phrase(rng, family, listed, language, held=True)) for _ in range(200)}
            trained = {letters(phrase(rng, family, listed, language, held=False)) for _ in range(2000)}
            assert len(held) >= 2 and len(trained) > 100, (family, language)
            assert not held & trained, (family, language)


@pytest.mark.parametrize("family", ["cage", "multiply"])
def test_answers_are_right_by_independent_arithmetic(family: str) -> None:
    for problem in problems(family, "numbers"):
        a, b = map(int, re.search(r"(\d+)\D+(\d+)", problem.question).groups())  # type: ignore[union-attr]
        if family == "multiply":
            assert f"={a * b}" in problem.answer
        elif "无解" not in problem.answer and "No solution" not in problem.answer:
            two, four = map(int, re.findall(r"\d+", problem.answer))
            assert {two + four, 2 * two + 4 * four} == {a, b}
