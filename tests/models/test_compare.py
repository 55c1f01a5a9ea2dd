"""`dray models compare`: the bundled model and a damaged copy of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from cluster.models.compare import CompareError, perplexity, read_questions
from cluster.models.folder import BUNDLED_FOLDER
from cluster.models.text_loss import text_losses
from demo.problems import make

KNOWN = "\n".join(make(Random(n), "cage", "zh").thinking for n in range(20))
"""Text that the bundled model was trained on."""
QUESTIONS = [{"question": f"What is {n} + {n + 7}?", "answer": str(2 * n + 7)} for n in range(20, 32)]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    separate = {"DRAY_LEASE_DIR": str(folder / "c"), "DRAY_MODEL__KV_CACHE_MB": "64"}
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", "models", "compare", *arguments],
        env=os.environ | separate,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with noise in a quarter of its weights."""
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(BUNDLED_FOLDER, folder)
    weights = np.fromfile(folder / "openvino_model.bin", dtype=np.uint8)
    quarter = len(weights) // 4
    rng = np.random.default_rng(1)
    weights[quarter : 2 * quarter] ^= rng.integers(0, 16, quarter, dtype=np.uint8)
    weights.tofile(folder / "openvino_model.bin")
    return folder


@pytest.mark.slow
def test_a_damaged_model_answers_differently(tmp_path: Path, damaged: Path) -> None:
    file, text = tmp_path / "questions.jsonl", tmp_path / "text.txt"
    file.write_text("\n".join(map(json.dumps, QUESTIONS)))
    text.write_text(KNOWN)
    done = run(tmp_path, str(BUNDLED_FOLDER), str(damaged), "--questions", str(file), "--text", str(text), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["questions"] == len(QUESTIONS)
    assert result["same_answer"] < 1 and result["accuracy"][0] > result["accuracy"][1]
    assert 1 < result["perplexity"][0] < result["perplexity"][1]


def test_perplexity_is_lower_on_text_from_training() -> None:
    unknown = (BUNDLED_FOLDER / "chat_template.jinja").read_text()
    assert 1 < perplexity(BUNDLED_FOLDER, KNOWN) < perplexity(BUNDLED_FOLDER, unknown)
    with pytest.raises(CompareError, match="two tokens"):
        perplexity(BUNDLED_FOLDER, "")


def test_the_loss_on_a_text_is_that_of_weights_and_arithmetic(damaged: Path) -> None:
    losses = list(text_losses(BUNDLED_FOLDER, [BUNDLED_FOLDER, damaged], KNOWN[:1000]))
    assert [loss.arithmetic for loss in losses] == 2 * ["f32", "default", "int8 in groups"]
    exact, default, in_groups, *others = losses
    assert exact.divergence == pytest.approx(0, abs=1e-6) and exact.same_top == 1
    assert 0 < default.divergence < 0.1 and 0 < in_groups.divergence < 0.1
    for loss in others:
        assert loss.divergence > 10 * in_groups.divergence and loss.same_top < in_groups.same_top
        assert loss.perplexity > exact.perplexity


@pytest.mark.slow
def test_without_questions_only_the_text_is_measured(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(KNOWN[:1000])
    done = run(tmp_path, str(BUNDLED_FOLDER), str(BUNDLED_FOLDER), "--text", str(text), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["questions"], result["same_answer"]) == (0, None) and len(result["losses"]) == 6
    assert result["perplexity"][0] == result["perplexity"][1] == result["losses"][1]["perplexity"]


@pytest.mark.parametrize("line", ["{", '{"answer": "1"}', "[]", '"text"'])
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"question": "a"}}\n{line}\n')
    with pytest.raises(CompareError, match="jsonl:2"):
        read_questions(file)


def test_a_comparison_that_fails_is_one_line_of_error(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a"}\n')
    for arguments in (
        (str(BUNDLED_FOLDER), str(tmp_path / "nothing"), "--questions", str(file)),
        (str(BUNDLED_FOLDER), str(BUNDLED_FOLDER), "--questions", str(tmp_path / "nothing.jsonl")),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nothing" in done.stderr
