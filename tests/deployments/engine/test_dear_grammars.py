"""Streams under grammars that are dear to follow: other streams of their engine go on, and who leaves costs no more."""

import json
import time
from itertools import count

import pytest

from cluster.models.folder import ServedModel
from deployments.common.grammars import json_grammar, regex_grammar
from deployments.common.messages import Add, EngineRequest, Grammar, Sampling
from deployments.common.types import Constraint
from deployments.engine.compilations import Compilations
from deployments.engine.engine import Engine
from deployments.engine.grammar import GrammarCompiler, Matcher
from deployments.engine.model import stop_token_ids
from deployments.generation.constraints import constraint_grammar
from deployments.generation.schemas import SchemaPreparer
from tests.deployments.engine.test_engine import engine
from tests.security.test_grammars import ATTACKS, CONSTRAINT_ATTACKS, LARGEST, MAX_PARTS, SLOWEST_S

STREAMS = 32
"""As many as an engine takes by default."""
SECONDS = 4.0


def of_schema(schema: dict[str, object]) -> Grammar:
    return Grammar(json_grammar(SchemaPreparer("response_format", MAX_PARTS).prepare(json.dumps(schema), strict=True)))


def of_constraint(name: str) -> Grammar:
    return constraint_grammar(Constraint(*CONSTRAINT_ATTACKS[name]), MAX_PARTS)


DEAR = {
    "alternatives": of_schema(LARGEST["alternatives"]),
    "optional properties": of_schema(ATTACKS["many optional properties"]),
    "ambiguous rules": of_constraint("as many ambiguous alternatives as may be"),
}


def longest_gaps(busy: Engine, dear: Grammar, seconds: float) -> tuple[float, float, int]:
    """The longest times between two tokens of a plain stream and of one under a grammar, beside as many dear ones as
    there are places; and the number of tokens of the dear ones. One that ends is replaced by another."""
    numbers = count(1)

    def ask(grammar: Grammar | None) -> int:
        number = next(numbers)
        sampling = Sampling(100_000, 1.0, seed=number, ignore_eos=grammar is None, grammar=grammar)
        busy.add(Add(number, EngineRequest([*range(20, 40), 50 + number % 400], sampling)))
        return number

    watched = [ask(None), ask(Grammar(regex_grammar("[a-z ]{10000}")))]
    last: dict[int, float] = {}
    while len(last) < len(watched):
        last |= dict.fromkeys(busy.step().streams, time.perf_counter())
    longest, tokens = dict.fromkeys(watched, 0.0), 0
    attackers = {ask(dear) for _ in range(STREAMS - len(watched))}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        streams = busy.step().streams
        now = time.perf_counter()
        for number in watched:
            longest[number] = max(longest[number], now - last[number])
            last[number] = now if number in streams else last[number]
        tokens += sum(len(batch.ids) for number, batch in streams.items() if number not in watched)
        ended = {number for number in attackers if number in streams and streams[number].finish_reason}
        attackers = attackers - ended | {ask(dear) for _ in ended}
    assert all(not streams[number].finish_reason for number in watched if number in streams)
    return longest[watched[0]], longest[watched[1]], tokens


@pytest.mark.slow
@pytest.mark.parametrize("dear", DEAR.values(), ids=DEAR)
def test_others_go_on_beside_as_many_dear_grammars_as_there_are_places(bundled: ServedModel, dear: Grammar) -> None:
    plain, constrained, tokens = longest_gaps(engine(bundled, max_num_seqs=STREAMS), dear, SECONDS)
    assert max(plain, constrained) < SLOWEST_S, (plain, constrained)
    assert tokens > STREAMS / 2, "they go on too"


class Recording(GrammarCompiler):
    """Remembers what it has compiled."""

    def compile(self, grammar: Grammar) -> Matcher:
        matcher = super().compile(grammar)
        self.compiled = [*getattr(self, "compiled", []), grammar]
        return matcher


def test_who_leaves_takes_its_grammars_along(bundled: ServedModel) -> None:
    vocabulary = int(json.loads((bundled.folder / "config.json").read_text())["vocab_size"])
    compiler = Recording(bundled.folder, vocabulary, stop_token_ids(bundled.folder))
    compilations = Compilations(compiler)
    dear, cheap = DEAR["optional properties"], Grammar(regex_grammar("[a-z]*"))
    for number in range(40):
        compilations.start(number, EngineRequest([1], Sampling(9, grammar=dear)))
    for number in range(40):
        assert compilations.cancel(number)
    compilations.start(40, EngineRequest([1], Sampling(9, grammar=cheap)))
    began = time.monotonic()
    while not (done := list(compilations.done(idle=True))):
        assert time.monotonic() - began < SLOWEST_S
    assert [number for number, _ in done] == [40] and len(compilations) == 0
    assert compiler.compiled.count(dear) <= 1, "the one that had begun"


def test_a_teams_grammars_wait_behind_its_own(bundled: ServedModel) -> None:
    vocabulary = int(json.loads((bundled.folder / "config.json").read_text())["vocab_size"])
    compilations = Compilations(GrammarCompiler(bundled.folder, vocabulary, stop_token_ids(bundled.folder)))
    dear, cheap = DEAR["optional properties"], Grammar(regex_grammar("[a-z]*"))
    for number in range(20):
        compilations.start(number, EngineRequest([1], Sampling(9, grammar=dear), namespace="team.flood"))
    compilations.start(20, EngineRequest([1], Sampling(9, grammar=cheap), namespace="team.one"))
    done, began = list[int](), time.monotonic()
    while 20 not in done:
        assert time.monotonic() - began < 30
        done += [number for number, _ in compilations.done(idle=True)]
    assert len(done) < 5
    for number in range(20):
        compilations.cancel(number)
