"""Which pairs of questions `cache.similarity_model` treats as equal: near-twins must differ, paraphrases may match.

Pairs are in English and Chinese: generated ones, and those of benchmarks/questions, written by the author of the gate's
rules. Every second of these was held out: the rules were changed by the other half only. Counted are the pairs that the
gate (deployments/cache/equivalence.py) accepts, which bounds what can ever share an answer, whatever the model says,
and those that `cache.normalize` alone treats as equal.

With --model (the folder of an embedding model), also what similarity alone would do at several thresholds, and both
together; and how long a look-up takes among many remembered questions.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import permutations, product
from pathlib import Path
from random import Random
from statistics import median

import numpy
import numpy.typing
from tokenizers import Tokenizer

from benchmarks.service import report
from cluster.models.folder import open_model
from cluster.settings import ModelSettings
from deployments.cache.equivalence import equivalent, meaning_of, normalize
from deployments.common.messages import EncoderInput
from deployments.engine.encoder.batches import EncoderBatches
from deployments.engine.encoder.model import EncoderModel

_WRITTEN = Path(__file__).with_name("questions")
_THRESHOLDS = (0.7, 0.8, 0.85, 0.9, 0.95)

_SERVICES = ("2FA", "single sign-on", "email alerts", "the audit log", "dark mode", "API access", "auto-renewal")
_SERVICES_ZH = ("两步验证", "单点登录", "邮件提醒", "审计日志", "深色模式", "自动续费")
_SIDES = ("Alice", "Bob", "Team Red", "Team Blue", "Acme", "Globex")
_SIDES_ZH = ("甲队", "乙队", "张三", "李四", "供应商", "客户")
_CITIES = ("Rome", "Oslo", "Berlin", "Madrid")
_CITIES_ZH = ("北京", "上海", "广州", "成都")

Matrix = numpy.typing.NDArray[numpy.float32]
Pair = tuple[str, str, str]
"""Kind, and two questions."""


def twins(rng: Random) -> Iterator[Pair]:
    """Pairs of questions with different answers."""
    for _ in range(60):
        heads, legs = rng.randint(10, 90), rng.randint(40, 300)
        more = heads + rng.choice((-1, 1, 10))
        yield (
            "number",
            f"{heads} heads and {legs} legs: how many rabbits?",
            f"{more} heads and {legs} legs: how many rabbits?",
        )
        yield (
            "number",
            f"笼子里有鸡和兔共{heads}只，脚共{legs}只，各有多少？",
            f"笼子里有鸡和兔共{more}只，脚共{legs}只，各有多少？",
        )
        yield "number", f"What is {heads}.5 times {legs}?", f"What is {heads}5 times {legs}?"
        yield "unit", f"How much is {heads} kg in pounds?", f"How much is {heads} g in pounds?"
        yield "unit", f"{heads}天后是星期几？", f"{heads}周后是星期几？"
        yield "unit", f"Is a delay of {heads} minutes refunded?", f"Is a delay of {heads} hours refunded?"
    for service in _SERVICES:
        yield "antonym", f"How do I enable {service}?", f"How do I disable {service}?"
        yield "antonym", f"How do I turn on {service}?", f"How do I turn off {service}?"
        yield "antonym", f"Why was {service} added?", f"Why was {service} removed?"
        yield "negation", f"Can I use {service} on the free plan?", f"Can I not use {service} on the free plan?"
        yield "negation", f"Which plans include {service}?", f"Which plans don't include {service}?"
        yield "negation", f"What happens with {service}?", f"What happens without {service}?"
        yield "language", f"How do I enable {service}?", f"怎么启用 {service}？"
    for service in _SERVICES_ZH:
        yield "antonym", f"如何启用{service}？", f"如何禁用{service}？"
        yield "antonym", f"怎么开启{service}？", f"怎么关闭{service}？"
        yield "negation", f"免费版可以用{service}吗？", f"免费版不可以用{service}吗？"
        yield "negation", f"哪些套餐有{service}？", f"哪些套餐没有{service}？"
    for one, other in permutations(_SIDES, 2):
        yield "roles", f"{one} beats {other}. Who lost?", f"{other} beats {one}. Who lost?"
        yield "roles", f"Does {one} owe {other} money?", f"Does {other} owe {one} money?"
    for one, other in permutations(_SIDES_ZH, 2):
        yield "roles", f"{one}打败了{other}，谁输了？", f"{other}打败了{one}，谁输了？"
    for one, other in permutations(_CITIES, 2):
        yield "roles", f"Trains from {one} to {other}", f"Trains to {one} from {other}"
    for one, other in permutations(_CITIES_ZH, 2):
        yield "roles", f"从{one}到{other}的火车有哪些？", f"从{other}到{one}的火车有哪些？"


def paraphrases(rng: Random) -> Iterator[Pair]:
    """Pairs of questions with the same answer."""
    for service in _SERVICES:
        base = f"How do I enable {service}?"
        yield "politeness", base, f"Hi, could you please tell me how to enable {service}? Thanks!"
        yield "politeness", base, f"Please tell me how I enable {service}."
        yield "synonym", base, f"How do I turn on {service}?"
        yield "synonym", base, f"How can I activate {service}?"
        yield "synonym", f"Which plans include {service}?", f"In which plans is {service} included?"
        yield "order", base, f"{service}: how do I enable it?"
        yield "contraction", f"What is {service}?", f"What's {service}?"
        yield "contraction", f"I cannot find {service}", f"I can't find {service}"
        yield "spelling", base, f"how do i enable  {service}"
    for service in _SERVICES_ZH:
        base = f"如何启用{service}？"
        yield "politeness", base, f"你好，请问如何启用{service}？谢谢"
        yield "politeness", base, f"麻烦告诉我如何启用{service}"
        yield "synonym", base, f"怎么开启{service}?"
        yield "synonym", base, f"怎么打开{service}？"
        yield "order", base, f"{service}如何启用？"
        yield "spelling", base, f"如何 启用{service} ?"
    for _ in range(30):
        a, b = rng.randint(1, 999), rng.randint(1, 999)
        yield "spelling", f"What is {a} + {b}?", f"what is {a}＋{b}"
        yield "politeness", f"What is {a} + {b}?", f"Can you tell me what is {a} + {b}, please?"
        yield "contraction", f"What is {a} + {b}?", f"What's {a} + {b}?"
        yield "spelling", f"{a}加{b}等于几？", f"{a} 加 {b} 等于几"


def written(kind: str, languages: tuple[str, ...] = ("en", "zh")) -> Iterator[Pair]:
    """Pairs from benchmarks/questions. kind: twins or paraphrases."""
    for language in languages:
        lines = (_WRITTEN / f"{kind}.{language}.txt").read_text().splitlines()
        for number, line in enumerate(lines):
            one, other = line.split(" | ")
            yield f"{language}, {'held out' if number % 2 else 'tuned on'}", one, other


def similarities(folder: str, pairs: list[Pair]) -> list[float]:
    """The cosine of each pair by an embedding model."""
    model = open_model(ModelSettings(source=folder, task="embed"), Path(folder))
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    tokenizer.no_padding()
    texts = [text for _, one, other in pairs for text in (one, other)]
    inputs = [EncoderInput(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
    rows = asyncio.run(EncoderBatches(EncoderModel(model, 1)).run(inputs))
    vectors = numpy.frombuffer(b"".join(rows), numpy.float32).reshape(len(texts), -1)
    found: list[float] = (vectors[::2] * vectors[1::2]).sum(1).tolist()
    return found


def by_threshold(folder: str) -> list[list[str]]:
    """A row for each half and threshold: English pairs that similarity alone treats as equal, and with the gate."""
    scored = []
    for kind in ("twins", "paraphrases"):
        pairs = list(written(kind, ("en",)))
        accepted = [equivalent(one, other) for _, one, other in pairs]
        halves = [half.partition(", ")[2] for half, _, _ in pairs]
        scored.append(list(zip(halves, similarities(folder, pairs), accepted, strict=True)))
    rows = []
    for wanted, threshold in product(("held out", "tuned on"), _THRESHOLDS):
        alone = [sum(half == wanted and score >= threshold for half, score, _ in pairs) for pairs in scored]
        both = [sum(half == wanted and score >= threshold and same for half, score, same in pairs) for pairs in scored]
        rows.append([wanted, str(threshold), *map(str, alone), *map(str, both)])
    return rows


def look_ups(sizes: Iterable[int] = (2_000, 100_000)) -> list[list[str]]:
    """A row for each number of questions: ms of a look-up by meaning, and by a search through all vectors."""
    rows = []
    for size in sizes:
        questions = [f"How do I reset the password of user {number}?" for number in range(size)]
        index = {meaning_of(question): number for number, question in enumerate(questions)}
        vectors = numpy.random.default_rng(1).normal(size=(size, 384)).astype(numpy.float32)
        asked = f"Could you tell me how to reset the password of user {size // 2}, please?"

        by_meaning = _milliseconds(partial(_find_by_meaning, index, vectors, asked))
        by_search = _milliseconds(partial(_search, vectors, vectors[size // 2]))
        rows.append([str(size), f"{by_meaning:.3f}", f"{by_search:.2f}"])
    return rows


def _find_by_meaning(index: dict[str, int], vectors: Matrix, asked: str) -> bool:
    found = index[meaning_of(asked)]
    return float(vectors[found] @ vectors[found]) > 0


def _search(vectors: Matrix, vector: Matrix) -> list[int]:
    best: list[int] = numpy.argsort(-(vectors @ vector))[:8].tolist()
    return best


def _milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(50):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * median(times)


def counted(pairs: Iterator[Pair]) -> list[list[str]]:
    """A row for each kind and one for all: pairs, and how many of them each method treats as equal."""
    seen: dict[str, list[int]] = {}
    for kind, one, other in pairs:
        for name in (kind, "all"):
            row = seen.setdefault(name, [0, 0, 0])
            row[0] += 1
            row[1] += normalize(one) == normalize(other)
            row[2] += equivalent(one, other)
    return [[kind, *map(str, seen[kind])] for kind in sorted(seen, key=lambda kind: (kind == "all", kind))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an embedding model for English")
    model: str | None = parser.parse_args().model
    heads = ["kind", "pairs", "same by cache.normalize", "same by the gate"]
    print(report("Near-twins that must not be the same", heads, counted(twins(Random(1)))))
    print(report("Paraphrases that are the same", heads, counted(paraphrases(Random(2)))))
    print(report("Near-twins written by hand", heads, counted(written("twins"))))
    print(report("Paraphrases written by hand", heads, counted(written("paraphrases"))))
    heads = ["questions", "by meaning, ms", "search through all vectors, ms"]
    print(report("Finding a question in other words", heads, look_ups()))
    if model:
        heads = [
            "half",
            "threshold",
            "twins, similarity alone",
            "paraphrases, alone",
            "twins, with the gate",
            "paraphrases, both",
        ]
        print(report("What similarity adds, 50 pairs of each in each half", heads, by_threshold(model)))


if __name__ == "__main__":
    main()
