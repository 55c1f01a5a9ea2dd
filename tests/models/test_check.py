"""`dray models check`: what Dray understood of a model, and what is wrong with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.models.check import CheckedItem
from cluster.models.folder import BUNDLED_FOLDER
from deployments.checking.program import check
from tests.models.vocabularies import words

SUBJECTS = [
    "files",
    "tokenizer",
    "special tokens",
    "chat template",
    "control tokens",
    "thinking",
    "tools",
    "stop tokens",
    "round trip",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be damaged."""
    return Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "model"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def template(folder: Path, source: str) -> None:
    (folder / "chat_template.jinja").write_text(source)


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def other_tokenizer(folder: Path) -> None:
    change(folder / "config.json", vocab_size=100)


def lossy_tokenizer(folder: Path) -> None:
    words().save(str(folder / "tokenizer.json"))


def no_thought(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<think>", "<thonk>"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "weights missing": (lambda folder: (folder / "openvino_model.bin").unlink(), "files", "lacks openvino_model.bin"),
    "tokenizer broken": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "files",
        "cannot be used as a tokenizer",
    ),
    "another's tokenizer": (other_tokenizer, "tokenizer", "another model's"),
    "words only": (lossy_tokenizer, "round trip", "comes back as"),
    "unknown bos": (lambda f: change(f / "tokenizer_config.json", bos_token="<x>"), "special tokens", "bos_token"),
    "no template": (without_template, "chat template", "only /v1/completions"),
    "endless": (lambda f: template(f, "{% for a in range(9**9) %}{% endfor %}"), "chat template", "its makers"),
    "syntax": (lambda f: template(f, "{% if %}"), "chat template", "its makers"),
    "deaf": (lambda f: template(f, "<｜User｜>"), "chat template", "does not show what the user says"),
    "thinking": (no_thought, "thinking", "no tokens"),
    "no end": (lambda f: change(f / "generation_config.json", eos_token_id=None), "stop tokens", "no answer would end"),
    "unknown end": (lambda f: change(f / "generation_config.json", eos_token_id=9999), "stop tokens", "is no token"),
    "other end": (lambda f: change(f / "generation_config.json", eos_token_id=[5]), "stop tokens", "add it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_named_with_what_to_do(folder: Path, damage: str) -> None:
    break_it, subject, expected = DAMAGES[damage]
    assert [item for item in check(folder) if item.problem] == []
    break_it(folder)
    problems = {item.subject: item.problem for item in check(folder) if item.problem}
    assert expected in problems.get(subject, ""), problems


def test_a_good_model_is_shown_as_a_table_and_as_json() -> None:
    shown = CliRunner().invoke(app, ["models", "check", str(BUNDLED_FOLDER), "--json"])
    assert shown.exit_code == 0, shown.output
    items = [CheckedItem(**item) for item in json.loads(shown.stdout)]
    assert [item.subject for item in items] == SUBJECTS
    found = {item.subject: item.found for item in items}
    assert "opened by the template" in found["thinking"] and "<｜end▁of▁sentence｜>" in found["stop tokens"]


def test_a_damaged_model_ends_the_command_with_1(folder: Path) -> None:
    without_template(folder)
    shown = CliRunner().invoke(app, ["models", "check", str(folder)], env={"COLUMNS": "250"})
    assert shown.exit_code == 1 and "only /v1/completions" in shown.output and "round trip" in shown.output
    missing = CliRunner().invoke(app, ["models", "check", str(folder / "none")])
    assert missing.exit_code == 1 and "not on this machine" in missing.output
