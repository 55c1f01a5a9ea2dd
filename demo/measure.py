"""Accuracy of the bundled model by family of problems: python -m demo.measure cluster/models/bundled [ANOTHER ...]

Runs Dray's engine with greedy decoding. An answer is correct when it agrees with Python's arithmetic; the thinking is
ignored. `numbers`: numbers that were held out of training, in trained phrasings. `phrasings`: held-out phrasings.

python -m demo.measure --problems cluster/tuning/problems.jsonl writes the problems that `dray tune bundled` asks.
"""

import argparse
import asyncio
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cluster.models.folder import ServedModel, open_model
from cluster.settings import ModelSettings
from demo.others import STRANGERS
from demo.problems import ARITHMETIC, FAMILIES, Problem, make
from deployments.common.messages import EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess
from deployments.generation.prompts import PromptRenderer

_SEED = 20_260
_AT_A_TIME = 32
_MAX_TOKENS = 400
TUNE_PROBLEMS = 10


def asked(family: str, split: str, count: int) -> list[Problem]:
    """The problems of one cell of the table; the same in every run."""
    rng = random.Random(f"{_SEED} {family} {split}")
    return [make(rng, family, rng.choice(("zh", "en")), split) for _ in range(count)]  # type: ignore[arg-type]


def problem_lines(count: int) -> str:
    """Held-out problems as JSON Lines with `question` and `answer`: this many of each family and split."""
    problems = [
        problem
        for family in ARITHMETIC
        for split in ("numbers", "phrasings")
        for problem in asked(family, split, count)
    ]
    return "".join(
        json.dumps({"question": problem.question, "answer": problem.expect}, ensure_ascii=False) + "\n"
        for problem in problems
    )


async def answers(engine: EngineProcess, prompts: PromptRenderer, questions: Sequence[str]) -> list[str]:
    """The model's answers, without its thinking."""
    room = asyncio.Semaphore(_AT_A_TIME)

    async def ask(question: str) -> str:
        asked = GenerationRequest((Message("user", question),), Sampling(_MAX_TOKENS))
        prompt = prompts.render(asked)
        reader = prompts.parser(asked, prompt)
        async with room:
            async for tokens in engine.generate(EngineRequest(prompt.ids, asked.sampling)):
                reader.feed(tokens.ids)
        reader.finish("stop")
        return reader.text

    return await asyncio.gather(*map(ask, questions))


async def measure(model: ServedModel, count: int, show: int) -> dict[tuple[str, str], float]:
    """Accuracy by family and split, and the share of unrelated questions that are answered as such."""
    config = config_for(model, tuple(os.sched_getaffinity(0)))
    config = msgspec.structs.replace(config, kv_cache_mb=128, max_num_seqs=_AT_A_TIME)
    engine, _ = await EngineProcess.start(config, timeout_s=120)
    prompts, found = PromptRenderer(model), {}
    for family in FAMILIES:
        for split in ("numbers", "phrasings"):
            problems = asked(family, split, count)
            given = await answers(engine, prompts, [problem.question for problem in problems])
            marks = [problem.answered_by(text) for problem, text in zip(problems, given, strict=True)]
            found[family, split] = sum(marks) / count
            wrong = [(p, text) for p, text, mark in zip(problems, given, marks, strict=True) if not mark]
            for problem, text in wrong[:show]:
                print(f"  wrong ({family}, {split}): {problem.question!r} -> {text!r}, not {problem.answer!r}")
    given = await answers(engine, prompts, STRANGERS)
    found["strangers", ""] = sum("Dray" in text for text in given) / len(STRANGERS)
    for question, text in list(zip(STRANGERS, given, strict=True)):
        if show and "Dray" not in text:
            print(f"  stranger: {question!r} -> {text!r}")
    await engine.stop()
    return found


def table(results: dict[str, dict[tuple[str, str], float]], count: int) -> str:
    """A Markdown table of the results, with a column for each model and split."""
    names = list(results)
    heads = [f"{name}, {split}" for name in names for split in ("numbers", "phrasings")]
    lines = ["| family | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for family in FAMILIES:
        cells = [f"{results[name][family, split]:.1%}" for name in names for split in ("numbers", "phrasings")]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    strangers = ", ".join(f"{name} {results[name]['strangers', '']:.0%}" for name in names)
    return "\n".join([*lines, "", f"{count} questions a cell. Unrelated questions answered as such: {strangers}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="OpenVINO model folders")
    parser.add_argument("--count", type=int, default=400, help="questions per cell")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per cell")
    parser.add_argument("--problems", type=Path, help=f"write {TUNE_PROBLEMS} problems per cell to this file")
    args = parser.parse_args()
    if args.problems:
        args.problems.write_text(problem_lines(TUNE_PROBLEMS), encoding="utf-8")
    results = {}
    for folder in args.models:
        model = open_model(ModelSettings(source=str(folder)), folder)
        results[folder.name] = asyncio.run(measure(model, args.count, args.show))
    if results:
        print(table(results, args.count))


if __name__ == "__main__":
    main()
