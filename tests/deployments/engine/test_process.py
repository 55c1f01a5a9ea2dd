"""The engine process, used as its replica uses it: a real pipeline with the bundled model."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import psutil
import pytest

from cluster.cores import check_affinity
from cluster.models.folder import ServedModel
from deployments.common.grammars import json_grammar
from deployments.common.messages import Add, EngineConfig, EngineRequest, Grammar, Ready, Sampling, StreamFinish
from deployments.engine.engine import Engine
from deployments.engine.process import EngineProcess, EngineStartError


def config(model_dir: str) -> EngineConfig:
    return EngineConfig(model_dir, tuple(os.sched_getaffinity(0))[:1], 16, 8, 256, 2.0)


@asynccontextmanager
async def running(model: ServedModel) -> AsyncIterator[EngineProcess]:
    engine, ready = await EngineProcess.start(config(str(model.folder)), timeout_s=60)
    assert ready.kv_tokens > 1000
    yield engine
    await engine.stop()


async def complete(
    engine: EngineProcess, prompt: list[int], tokens: int, **sampling: float
) -> tuple[list[int], StreamFinish, int]:
    ids: list[int] = []
    finish: StreamFinish = ""
    cached = 0
    async for batch in engine.generate(EngineRequest(prompt, Sampling(tokens, **sampling))):  # type: ignore[arg-type]
        ids, finish, cached = ids + batch.ids, batch.finish_reason, cached + batch.cached_tokens
    return ids, finish, cached


def with_engine(model: ServedModel, work: Callable[[EngineProcess], Awaitable[None]]) -> None:
    async def run() -> None:
        async with running(model) as engine:
            await work(engine)

    asyncio.run(run())


PROMPT = [7 + n % 200 for n in range(100)]


def test_generates_cancels_and_refuses(bundled: ServedModel) -> None:
    async def work(engine: EngineProcess) -> None:
        assert set(os.sched_getaffinity(engine.pid)) == set(config("").cpus)
        ids, finish, cached = await complete(engine, PROMPT, 5)
        assert len(ids) <= 5 and finish in ("stop", "length") and cached == 0
        assert (await complete(engine, PROMPT, 5)) == (ids, finish, 96)

        results = await asyncio.gather(*(complete(engine, [*PROMPT, n], 20) for n in range(12)))
        assert all(finish for _, finish, _ in results)

        hot = {tuple((await complete(engine, PROMPT, 20, temperature=20.0))[0]) for _ in range(4)}
        assert len(hot) > 1, "unseeded requests draw different numbers"
        seeded = {tuple((await complete(engine, PROMPT, 20, temperature=20.0, seed=5))[0]) for _ in range(3)}
        assert len(seeded) == 1

        for bad in ([], [10**6], [-1]):
            assert (await complete(engine, bad, 5))[1] == "invalid"
        assert (await complete(engine, PROMPT * 400, 5))[1] == "overloaded"

        stream = engine.generate(EngineRequest(PROMPT, Sampling(1000, temperature=2.0)))
        await anext(stream)
        await stream.aclose()
        assert engine.active == 0
        assert (await complete(engine, PROMPT, 5))[0] == ids

    with_engine(bundled, work)


def test_batch_work_is_no_reason_for_more_replicas_but_keeps_one(bundled: ServedModel) -> None:
    async def work(engine: EngineProcess) -> None:
        assert engine.scaling_tokens == 0
        batch = engine.generate(EngineRequest(PROMPT, Sampling(400, ignore_eos=True), priority=1, scales=False))
        await anext(batch)
        assert engine.scaling_tokens == 1 and sum(load.completion_tokens for load in engine.pending.values()) > 1
        person = engine.generate(EngineRequest(PROMPT, Sampling(400, ignore_eos=True)))
        await anext(person)
        assert engine.scaling_tokens > 1
        await person.aclose()
        await batch.aclose()
        assert engine.scaling_tokens == 0

    with_engine(bundled, work)


def test_streams_of_a_killed_engine_end_as_lost(bundled: ServedModel) -> None:
    async def work(engine: EngineProcess) -> None:
        os.kill(engine.pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(complete(engine, PROMPT, 50)) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(engine.pid, signal.SIGKILL)
        assert [finish for _, finish, _ in await asyncio.gather(*waiting)] == ["lost"] * 3
        await engine.closed.wait()

    with_engine(bundled, work)


def test_engines_killed_under_a_grammar_start_again_and_work(bundled: ServedModel) -> None:
    """A grammar of many states, whose mask or compilation the kill meets at some point."""
    schema = {"type": "array", "items": {"type": "string", "minLength": 90, "maxLength": 100}, "minItems": 50}
    constrained = Sampling(500, 1.0, seed=1, grammar=Grammar(json_grammar(json.dumps(schema))))

    async def work(engine: EngineProcess, delay_s: float) -> None:
        streams = [engine.generate(EngineRequest([*PROMPT, number], constrained)) for number in range(3)]
        reading = [asyncio.create_task(anext(stream)) for stream in streams]
        await asyncio.sleep(delay_s)
        os.kill(engine.pid, signal.SIGKILL)
        await asyncio.gather(*reading, return_exceptions=True)
        await engine.closed.wait()

    for delay_s in (0.0, 0.02, 0.2):
        with_engine(bundled, lambda engine, delay_s=delay_s: work(engine, delay_s))  # type: ignore[misc]

    async def whole(engine: EngineProcess) -> None:
        assert (await complete(engine, PROMPT, 20))[1]

    with_engine(bundled, whole)


def test_an_unread_end_of_a_stream_survives_the_engines_death(bundled: ServedModel) -> None:
    async def work(engine: EngineProcess) -> None:
        whole, end, _ = await complete(engine, PROMPT, 20)
        stream = engine.generate(EngineRequest(PROMPT, Sampling(20)))
        batches = [await anext(stream)]
        async with asyncio.timeout(20):
            while engine.load.running:
                await asyncio.sleep(0.01)
        engine.send_heartbeats()
        await engine.stop()
        batches += [batch async for batch in stream]
        assert [token for batch in batches for token in batch.ids] == whole
        assert batches[-1].finish_reason == end

    with_engine(bundled, work)


def test_clients_that_give_up_do_not_hide_a_hung_engine_and_leave_an_idle_one_in_peace(bundled: ServedModel) -> None:
    async def work(engine: EngineProcess) -> None:
        os.kill(engine.pid, signal.SIGSTOP)
        silences = []
        for _ in range(3):
            stream = asyncio.create_task(complete(engine, PROMPT, 5))
            await asyncio.sleep(0.1)
            stream.cancel()
            await asyncio.wait([stream])
            silences.append(engine.silent_s)
        assert silences[2] > silences[1] > silences[0] > 0
        os.kill(engine.pid, signal.SIGCONT)
        async with asyncio.timeout(20):
            while engine.silent_s:
                await asyncio.sleep(0.01)

    with_engine(bundled, work)


def test_the_engine_announces_how_much_its_next_step_computes(bundled: ServedModel) -> None:
    step_tokens = 64
    engine = Engine(msgspec.structs.replace(config(str(bundled.folder)), max_num_batched_tokens=step_tokens))
    assert engine.next_tokens == 0
    engine.add(Add(1, EngineRequest(PROMPT * 3, Sampling(5, ignore_eos=True))))
    assert engine.result({}).next_tokens == step_tokens, "the prompt has more than one step computes"
    announced = []
    while engine.busy:
        announced.append(engine.step().next_tokens)
    assert announced[0] == step_tokens and announced[-2:] == [1, 0]


def test_all_threads_of_an_engine_start_on_its_cores(bundled: ServedModel) -> None:
    async def look(engine: EngineProcess) -> None:
        assert check_affinity(config(str(bundled.folder)).cpus, engine.pid)

    with_engine(bundled, look)


def test_a_missing_model_is_an_error(tmp_path: object) -> None:
    with pytest.raises(EngineStartError, match="No such file"):
        asyncio.run(EngineProcess.start(config(str(tmp_path)), timeout_s=60))


@pytest.mark.parametrize(
    ("signal_", "hint"), [(signal.SIGFPE, "model.precision: exact"), (signal.SIGKILL, "memory may have run out")]
)
def test_a_death_at_the_start_names_the_signal_and_what_was_tried(
    bundled: ServedModel, signal_: signal.Signals, hint: str
) -> None:
    async def work() -> None:
        trying = msgspec.structs.replace(config(str(bundled.folder)), variant="fused-mlp")
        start = asyncio.create_task(EngineProcess.start(trying, timeout_s=60))
        while not (engines := [each for each in psutil.Process().children() if "fused-mlp" in str(each.cmdline())]):
            await asyncio.sleep(0.01)
        engines[0].send_signal(signal_)
        await start

    with pytest.raises(EngineStartError, match=f"killed by {signal_.name} while .*fused-mlp.*{hint}"):
        asyncio.run(work())


def test_an_engine_says_how_its_graph_multiplies(bundled: ServedModel) -> None:
    async def work() -> Ready:
        engine, ready = await EngineProcess.start(config(str(bundled.folder)), timeout_s=60)
        await engine.stop()
        return ready

    assert re.search(r"\d+ FullyConnected \w+ ", asyncio.run(work()).multiplications)
