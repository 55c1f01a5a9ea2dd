"""How many greedy answers differ between a request alone and the same among others, in the engine alone.

Asks several questions, each alone twice, and then all of them at once; then the next several, until the time is over.
No prompt is cached, so what differs is load, and how many guessed tokens a step checks, which measured times decide.
Needs a model that understands English: with random weights, no token is likelier than others.
"""

import argparse
import os
import time
from collections.abc import Sequence

import msgspec

from benchmarks.service import report
from cluster.models.folder import open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from deployments.common.messages import Add, Arithmetic, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.generation.prompts import PromptRenderer

_SUBJECTS = ("a river", "bread", "the moon", "chess", "a library", "honey", "a volcano", "ice", "a bridge", "cotton")
_QUESTIONS = (
    "Explain in a few sentences what {} is.",
    "Write a short story about {}.",
    "What should a child know about {}?",
    "Name three facts about {}.",
    "Why do people care about {}?",
    "How would you describe {} to a stranger?",
    "What can go wrong with {}?",
    "Compare {} with something else.",
    "Write two questions about {} and answer them.",
    "What was {} like a hundred years ago?",
)


def answers(engine: Engine, prompts: Sequence[list[int]], tokens: int, name: str) -> list[list[int]]:
    """The answers to prompts that are asked at once. name: of a namespace of their own."""
    texts: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        engine.add(Add(number, EngineRequest(prompt, Sampling(tokens), namespace=f"{name} {number}")))
    while engine.busy:
        for number, batch in engine.step().streams.items():
            texts[number] += batch.ids
    return texts


def measure(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    config = msgspec.structs.replace(
        config_for(model, tuple(sorted(os.sched_getaffinity(0)))),
        isolate_prefixes=True,
        guess_tokens=not args.no_guesses,
    )
    if args.precision:
        config = msgspec.structs.replace(config, graphs=(Arithmetic(args.precision, args.group),), variant="")
    engine, render = Engine(config), PromptRenderer(model).render
    engine.warm_up()
    questions = [question.format(subject) for question in _QUESTIONS for subject in _SUBJECTS][: args.questions]
    prompts = [render(GenerationRequest((Message("user", text),), Sampling(1))).ids for text in questions]
    alone: list[list[int]] = []
    again: list[list[int]] = []
    at_once: list[list[int]] = []
    deadline = time.monotonic() + 60 * args.minutes
    for start in range(0, len(prompts), args.streams):
        if start and time.monotonic() > deadline:
            break
        group: list[list[int]] = []
        for n, prompt in enumerate(prompts[start : start + args.streams], start):
            if group and time.monotonic() > deadline:
                break
            for name, texts in (("alone", alone), ("again", again)):
                texts += answers(engine, [prompt], args.tokens, f"{name} {n}")
            group.append(prompt)
        at_once += answers(engine, group, args.tokens, f"at once {start}")
    rows = []
    for label, others in (("alone again", again), (f"{args.streams} at once", at_once)):
        pairs = zip(alone, others, strict=True)
        places = [next((n for n, (a, b) in enumerate(zip(*p, strict=False)) if a != b), None) for p in pairs]
        differ = sorted(place for place in places if place is not None)
        middle = str(differ[len(differ) // 2]) if differ else ""
        rows.append([label, f"{len(differ)} of {len(alone)}", middle])
    arithmetic = config.variant or f"{args.precision} {args.group}"
    guesses = ", without guesses" if args.no_guesses else ""
    heads = ["asked", "answers that differ from those alone", "first token that differs, median"]
    return report(
        f"Greedy answers of {args.tokens} tokens under load, {model.name}, {arithmetic}{guesses}", heads, rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=3, help="after which no more questions are begun")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--precision", choices=["auto", "bf16", "f32"], help="default: what Dray runs here")
    parser.add_argument(
        "--group", type=int, default=0, help="with --precision: numbers that share a scale; 0: not INT8"
    )
    parser.add_argument("--no-guesses", action="store_true")
    print(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
