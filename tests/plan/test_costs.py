"""`dray plan cost`: each figure follows from the plan and the assumptions by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app

PLAN = {"needed": {"nodes": 10}, "peak": {"tokens_per_s": 1500.0}, "day": {"requests": 1e6, "tokens": 40e6}}
ASSUMED = ("pc.price=0", "pc.monthly=5", "pc.watts=100", "pc.kwh=0.5", "pc.hours=720")
GPU = (
    "gpu.price=36000",
    "gpu.life_months=36",
    "gpu.monthly=100",
    "gpu.watts=300",
    "gpu.kwh=0.5",
    "gpu.tokens_per_s=700",
)


def run(plan: Path, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plan", "cost", str(plan), *arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    return path


def test_money_power_and_co2_of_both_sides(plan: Path) -> None:
    assume = [part for text in (*ASSUMED, *GPU) for part in ("--assume", text)]
    code, text, err = run(plan, *assume, "--kg-per-kwh", "0.4", "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(text)
    # Ten nodes of 100 W for 720 h are 720 kWh; each costs 5 and 36 for its power.
    expected: dict[str, float] = {"machines": 10, "price": 0, "month": 410, "watts": 1000, "kwh": 720, "kg": 288}
    assert found["nodes"] == pytest.approx({**expected, "per_million": 410 / 1200})
    # Three servers give 1,500 tokens/s; each costs 1,000 of its price, 100, and 108 for power.
    expected = {"machines": 3, "price": 108_000, "month": 3624, "watts": 900, "kwh": 648, "kg": 259.2}
    assert found["gpu_servers"] == pytest.approx({**expected, "per_million": 3624 / 1200})
    assert found["kg_per_kwh"] == 0.4 and found["assumptions"]["gpu"]["watts"] == 300


def test_the_table_says_where_each_assumption_comes_from(plan: Path) -> None:
    code, text, err = run(plan, "--assume", "pc.watts=65")
    assert code == 0, err
    assert "pc.watts 65 (given)" in text and "gpu.tokens_per_s 1000 (assumed: set your own)" in text
    assert "0.582 kg CO2 a kWh" in text


def test_what_is_wrong_is_said_in_one_line(plan: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    for arguments, words in (
        ((other,), "dray plan --json"),
        ((tmp_path / "none.json",), "none.json"),
        ((plan, "--assume", "gpu.colour=1"), "unknown assumption"),
    ):
        code, _, err = run(*arguments)
        assert code == 1 and words in err and len(err.strip().splitlines()) == 1, err
