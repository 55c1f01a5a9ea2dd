"""A routed model compared with a large model alone: share sent to each, right answers, tokens/s and time of an answer.

Two kinds of questions: problems that the bundled model was made for, and questions of general knowledge, which it
cannot answer. Keywords send the former to it. Each round asks every question of the routed model and of the large one,
in turn, without the cache. The large one should understand English, as SmolLM2 in a folder; the ratios are what counts.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import mean, median

import httpx

from benchmarks.service import Service, report, running
from cluster.settings import BUNDLED
from cluster.tuning.tasks import PROBLEMS

_SMALL, _LARGE, _AUTO = "small", "large", "auto"
_KEYWORDS = (
    *("plus", "minus", "times", "add", "sum", "subtract", "multiply", "multiplied", "take away", "put", "together"),
    *("+", "-", "−", "*", "×", "days", "legs", "feet", "加", "减", "乘", "和", "脚", "腿", "足", "天", "日"),
)
_KNOWLEDGE = (
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the largest planet in our solar system?", "Jupiter"),
    ("Which planet do we live on?", "Earth"),
    ("What gas do plants take in for photosynthesis?", "carbon dioxide"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("What is the chemical formula of water?", "H2O"),
    ("Which ocean lies between Europe and America?", "Atlantic"),
    ("Which animal is known as man's best friend?", "dog"),
    ("In which country are the pyramids of Giza?", "Egypt"),
    ("Who painted the Mona Lisa?", "Leonardo"),
)


@dataclass
class Asked:
    """What one model gave in one round."""

    right: Counter[str] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0


def questions(problems: int) -> list[tuple[str, str, list[str]]]:
    """The kind, the text, and what a right answer contains. problems: how many of the bundled ones, spread evenly."""
    lines = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()]
    chosen = lines[:: max(1, len(lines) // problems)][:problems]
    asked = [("problem", line["question"], line["answer"]) for line in chosen]
    return asked + [("knowledge", text, [answer]) for text, answer in _KNOWLEDGE]


def ask_all(client: httpx.Client, model: str, args: argparse.Namespace) -> Asked:
    asked = Asked()
    for kind, text, expected in questions(args.problems):
        body = {"model": model, "temperature": 0, "max_tokens": args.tokens}
        began = time.perf_counter()
        given = client.post("/chat/completions", json=body | {"messages": [{"role": "user", "content": text}]})
        asked.seconds.append(time.perf_counter() - began)
        answer = given.raise_for_status().json()
        asked.by_model[answer["model"]] += 1
        asked.tokens += answer["usage"]["completion_tokens"]
        content = (answer["choices"][0]["message"]["content"] or "").lower()
        asked.right[kind] += all(part.lower() in content for part in expected)
    return asked


def compare(service: Service, args: argparse.Namespace) -> str:
    rounds: dict[str, list[Asked]] = {_LARGE: [], _AUTO: []}
    headers = {"Cache-Control": "no-cache, no-store"}
    with httpx.Client(base_url=service.url, timeout=600, headers=headers) as client:
        for model in (_SMALL, _LARGE):  # the first request of a model is slow
            ask = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
            client.post("/chat/completions", json=ask).raise_for_status()
        for number in range(args.rounds):
            for model in sorted(rounds, reverse=bool(number % 2)):
                rounds[model].append(ask_all(client, model, args))
    kinds = Counter(kind for kind, _, _ in questions(args.problems))
    rows = []
    for model, all_asked in rounds.items():
        last, total = all_asked[-1], kinds.total()
        share = last.by_model[_SMALL] / total
        right = [f"{last.right[kind]} of {kinds[kind]}" for kind in ("problem", "knowledge")]
        rate = median(asked.tokens / sum(asked.seconds) for asked in all_asked)
        seconds = median(mean(asked.seconds) for asked in all_asked)
        rows.append([model, f"{100 * share:.0f} %", *right, f"{rate:.1f}", f"{seconds:.2f}"])
    pairs = list(zip(rounds[_AUTO], rounds[_LARGE], strict=True))
    faster = median((one.tokens / sum(one.seconds)) / (other.tokens / sum(other.seconds)) for one, other in pairs)
    shorter = median(mean(one.seconds) / mean(other.seconds) for one, other in pairs)
    rows.append(["ratio", "", "", "", f"{faster:.2f}", f"{shorter:.2f}"])
    heads = ["model", "sent to the small one", "problems right", "knowledge right", "tokens/s", "mean time, s"]
    return report("A routed model beside a large one alone", heads, rows)


def models_of(large: str) -> str:
    """The setting `models`, as JSON."""
    shared = {"cores_per_replica": 1, "kv_cache_mb": 256}
    route = [{"to": _SMALL, "keywords": _KEYWORDS, "max_chars": 300}, {"to": _LARGE}]
    entries = [
        {"name": _SMALL, "source": BUNDLED, **shared},
        {"name": _LARGE, "source": large, **shared},
        {"name": _AUTO, "route": route},
    ]
    return json.dumps(entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", required=True, help="folder, catalog name or Hub id of the large model")
    parser.add_argument("--problems", type=int, default=36, help="problems of the bundled model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200, help="maximum tokens of an answer")
    args = parser.parse_args()
    with running(DRAY_MODELS=models_of(args.large), DRAY_ROUTER__REPLICAS="1") as service:
        print(compare(service, args))


if __name__ == "__main__":
    main()
