"""How many greedy answers differ between a request alone and the same among others, in the engine alone.

Asks each question alone twice, which must give the same, and then several at once. No prompt is cached, so load is all
that differs. Needs a model that understands English: with random weights, no token is likelier than others.
"""

import argparse
import os
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
        graphs=(Arithmetic(args.precision, args.group),),
    )
    engine, render = Engine(config), PromptRenderer(model).render
    engine.warm_up()
    questions = [question.format(subject) for question in _QUESTIONS for subject in _SUBJECTS][: args.questions]
    prompts = [render(GenerationRequest((Message("user", text),), Sampling(1))).ids for text in questions]
    alone = [answers(engine, [prompt], args.tokens, f"alone {n}")[0] for n, prompt in enumerate(prompts)]
    again = [answers(engine, [prompt], args.tokens, f"again {n}")[0] for n, prompt in enumerate(prompts)]
    at_once: list[list[int]] = []
    for start in range(0, len(prompts), args.streams):
        at_once += answers(engine, prompts[start : start + args.streams], args.tokens, f"at once {start}")
    rows = []
    for name, others in (("alone again", again), (f"{args.streams} at once", at_once)):
        pairs = zip(alone, others, strict=True)
        places = [next((n for n, (a, b) in enumerate(zip(*p, strict=False)) if a != b), None) for p in pairs]
        differ = sorted(place for place in places if place is not None)
        middle = str(differ[len(differ) // 2]) if differ else ""
        rows.append([name, f"{len(differ)} of {len(alone)}", middle])
    heads = ["asked", "answers that differ from those alone", "first token that differs, median"]
    return report(
        f"Greedy answers of {args.tokens} tokens under load, {model.name}, {args.precision} {args.group}", heads, rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--precision", choices=["auto", "bf16", "f32"], default="auto")
    parser.add_argument("--group", type=int, default=32, help="numbers that share a scale; 0: not INT8")
    print(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
