"""Compares two models, for example weight formats of one: agreement of greedy answers, accuracy, perplexity."""

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

from cluster.models.folder import ModelFolderError, open_model
from cluster.models.tokenizer_files import load_tokenizer
from cluster.ports import free_port
from cluster.settings import ModelSettings

_CONCURRENCY = 16
_WINDOW_TOKENS = 512
_TIMEOUT = httpx.Timeout(10.0, read=900.0)


class CompareError(Exception):
    """The models cannot be compared; the message says why."""


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """A question, and the strings that a correct answer contains. Without any, only agreement is measured."""

    text: str
    expect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvalAnswer:
    """A greedy answer. finish: `stop`, or `length` where it reached its limit."""

    reasoning: str
    text: str
    finish: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results of a comparison. Pairs are in the order of the models.

    same_answer, same_thinking: shares of all questions. accuracy: share of the questions with an expected answer.
    perplexity: None without a text.
    """

    questions: int
    same_answer: float
    same_thinking: float
    accuracy: tuple[float | None, float | None]
    perplexity: tuple[float | None, float | None]


def read_questions(path: Path) -> list[EvalQuestion]:
    """Reads JSON Lines: {"question": "...", "answer": "23"}.

    The answer is optional, and may be a list of strings, all of which a correct answer contains. Raises CompareError
    with the line's number.
    """
    questions = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            answer = content.get("answer", [])
            expect = (answer,) if isinstance(answer, str) else tuple(map(str, answer))
            questions.append(EvalQuestion(str(content["question"]), expect))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CompareError(f'{path}:{number}: not of the form {{"question": "...", "answer": "..."}}') from None
    if not questions:
        raise CompareError(f"{path} holds no question")
    return questions


def compare(models: Sequence[str], questions: Sequence[EvalQuestion], text: str, max_tokens: int) -> Comparison:
    """Serves two models one after the other and asks both the same questions.

    models: their folders. text: for perplexity; empty leaves it out. max_tokens: of each answer. Raises CompareError
    where a model cannot be served.
    """
    answers = []
    # Both first: asking takes minutes.
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
    """exp of the mean negative log-likelihood per token, in windows of 512 tokens without overlap.

    folder: of the model. Raises CompareError for a text of fewer than two tokens.
    """
    import openvino

    ids = load_tokenizer(folder).encode(text, add_special_tokens=False).ids
    if len(ids) < 2:
        raise CompareError("the text for perplexity has fewer than two tokens")
    request = openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU").create_infer_request()
    loss, count = 0.0, 0
    for start in range(0, len(ids) - 1, _WINDOW_TOKENS):
        window = np.array([ids[start : start + _WINDOW_TOKENS + 1]], dtype=np.int64)
        input_ids, targets = window[:, :-1], window[0, 1:]
        request.reset_state()
        inputs = {
            "input_ids": input_ids,
            "attention_mask": np.ones_like(input_ids),
            "position_ids": np.arange(input_ids.shape[1])[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        names = {port.any_name for port in request.model_inputs}
        logits = next(iter(request.infer({name: value for name, value in inputs.items() if name in names}).values()))
        scores = np.asarray(logits[0], dtype=np.float64)
        highest = scores.max(axis=1)
        total = np.log(np.exp(scores - highest[:, None]).sum(axis=1)) + highest
        loss += float((total - scores[np.arange(len(targets)), targets]).sum())
        count += len(targets)
    return math.exp(loss / count)


@contextmanager
def _served(model: str) -> Iterator[tuple[str, str]]:
    """Runs a separate Dray that serves one model. Yields its base URL and the model's name."""
    with tempfile.TemporaryDirectory(prefix="dray-m-") as folder:
        separate = {
            "DRAY_STATE_DIR": f"{folder}/s",
            "DRAY_DATA_DIR": f"{folder}/d",
            "DRAY_PORT": str(free_port()),
            "DRAY_CACHE__ENABLED": "false",
        }

        def dray(*arguments: str) -> None:
            command = [sys.executable, "-m", "cluster.cli", *arguments]
            ended = subprocess.run(command, env=os.environ | separate, capture_output=True, text=True, check=False)
            if ended.returncode:
                lines = ended.stderr.strip().splitlines()
                raise CompareError(f"{model}: {lines[-1].removeprefix('error: ') if lines else 'does not start'}")

        dray("up", "--detach", "--model", model)
        try:
            url = f"http://127.0.0.1:{separate['DRAY_PORT']}/v1"
            yield url, httpx.get(f"{url}/models", timeout=_TIMEOUT).json()["data"][0]["id"]
        finally:
            dray("down")


def _ask(url: str, model: str, questions: Sequence[EvalQuestion], max_tokens: int) -> list[EvalAnswer]:
    with httpx.Client(timeout=_TIMEOUT) as client, ThreadPoolExecutor(_CONCURRENCY) as workers:

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
    expected = [(question, answer) for question, answer in zip(questions, answers, strict=True) if question.expect]
    if not expected:
        return None
    return sum(all(part in answer.text for part in question.expect) for question, answer in expected) / len(expected)
