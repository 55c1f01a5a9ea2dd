"""`dray usage`, with a real Redis."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.records.usage import field_of, key_of, today
from cluster.redis_client import connect
from tests.conftest import redis_server

COUNTS = {"requests": 5, "hits": 2, "joins": 1, "prompt": 1_000_000, "completion": 500_000, "saved_prompt": 100_000}


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    with redis_server(16) as server:
        with connect(server.url) as client:
            for team, model in (("support", "small"), ("support", "large"), ("sales", "small")):
                for name, count in COUNTS.items():
                    client.hincrby(key_of(today()), field_of(team, model, name), count)
        yield {"DRAY_TEAMS__URL": server.url, "DRAY_STATE_DIR": str(tmp_path / "s")}


def test_usage_is_shown_with_its_cost(environment: dict[str, str]) -> None:
    priced = environment | {"DRAY_PRICES__MODELS": json.dumps([{"model": "small", "input": 2, "output": 4}])}
    printed = CliRunner().invoke(app, ["usage", "--json", "--by", "team"], env=priced)
    report = json.loads(printed.stdout)
    costs = {row["team"]: (row["requests"], row["cost"], row["saved_cost"]) for row in report["data"]}
    assert costs == {"sales": (5, 4.0, 0.2), "support": (10, 4.0, 0.2)}
    assert report["total"]["cost"] == 8.0 and report["currency"] == "USD"
    table = CliRunner().invoke(app, ["usage"], env=priced).stdout
    assert "cost (USD)" in table and "4.0000" in table and "large" in table
    assert "cost" not in CliRunner().invoke(app, ["usage"], env=environment).stdout
    refused = CliRunner().invoke(app, ["usage", "--by", "week"], env=environment)
    assert refused.exit_code == 1 and "'week' is none" in refused.output
