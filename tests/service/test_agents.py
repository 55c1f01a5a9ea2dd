"""Claude Code and Codex, as their makers ship them, asking a Dray that serves a small real model."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import ALONE, SHORT, ask_claude, ask_codex, installed
from tests.conftest import Dray, started_dray
from tests.models.smollm2 import smollm2

pytestmark = pytest.mark.slow
QUESTION = "What is 2 + 2?"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dray]:
    """It repeats itself less than the model would: an agent takes an answer that is cut off for a failure."""
    installed()
    folder = shutil.copytree(smollm2().folder, tmp_path_factory.mktemp("model") / "smollm2")
    defaults = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(defaults | {"repetition_penalty": 1.3}))
    settings = {"DRAY_MODEL__NAME": "smollm2", "DRAY_MODEL__KV_CACHE_MB": "512", "DRAY_MODEL__PRECISION": "exact"}
    with started_dray("--model", str(folder), settings=settings) as running:
        yield running


def test_claude_code_gets_an_answer(service: Dray, tmp_path: Path) -> None:
    done = ask_claude(service.root, "smollm2", tmp_path, QUESTION, *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["result"].strip()


def test_codex_gets_an_answer(service: Dray, tmp_path: Path) -> None:
    done = ask_codex(service.root, "smollm2", tmp_path, QUESTION, *ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert events[-1]["type"] == "turn.completed" and events[-1]["usage"]["output_tokens"] > 0
