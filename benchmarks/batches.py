"""What a batch takes and what it costs people.

Tokens a second of a batch over those of the engine alone; and the time to first token of people who ask one question
after the other, with and without a batch beside them. The engine alone runs in a process of its own with questions of
the same kind, on as many cores, with as many streams as it takes. Of a batch, what is between the first and the last
tenth of its lines counts. The cases alternate by round.
"""

import argparse
import asyncio
import json
import os
import secrets
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.service import Service, report, running
from cluster.batch_client import BatchClient
from cluster.bench.client import ask, session
from cluster.bench.target import Target
from cluster.models.folder import open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from deployments.common.messages import Add, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.generation.prompts import PromptRenderer

_CHAT = "/v1/chat/completions"
_POLL_S = 0.2
_PEOPLE_COUNT_S = 61.0
"""After this time without people's requests, batches take nearly all slots."""
_MANY_LINES = 5000
"""Of the batch beside people."""
_EDGES = 0.1
"""Share of a batch's lines at its beginning, and at its end, that do not count."""
_WORDS = ("time", "place", "work", "day", "hand", "week", "case", "point")


def question(words: int = 0) -> str:
    """A new question after a new text. words: of the text."""
    text = "".join(f"{secrets.choice(_WORDS)} " for _ in range(words))
    return f"{text}What is {secrets.randbelow(1000)} + {secrets.randbelow(1000)}? {secrets.token_hex(4)}"


def engine_alone(args: argparse.Namespace) -> float:
    """Tokens a second of the engine without a service, as many streams as it takes at a time."""
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    config = config_for(model, tuple(sorted(os.sched_getaffinity(0)))[:1])
    os.sched_setaffinity(0, config.cpus)
    engine, render = Engine(config), PromptRenderer(model).render
    engine.warm_up()
    sampling, streams = Sampling(args.tokens, ignore_eos=True), model.settings.max_num_seqs
    number, tokens, began, running_now = 0, 0, 0.0, 0
    while True:
        while running_now < streams:
            prompt = render(GenerationRequest((Message("user", question()),), sampling)).ids
            engine.add(Add(number, EngineRequest(prompt, sampling)))
            number, running_now = number + 1, running_now + 1
        for batch in engine.step().streams.values():
            tokens += len(batch.ids)
            running_now -= batch.finish_reason != ""
        if not began and number >= 2 * streams:
            began, tokens = time.perf_counter(), 0
        if began and time.perf_counter() - began > args.seconds:
            return tokens / (time.perf_counter() - began)


def _engine_alone(args: argparse.Namespace) -> float:
    """In a process of its own: its affinity is not this one's."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        return apart.submit(engine_alone, args).result()


def submit(client: BatchClient, model: str, lines: int, tokens: int) -> str:
    """Starts a batch of new questions; returns its id."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requests.jsonl"
        with file.open("w") as out:
            for number in range(lines):
                body: dict[str, Any] = {"model": model, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
                body["messages"] = [{"role": "user", "content": question()}]
                out.write(json.dumps({"custom_id": f"{number}", "method": "POST", "url": _CHAT, "body": body}) + "\n")
        batch_id: str = client.submit(file, _CHAT, "24h")["id"]
    return batch_id


def batch_rate(client: BatchClient, batch_id: str, lines: int, tokens: int) -> float:
    """Tokens a second in the middle of a batch, between two moments at which lines were counted: that is by chunks."""
    seen: list[tuple[float, int]] = []
    while (batch := client.show(batch_id))["status"] in ("validating", "in_progress"):
        done = batch["request_counts"]["completed"]
        if not seen or done != seen[-1][1]:
            seen.append((time.perf_counter(), done))
        time.sleep(_POLL_S)
    middle = [(at, done) for at, done in seen if _EDGES * lines <= done <= (1 - _EDGES) * lines]
    if len(middle) < 2:
        raise RuntimeError("the batch was too short to measure: give more lines")
    (began, first), (ended, last) = middle[0], middle[-1]
    return (last - first) * tokens / (ended - began)


async def people(service: Service, model: str, args: argparse.Namespace) -> list[float]:
    """Times to first token of one question after the other, in seconds."""
    times, target = [], Target(service.url, "", model, extra={"ignore_eos": True, "logprobs": True})
    deadline = time.monotonic() + args.seconds
    async with session("", 1, 600) as http:
        while time.monotonic() < deadline:
            outcome = await ask(
                http, target.url, target.body([{"role": "user", "content": question(args.words)}], args.tokens)
            )
            if outcome.error:
                raise RuntimeError(outcome.error)
            times.append(outcome.ttft_s)
    return times


def measure(service: Service, alone: list[float], args: argparse.Namespace) -> str:
    model, rates = service.status()["models"][0], list[float]()
    without, beside = list[float](), list[float]()
    asked_at = -_PEOPLE_COUNT_S
    with BatchClient(service.url, "") as client:
        for number in range(args.rounds):
            if args.lines:
                if number:
                    alone.append(_engine_alone(args))
                time.sleep(max(0.0, asked_at + _PEOPLE_COUNT_S - time.monotonic()))
                batch_id = submit(client, model, args.lines, args.tokens)
                rates.append(batch_rate(client, batch_id, args.lines, args.tokens))
            without += asyncio.run(people(service, model, args))
            batch_id = submit(client, model, _MANY_LINES, args.tokens)
            while client.show(batch_id)["request_counts"]["completed"] == 0:
                time.sleep(_POLL_S)
            beside += asyncio.run(people(service, model, args))
            asked_at = time.monotonic()
            client.cancel(batch_id)
            while client.show(batch_id)["status"] != "cancelled":
                time.sleep(_POLL_S)
    rows = []
    if rates:
        rows += [
            ["tokens a second: the engine alone", f"{median(alone):.0f}", ""],
            ["tokens a second: a batch", f"{median(rates):.0f}", f"{median(rates) / median(alone):.2f}"],
        ]
    for name, of in (("p50", median), ("p95", lambda times: quantiles(times, n=20, method="inclusive")[-1])):
        before, now = of(without), of(beside)
        rows += [
            [f"people's TTFT {name}, ms: without a batch, {len(without)} questions", f"{1000 * before:.0f}", ""],
            [f"beside a batch, {len(beside)} questions", f"{1000 * now:.0f}", f"{now / before:.2f}"],
        ]
    return report(f"Batches, {model}, {args.tokens} tokens an answer", ["", "measured", "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--lines", type=int, default=1500, help="of the batch whose rate is measured; 0: none is")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--words", type=int, default=0, help="of a text before each question of people")
    parser.add_argument("--seconds", type=float, default=20, help="of the engine alone, and of people, per round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    alone = [_engine_alone(args)] if args.lines else []
    # One core for the engine, as alone; the other one is for the routers and clients.
    settings = {"DRAY_MODEL__SOURCE": args.model, "DRAY_MODEL__CORES_PER_REPLICA": "1", "DRAY_MODEL__REPLICAS": "1"}
    with running(**settings) as service:
        print(measure(service, alone, args))


if __name__ == "__main__":
    main()
