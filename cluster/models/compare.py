"""Do two models answer alike? Greedy answers side by side, accuracy, and perplexity: what a weight format costs."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from cluster.launch.preflight import free_port
from cluster.models.folder import ModelFolderError, open_model
from cluster.settings import ModelSettings

_AT_A_TIME = 16
_WINDOW_TOKENS = 512
_TIMEOUT = httpx.Timeout(10.0, read=900.0)


class CompareError(Exception):
    """The comparison cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """A question, and strings that a right answer holds (none: only agreement is looked at)."""

    text: str
    expect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvalAnswer:
    """A greedy answer. finish: stop, or length where it ran into its limit."""

    reasoning: str
    text: str
    finish: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Shares are of all questions (accuracy: of those with an expected answer); perplexity is None without a text."""

    questions: int
    same_answer: float
    same_thinking: float
    accuracy: tuple[float | None, float | None]
    perplexity: tuple[float | None, float | None]


def read_questions(path: Path) -> list[EvalQuestion]:
    """JSON Lines: {"question": "...", "answer": "23"}, where answer may be left out, or be a list of strings that
    must all be there. Raises CompareError with the line's number."""
    questions = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            answer = given.get("answer", [])
            expect = (answer,) if isinstance(answer, str) else tuple(map(str, answer))
            questions.append(EvalQuestion(str(given["question"]), expect))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CompareError(f'{path}:{number}: not of the form {{"question": "...", "answer": "..."}}') from None
    if not questions:
        raise CompareError(f"{path} holds no question")
    return questions


def compare(models: Sequence[str], questions: Sequence[EvalQuestion], text: str, max_tokens: int) -> Comparison:
    """Serves the two models one after the other and asks both the same. models: folders or names of models here.

    text: what perplexity is measured on; empty leaves it out. Raises CompareError where one cannot be served.
    """
    answers = []
    # Before the first has been asked for minutes.
    for model in models:
        _check(model)
    for model in models:
        with _served(model) as (url, name):
            answers.append(_ask(url, name, questions, max_tokens))
    first, second = answers
    pairs = list(zip(first, second, strict=True))
    return Comparison(
        len(questions),
        sum(a.text == b.text for a, b in pairs) / len(pairs),
        sum(a.reasoning == b.reasoning for a, b in pairs) / len(pairs),
        (_accuracy(questions, first), _accuracy(questions, second)),
        tuple(perplexity(Path(model), text) if text else None for model in models),  # type: ignore[arg-type]
    )


def _check(folder: str) -> None:
    try:
        open_model(ModelSettings(source=folder), Path(folder))
    except ModelFolderError as error:
        raise CompareError(str(error)) from None


def perplexity(folder: Path, text: str) -> float:
    """exp of the mean negative log likelihood of a token, in windows of 512 tokens without overlap."""
    import openvino
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    if len(ids) < 2:
        raise CompareError("the text for perplexity has fewer than two tokens")
    request = openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU").create_infer_request()
    loss, count = 0.0, 0
    for start in range(0, len(ids) - 1, _WINDOW_TOKENS):
        window = np.array([ids[start : start + _WINDOW_TOKENS + 1]], dtype=np.int64)
        given, wanted = window[:, :-1], window[0, 1:]
        request.reset_state()
        inputs = {
            "input_ids": given,
            "attention_mask": np.ones_like(given),
            "position_ids": np.arange(given.shape[1])[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        named = {one.any_name for one in request.model_inputs}
        logits = next(iter(request.infer({name: value for name, value in inputs.items() if name in named}).values()))
        scores = np.asarray(logits[0], dtype=np.float64)
        highest = scores.max(axis=1)
        total = np.log(np.exp(scores - highest[:, None]).sum(axis=1)) + highest
        loss += float((total - scores[np.arange(len(wanted)), wanted]).sum())
        count += len(wanted)
    return math.exp(loss / count)


@contextmanager
def _served(model: str) -> Iterator[tuple[str, str]]:
    """A Dray of its own that serves one model; gives its base URL and the model's name."""
    with tempfile.TemporaryDirectory(prefix="dray-m-") as folder:
        own = {
            "DRAY_STATE_DIR": f"{folder}/s",
            "DRAY_DATA_DIR": f"{folder}/d",
            "DRAY_PORT": str(free_port()),
            "DRAY_CACHE__ENABLED": "false",
        }

        def dray(*arguments: str) -> None:
            command = [sys.executable, "-m", "cluster.cli", *arguments]
            ended = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
            if ended.returncode:
                said = ended.stderr.strip().splitlines()
                raise CompareError(f"{model}: {said[-1].removeprefix('error: ') if said else 'does not start'}")

        dray("up", "--detach", "--model", model)
        try:
            url = f"http://127.0.0.1:{own['DRAY_PORT']}/v1"
            yield url, httpx.get(f"{url}/models", timeout=_TIMEOUT).json()["data"][0]["id"]
        finally:
            dray("down")


def _ask(url: str, model: str, questions: Sequence[EvalQuestion], max_tokens: int) -> list[EvalAnswer]:
    with httpx.Client(timeout=_TIMEOUT) as client, ThreadPoolExecutor(_AT_A_TIME) as workers:

        def ask(question: EvalQuestion) -> EvalAnswer:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": question.text}],
                "temperature": 0,
                "max_tokens": max_tokens,
            }
            response = client.post(f"{url}/chat/completions", json=body)
            if response.status_code != httpx.codes.OK:
                raise CompareError(f"{model} refused a question: {response.text}")
            choice = response.json()["choices"][0]
            message = choice["message"]
            return EvalAnswer(message.get("reasoning_content") or "", message["content"] or "", choice["finish_reason"])

        return list(workers.map(ask, questions))


def _accuracy(questions: Sequence[EvalQuestion], answers: Sequence[EvalAnswer]) -> float | None:
    judged = [(question, answer) for question, answer in zip(questions, answers, strict=True) if question.expect]
    if not judged:
        return None
    return sum(all(part in answer.text for part in question.expect) for question, answer in judged) / len(judged)
