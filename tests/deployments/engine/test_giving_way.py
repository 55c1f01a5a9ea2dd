"""A question of people ends a step of batch work; no text changes by that, and batch work goes on in the end."""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.models.folder import ServedModel
from deployments.common.framing import Unframer, frame
from deployments.common.grammars import json_grammar
from deployments.common.messages import (
    Add,
    Cancel,
    EngineConfig,
    EngineLoad,
    EngineRequest,
    Grammar,
    Sampling,
    StepResult,
    ToEngine,
    TokenBatch,
    decode_from_engine,
)
from deployments.engine import core, model
from deployments.engine.engine import Engine
from tests.deployments.engine.test_engine import engine
from tests.deployments.engine.test_process import config

PROMPT = [7 + n % 200 for n in range(100)]


@pytest.fixture(autouse=True)
def looking_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_LOOK_MS", 0)


@pytest.fixture(scope="module")
def own(bundled: ServedModel) -> Engine:
    """Without guesses: a text that was generated before would be guessed, in steps that round differently."""
    return engine(bundled, guess_tokens=False)


class Crowd:
    """People who always wait. asked: how often one has looked for them."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return True


def texts(own: Engine, requests: list[EngineRequest], crowd: Crowd | None = None) -> list[list[int]]:
    """The completions, while people wait all the time, or nobody does."""
    ids: list[list[int]] = [[] for _ in requests]
    for number, request in enumerate(requests):
        own.add(Add(number, request))
    while own.busy:
        for number, batch in own.step(*([crowd] if crowd else [])).streams.items():
            assert batch.finish_reason != "invalid", batch.reason
            ids[number] += batch.ids
    return ids


def requests(priority: int, **sampling: object) -> list[EngineRequest]:
    chosen = Sampling(40, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    return [EngineRequest([n, *PROMPT[n : n + 60]], chosen, priority=priority) for n in range(4)]


def test_interrupted_steps_change_no_text_and_batch_work_ends(own: Engine) -> None:
    undisturbed, crowd = texts(own, requests(1)), Crowd()
    assert texts(own, requests(1), crowd) == undisturbed
    assert crowd.asked > 40


def test_interrupted_steps_keep_to_a_grammar(own: Engine) -> None:
    schema = json.dumps({"type": "array", "items": {"type": "integer"}, "maxItems": 4})
    grammar = Grammar(json_grammar(schema))
    chosen = Sampling(40, temperature=1.0, seed=3, grammar=grammar)
    asked = [EngineRequest(PROMPT[:30], chosen, priority=1)]
    assert texts(own, asked, Crowd()) == texts(own, asked)


def test_steps_for_people_are_not_interrupted(own: Engine) -> None:
    crowd = Crowd()
    undisturbed = texts(own, requests(0))
    assert texts(own, requests(0), crowd) == undisturbed and not crowd.asked
    assert texts(own, [*requests(0), *requests(1)], crowd)[:4] == undisturbed


def test_an_interrupted_step_gives_nothing_and_the_question_is_in_the_next(own: Engine) -> None:
    for number, request in enumerate(requests(1)):
        own.add(Add(number, request))
    while len(own.step().streams) < 4:
        pass
    assert own.step(Crowd()).streams == {}
    own.add(Add(9, EngineRequest([9, *PROMPT[:20]], Sampling(2, ignore_eos=True))))
    assert [*own.step(Crowd()).streams] == [9], "batch work stands still for it"
    assert own.step(Crowd()).streams.keys() == {0, 1, 2, 3, 9}
    while own.busy:
        own.step()


class Stepping:
    """An engine whose steps last until somebody waits. steps: what each of them had, and whether it was ended."""

    kv_tokens, load, next_tokens = 1000, EngineLoad(), 1

    def __init__(self, engine_config: EngineConfig) -> None:
        self.streams: list[int] = []
        self.looked = threading.Event()

    @property
    def busy(self) -> bool:
        return bool(self.streams)

    def warm_up(self) -> str:
        return ""

    def add(self, message: Add) -> None:
        self.streams.append(message.id)

    def cancel(self, message: Cancel) -> None:
        self.streams.remove(message.id)

    def step(self, people_wait: Callable[[], bool]) -> StepResult:
        begun = list(self.streams)
        while not people_wait():
            self.looked.set()
            time.sleep(0.001)
        return self.result({number: TokenBatch([number]) for number in begun})

    def result(self, batches: dict[int, TokenBatch]) -> StepResult:
        return StepResult(batches, self.load, self.next_tokens)


def test_the_process_looks_for_people_during_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = list[Stepping]()

    def make(chosen: EngineConfig) -> Stepping:
        made.append(Stepping(chosen))
        return made[-1]

    monkeypatch.setattr(core, "Engine", make)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=core.serve, args=(config(str(tmp_path)), theirs))
    thread.start()
    unframer, results = Unframer(), list[StepResult]()

    def send(*messages: ToEngine) -> None:
        ours.sendall(b"".join(map(frame, messages)))

    def streams() -> dict[int, TokenBatch]:
        """What the next step that had streams has given."""
        while not any(one.streams for one in results):
            for body in unframer.feed(ours.recv(1 << 16)):
                if isinstance(message := decode_from_engine(body), StepResult):
                    results.append(message)
        found = next(one for one in results if one.streams)
        results.remove(found)
        return found.streams

    batch, person = (EngineRequest([5], Sampling(1), priority=priority) for priority in (1, 0))
    with ours:
        send(Add(1, batch))
        while not made or not made[0].looked.wait(0.01):
            pass
        send(Add(2, batch), Cancel(1))
        made[0].looked.clear()
        assert made[0].looked.wait(30), "others of batch work do not end a step"
        assert made[0].streams == [1]
        send(Add(3, person))
        assert [*streams()] == [1]
        made[0].looked.clear()
        assert made[0].looked.wait(30)
        assert made[0].streams == [2, 3], "messages are taken in their order, and people only once"
    thread.join(30)
    assert not thread.is_alive(), "it ends with the connection, also during a step"
    theirs.close()
