"""Every regular expression takes time in proportion to its text, whatever the text is: a client may send megabytes."""

import ast
import importlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from re import _constants as constants
from re import _parser as sre_parser
from typing import Any

import pytest

from tests.conftest import parsed

ROOT = Path(__file__).parents[2]
SEARCHES = {"match", "fullmatch", "search", "findall", "finditer", "split", "sub", "subn"}
INLINE = {"deployments/api/protocol/openapi.py", "cluster/serve_config.py", "deployments/generation/control_tokens.py"}
"""What has an expression inside a function. No client's text comes to the first two; the last is built from a model's
tokens, and tests/security/test_control_tokens.py measures it."""
NO_CLIENT = {
    "cluster.commands",
    "cluster.kubernetes",
    "cluster.plan",
    "cluster.bench",
    "cluster.doctor",
    "cluster.launch",
}
"""These read what the operator types, and what Ray and Serve write."""
LONG = 1 << 20
"""Characters of a text for each letter of the alphabet, and for some of its pairs."""
PAIRS = LONG if "DRAY_TEST_ALL_PAIRS" in os.environ else 1 << 14
"""Characters of a text for each other pair: 1 MB for each would take an hour (DRAY_TEST_ALL_PAIRS=1)."""
SAMPLE = 8

ENOUGH_S = 0.05
"""Less is not compared: an expression that is not linear takes far more for a text of 1 MB."""


def files() -> Iterator[Path]:
    for top in ("deployments", "cluster"):
        yield from sorted((ROOT / top).rglob("*.py"))


def patterns_in(value: object) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple | list | set | frozenset):
        for member in value:
            yield from patterns_in(member)
    elif isinstance(value, dict):
        yield from patterns_in([*value, *value.values()])


def uses_of(name: str, source: str) -> list[str]:
    """The methods by which a module searches with the pattern of this name; with one in a table: unanchored ones."""
    found = sorted(set(re.findall(rf"\b{name}\.(\w+)\(", source)) & SEARCHES)
    return found or ["search", "sub"]


def compiled() -> Iterator[tuple[str, re.Pattern[str], str]]:
    for file in files():
        source = file.read_text()
        if "re.compile(" not in source:
            continue
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if any(module.startswith(excluded) for excluded in NO_CLIENT):
            continue
        for name, value in vars(importlib.import_module(module)).items():
            for number, pattern in enumerate(patterns_in(value)):
                for method in uses_of(name, source):
                    yield f"{module}.{name}[{number}].{method}", pattern, method


FOUND = list(compiled())


def alphabet(pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The words that the pattern spells, and single characters: those of its words and some of each of its classes."""
    words, letters = [], {"\x00", "a", "A", " ", "\n", ",", "1", "是"}

    def visit(parsed: Any) -> None:
        word = ""
        for operation, argument in parsed:
            if operation is constants.LITERAL:
                word += chr(argument)
                letters.add(chr(argument))
                continue
            words.append(word)
            word = ""
            for part in argument if isinstance(argument, tuple | list) else (argument,):
                for inner in part if isinstance(part, list) else (part,):
                    if isinstance(inner, sre_parser.SubPattern):
                        visit(inner)
                    elif isinstance(inner, tuple) and inner[0] is constants.LITERAL:
                        letters.add(chr(inner[1]))
        words.append(word)

    visit(sre_parser.parse(pattern.pattern, pattern.flags))
    return sorted({word for word in words if len(word) > 1}, key=len)[-8:], sorted(letters)[:24]


def seconds(search: Callable[[str], object], text: str, tries: int = 1) -> float:
    times = []
    for _ in range(tries):
        started = time.thread_time()  # of this thread alone: the machine may be busy
        search(text)
        times.append(time.thread_time() - started)
    return min(times)


def check_linear(search: Callable[[str], object], text_of: Callable[[int], str], size: int, name: str) -> None:
    """Fails where four times the text takes more than eight times the time: quadratic would be sixteen times.

    Short texts first, as a long one would take hours.
    """
    length = 1 << 8
    while length < size and seconds(search, text_of(length)) < ENOUGH_S:
        length *= 2
    if length >= size:
        return
    for _ in range(3):
        once, longer = (seconds(search, text_of(count), 2) for count in (length, 4 * length))
        if longer < 8 * once:
            return
    pytest.fail(f"{name}: {length} characters take {once:.3f} s, four times as many {longer:.3f} s; {text_of(40)!r}")


def searcher(pattern: re.Pattern[str], method: str) -> Callable[[str], object]:
    if method in ("sub", "subn"):
        return lambda text: pattern.sub("", text)
    if method == "finditer":
        return lambda text: list(pattern.finditer(text))
    return lambda text: getattr(pattern, method)(text)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern", "method"), FOUND, ids=[name for name, _, _ in FOUND])
def test_time_grows_no_faster_than_the_text(name: str, pattern: re.Pattern[str], method: str) -> None:
    search = searcher(pattern, method)
    words, letters = alphabet(pattern)
    for unit in [*words, *letters]:
        for start in ["", *words[-2:]]:
            size = PAIRS if start else LONG
            check_linear(search, lambda size, s=start, u=unit: s + u * (size // len(u)) + "\x00", size, name)  # type: ignore[misc]
    pairs = [*product([*words[-4:], *letters], letters)]
    sample = set(random.Random(name).sample(pairs, min(SAMPLE, len(pairs))))
    for first, second in pairs:
        unit, size = first + second, LONG if (first, second) in sample else PAIRS
        check_linear(search, lambda size, u=unit: u * (size // len(u)) + "\x00", size, name)  # type: ignore[misc]


@pytest.mark.slow
def test_the_check_finds_expressions_that_are_not_linear() -> None:
    for expression, text in ((r"[\s?.]+$", " "), (r"(?:[,\s]*(?:呢|呀))+$", "呢")):
        pattern = re.compile(expression)
        with pytest.raises(pytest.fail.Exception, match="four times as many"):
            check_linear(pattern.search, lambda size, t=text: t * size + "\x00", LONG, expression)  # type: ignore[misc]


def test_expressions_are_compiled_where_the_check_finds_them() -> None:
    """At the top of a module: one inside a function would be checked by nobody."""
    for file in files():
        path = str(file.relative_to(ROOT))
        if path in INLINE or any(path.replace("/", ".").startswith(excluded) for excluded in NO_CLIENT):
            continue
        for function in [
            node for node in ast.walk(parsed(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]:
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "re":
                    assert node.attr in ("Match", "Pattern", "escape"), f"{path}:{node.lineno} uses re.{node.attr}"


def test_the_scan_finds_the_expressions_that_are_known() -> None:
    modules = {name.rpartition("[")[0].rpartition(".")[0] for name, _, _ in FOUND}
    assert {"deployments.cache.equivalence", "deployments.generation.tool_parser", "cluster.records.teams"} <= modules
