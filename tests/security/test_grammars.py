"""Schemas made to cost time or memory: neither a router nor an engine takes long over one, and none dies of it."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from deployments.common.errors import ApiError
from deployments.common.grammars import grammar_error, json_grammar
from deployments.common.messages import Grammar
from deployments.common.types import Constraint
from deployments.engine.grammar import GrammarError
from deployments.generation.constraints import constraint_grammar
from deployments.generation.schemas import SchemaPreparer
from tests.conftest import MODEL, redis_server
from tests.deployments.grammars import Walker, large_tokenizer
from tests.deployments.routers import running_router

MAX_PARTS = 1000
SLOWEST_S = 1.0
"""No other stream of an engine may wait longer, nor another request of a router."""
MAX_MEMORY_MB = 300


def nested(depth: int, around: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    for _ in range(depth):
        inner = {**around, "items": inner}
    return inner


def _chain(rule: str, length: int, first: str = "start: {0}0") -> str:
    """Rules of which each refers to the next one."""
    name, sign = rule.partition("{")[0], "::=" if "::=" in rule else ":"
    rules = [rule.format(number, number + 1) for number in range(length)]
    return "\n".join([first.format(name), *rules, f'{name}{length} {sign} "x"'])


def _ambiguous(number: int, sign: str, first: str) -> str:
    """A list of anything, in as many ways."""
    options = " | ".join([f"s r{n}" for n in range(number)] + ['"a"'])
    return "\n".join([first, f"s{sign}{options}", *(f"r{n}{sign}s" for n in range(number))])


ATTACKS: dict[str, dict[str, Any]] = {
    "16 strings of about 400": {"anyOf": [{"type": "string", "minLength": n, "maxLength": 400 + n} for n in range(16)]},
    "300 strings of about 1,000": {
        "anyOf": [{"type": "string", "minLength": n, "maxLength": 1000 + n} for n in range(300)]
    },
    "a value of 2 MB": {"enum": ["x" * 2_000_000]},
    "2 MB of values": {"enum": [f"{n} lorem ipsum dolor sit amet" for n in range(60_000)]},
    "values as large as they may be": {"enum": ["".join(random.Random(n).choices("abc ", k=99)) for n in range(998)]},
    "nested lists": nested(60, {"type": "array"}, {"type": "string"}),
    "nested lists of 1,000": nested(60, {"type": "array", "minItems": 1000, "maxItems": 1000}, {"type": "string"}),
    "a counted repeat of one": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
    "two long repeats": {"type": "string", "pattern": "^.{0,10000}x.{10000}y$"},
    "an exponential automaton": {"type": "string", "pattern": "^.*a.{300}$"},
    "many exponential automatons": {
        "anyOf": [{"type": "string", "pattern": f"{chr(97 + n)}.{{{100 + n}}}"} for n in range(26)]
    },
    "a repeat of 100 million": {"type": "string", "pattern": "^a{0,100000000}$"},
    "a repeat of words": {"type": "string", "pattern": r"^(\w{1,500}\s){500}$"},
    "many optional properties": {"type": "object", "properties": {f"p{n}": {} for n in range(990)}},
    "one of many properties": {
        "type": "object",
        "properties": {f"p{n}": {} for n in range(990)},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "an ambiguous recursion": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [*[{"type": "array", "items": {"$ref": "#/$defs/a"}}] * 300, {"type": "null"}]}},
    },
    "strings of 100,000": {"type": "string", "minLength": 50_000, "maxLength": 100_000},
    "products of alternatives": {
        "allOf": [
            {"anyOf": [{"type": "string", "minLength": n, "maxLength": 900 - m} for n in range(30)]} for m in range(8)
        ]
    },
    "a large factor": {"type": "integer", "multipleOf": 99_999_989},
    "names of 100,000 properties": {"type": "object", "required": [str(n) for n in range(100_000)]},
}


LARGEST: dict[str, dict[str, Any]] = {
    "properties, one required": {
        "type": "object",
        "properties": {f"p{n}": {} for n in range(55)},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "properties, none required": {"type": "object", "properties": {f"p{n}": {} for n in range(980)}},
    "alternatives": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [*[{"type": "array", "items": {"$ref": "#/$defs/a"}}] * 110, {"type": "null"}]}},
    },
    "factor": {"type": "integer", "multipleOf": 9973, "maximum": 10**12},
    "combined factors": {"type": "integer", "allOf": [{"multipleOf": 89}, {"multipleOf": 97}]},
    "patterns": {
        "type": "object",
        "patternProperties": {f"^a{n}x[a-z]{{1,50}}$": {} for n in range(25)},
        "additionalProperties": False,
    },
    "regular expressions": {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "pattern": f"^\\p{{L}}{{1,500}}x{n}$"} for n in range(70)},
    },
    "text": {"const": "lorem ipsum " * 8000},
    "texts": {
        "type": "object",
        "properties": {f"p{n}": {"const": "lorem ipsum " * 20} for n in range(150)},
        "required": [f"p{n}" for n in range(150)],
    },
}
"""About as large as they may be."""


CONSTRAINT_ATTACKS: dict[str, tuple[Literal["regex", "grammar", "choice"], tuple[str, ...]]] = {
    "a counted repeat of one": ("regex", ("(a{1,1000}){1,1000}",)),
    "two long repeats": ("regex", (".{0,10000}x.{10000}y",)),
    "an exponential automaton": ("regex", (".*a.{300}",)),
    "many exponential automatons": ("regex", ("|".join(f".*{chr(97 + n)}.{{{100 + n}}}" for n in range(26)),)),
    "a repeat of words": ("regex", (r"(\w{1,500}\s){500}",)),
    "nested groups": ("regex", ("(" * 2000 + "a" + ")" * 2000,)),
    "a long regular expression": ("regex", ("[a-z]" * 900,)),
    "letters of all languages": ("regex", (r"\p{L}{1,500}x" * 90,)),
    "a text of 2 MB": ("regex", ("a" * 2_000_000,)),
    "as many choices as may be": ("choice", tuple("".join(random.Random(n).choices("abc ", k=99)) for n in range(998))),
    "choices of one start": ("choice", tuple("a" * n for n in range(1, 99))),
    "many choices": ("choice", tuple(map(str, range(100_000)))),
    "a terminal that doubles": ("grammar", (_chain("A{0}: A{1} A{1}", 60),)),
    "a rule that doubles": ("grammar", (_chain("a{0}: a{1} a{1}", 300),)),
    "a long chain": ("grammar", (_chain("a{0}: a{1}", 400),)),
    "GBNF whose terminals are found one by one": ("grammar", (_chain("a{0} ::= a{1}", 300, "root ::= a0"),)),
    "an ambiguous recursion": ("grammar", ('start: s\ns: s s s s | "a" | ""',)),
    "an ambiguous list": ("grammar", ("start: s\ns: " + " | ".join(["s s"] * 300 + ['"a"']),)),
    "as many ambiguous alternatives as may be": ("grammar", ("start: s\ns: " + " | ".join(["s s"] * 155 + ['"a"']),)),
    "an ambiguous list of rules": ("grammar", (_ambiguous(300, ": ", "start: s"),)),
    "an ambiguous list of rules of GBNF": ("grammar", (_ambiguous(300, " ::= ", "root ::= s"),)),
    "few ambiguous rules": ("grammar", (_ambiguous(20, ": ", "start: s"),)),
    "an ambiguous recursion with many ends": (
        "grammar",
        ("start: s\ns: s s | " + " | ".join(f"/[a-z]{{{n},}}/" for n in range(1, 150)),),
    ),
    "a repeat of an ambiguous rule": ("grammar", ('start: s{1,1000}\ns: "a"{1,1000} | "b"{0,1000}',)),
    "repeats of repeats": ("grammar", ('start: b{1000}\nb: c{1000}\nc: a{1000}\na: "x" a | "y"',)),
    "nested parentheses": ("grammar", ("start: " + "(" * 2000 + '"a"' + ")" * 2000,)),
    "nested parentheses of GBNF": ("grammar", ("root ::= " + "(" * 2000 + '"a"' + ")" * 2000,)),
    "intersections": ("grammar", ("start: A\nA: " + " & ".join(f"/.*{chr(97 + n)}.{{{n + 9}}}/" for n in range(26)),)),
    "nothing but itself": ("grammar", ("start: start",)),
    "white space that repeats": ("grammar", ('start: "a" "b"\n%ignore /[ \\t]*( [ \\t]*)*/',)),
}


def memory_mb() -> float:
    """This process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Walker:
    """A vocabulary as large as those of real models, read."""
    walker = Walker(large_tokenizer(tmp_path_factory.mktemp("large")), 150_016, [150_000])
    walker.compiler.compile(Grammar(json_grammar('{"const": "lorem"}')))
    return walker


def follow(walker: Walker, grammar: Grammar) -> Iterator[float]:
    """Follows a grammar at random for some steps; gives the processor's time after each."""
    draw = random.Random(1)
    with suppress(GrammarError):
        matcher = walker.compiler.compile(grammar)
        yield time.thread_time()
        for _ in range(40):
            allowed = [token for token in walker.allowed(matcher.mask()) if token not in walker.stop_ids]
            if not allowed:
                break
            matcher.consume([draw.choice(allowed)])
            yield time.thread_time()
    yield time.thread_time()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("schema", [*ATTACKS.values(), *LARGEST.values()], ids=[*ATTACKS, *LARGEST])
def test_a_schema_is_refused_or_followed_at_once(walker: Walker, schema: dict[str, Any], strict: bool) -> None:
    text, memory, times = json.dumps(schema), memory_mb(), [time.thread_time()]
    try:
        prepared = SchemaPreparer("response_format", MAX_PARTS).prepare(text, strict=strict)
    except ApiError as error:
        assert error.status == 400 and len(error.message) < 400
        assert schema not in LARGEST.values()
        times.append(time.thread_time())
    else:
        times += [time.thread_time(), *follow(walker, Grammar(json_grammar(prepared)))]
    assert max(after - before for before, after in pairwise(times)) < SLOWEST_S
    assert memory_mb() - memory < MAX_MEMORY_MB


@pytest.mark.parametrize(("kind", "texts"), CONSTRAINT_ATTACKS.values(), ids=CONSTRAINT_ATTACKS)
def test_a_grammar_is_refused_or_followed_at_once(
    walker: Walker, kind: Literal["regex", "grammar", "choice"], texts: tuple[str, ...]
) -> None:
    memory, times = memory_mb(), [time.thread_time()]
    try:
        grammar = constraint_grammar(Constraint(kind, texts), MAX_PARTS)
    except ApiError as error:
        assert error.status == 400 and len(error.message) < 400
        times.append(time.thread_time())
    else:
        times += [time.thread_time(), *follow(walker, grammar)]
    assert max(after - before for before, after in pairwise(times)) < SLOWEST_S
    assert memory_mb() - memory < MAX_MEMORY_MB


HIDDEN = (
    'start: %json {"type": "string"}',
    'start: "\\"" %json {}',
    'start: "a\n" %json {} "b"',
    'start: /a\n" %json {"a": 1} "/',
    'start: "x" // "\nfoo: %json {} // "',
    'start: "a\\\n" %json {} "b"',
    '# "\nstart: %json {} // "',
    "start: <[5]>",
    "start: <|im_end|>",
    "start: @other",
    'start: %lark { start: "a" }',
    'start: %regex {"substring_words": "a b c"}',
    '%llguidance {"no_forcing": true}\nstart: "a"',
)


@pytest.mark.parametrize("text", HIDDEN)
def test_a_clients_grammar_contains_no_schema_and_no_single_token(text: str) -> None:
    """A JSON Schema in it would pass by all bounds of schemas, and some end llguidance with a panic."""
    with pytest.raises(ApiError, match="is not supported"):
        constraint_grammar(Constraint("grammar", (text,)), MAX_PARTS)


def test_a_fault_in_llguidance_is_an_error_as_any_other(walker: Walker) -> None:
    """One that no router lets through; but the next one may be another."""
    grammar = json_grammar(json.dumps({"type": "integer", "minimum": "a" + "鸡" * 100}, ensure_ascii=False))
    assert grammar_error(grammar) == "llguidance failed on it"
    with pytest.raises(GrammarError):
        walker.compiler.compile(Grammar(grammar))


def test_an_engine_takes_no_grammar_that_no_router_would_send(walker: Walker) -> None:
    began = time.thread_time()
    with pytest.raises(GrammarError, match="characters"):
        walker.compiler.compile(Grammar(json_grammar(json.dumps(ATTACKS["a value of 2 MB"]))))
    assert time.thread_time() - began < SLOWEST_S


def test_a_router_names_what_it_refuses_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    items = {"type": "array", "items": {"type": "null"}, "uniqueItems": True}
    unique = {"type": "object", "properties": {"a": items}}

    async def work(url: str) -> None:
        async with (
            running_router(monkeypatch, url) as router,
            httpx.AsyncClient(base_url=router.url, timeout=30) as client,
        ):
            for schema, place in ((unique, "/properties/a/uniqueItems"), ({"const": -(2**63)}, "/const")):
                form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
                body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
                refused = await client.post("/v1/chat/completions", json=body | {"response_format": form})
                error = refused.json()["error"]
                assert (refused.status_code, error["code"]) == (400, "invalid_json_schema")
                assert error["param"] == "response_format" and f"Schema at {place}:" in error["message"]
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

    with redis_server(64) as server:
        asyncio.run(asyncio.wait_for(work(server.url), 60))
