"""Memory and speed of the catalog's models, from a profile of another model."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.models.catalog import CATALOG
from cluster.plan.catalog import as_markdown, estimates
from cluster.plan.profile import read_profile
from tests.plan.profiles import BASE_S, CONTEXT_S, ENGINE, ROW_S, STREAM_S, profile


def test_speed_follows_weights_and_cores() -> None:
    rows = {row.name: row for row in estimates(profile(), 1)}
    assert set(rows) == {name for name, entry in CATALOG.items() if entry.task == "generate"}
    step_s = BASE_S + ROW_S + STREAM_S + 64 * CONTEXT_S
    for row in rows.values():
        assert row.alone == pytest.approx(ENGINE.weights_bytes / row.weights_bytes / step_s, rel=0.05)
        assert row.alone < row.together < row.prompt
        assert row.memory_mb * 2**20 > 2 * row.weights_bytes, "mapped, and repacked by the replica"
    eight = {row.name: row for row in estimates(profile(), 8)}
    for name, row in rows.items():
        assert eight[name].prompt == pytest.approx(8 * row.prompt) and eight[name].memory_mb == row.memory_mb


def test_the_command_prints_a_table_that_says_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_bytes(msgspec.json.encode(profile()))
    printed = CliRunner().invoke(app, ["plan", "catalog", "--profile", str(file)]).output
    assert "Measured: the steps of pretend on 1 core of no machine" in printed
    assert all(f"| {name} | " in printed for name, entry in CATALOG.items() if entry.task == "generate")
    rows = json.loads(CliRunner().invoke(app, ["plan", "catalog", "--profile", str(file), "--json"]).output)
    assert [row["alone"] for row in rows] == [row.alone for row in estimates(profile(), 8)]


def test_the_page_has_what_the_command_prints() -> None:
    """`dray plan catalog --profile benchmarks/m15.steps.json --cores 8`"""
    root = Path(__file__).parents[2]
    table = as_markdown(read_profile(root / "benchmarks" / "m15.steps.json"), 8)
    assert table in (root / "docs" / "planning.md").read_text()
