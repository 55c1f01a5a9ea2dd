"""Tables at 80 and 120 columns and in a pipe: no name is cut, however long and in whichever script."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from cluster.bench.compare import ComparisonResults
from cluster.bench.cost import DEFAULT
from cluster.bench.load import Load
from cluster.bench.report import cost_tables, tables
from cluster.bench.results import RunStats
from cluster.commands.activity import errors_table, requests_table
from cluster.commands.answers import answers_table as curated_table
from cluster.commands.batch import batches_table
from cluster.commands.cache import answers_table, found_table
from cluster.commands.feedback import feedback_table
from cluster.commands.keys import keys_table, usage_table
from cluster.commands.model_folders import check_table, losses_table
from cluster.commands.model_replicas import models_table
from cluster.commands.models import catalog_table, entry_table, installed_table
from cluster.commands.ps import RunningModel, ps_table
from cluster.commands.settings import settings_table
from cluster.commands.status import replicas_table
from cluster.commands.teams import budgets_table, teams_table
from cluster.commands.usage import usage_table as sums_table
from cluster.models.catalog import CATALOG
from cluster.models.check import CheckedItem
from cluster.models.folder import ServedModel
from cluster.models.store import Installed
from cluster.models.text_loss import TextLoss
from cluster.plan.nodes import Capacity
from cluster.plan.report import Plan
from cluster.plan.report import table as plan_table
from cluster.plan.search import Target, Trial
from cluster.plan.service import Measurements
from cluster.records.cache_search import CachedAnswer
from cluster.records.curated import ListedAnswer
from cluster.records.feedback import ListedFeedback
from cluster.records.team_records import Key, Quota, Team
from cluster.records.usage import UsageRow
from cluster.reports.activity import ShownError, ShownRequest
from cluster.reports.budgets import Budget
from cluster.reports.models import Percentiles, ShownModel, ShownReplica
from cluster.reports.usage import UsageSum
from cluster.tables import DataTable
from cluster.tuning.choice import LoadTimes
from cluster.tuning.choice import Trial as TunedTrial
from cluster.tuning.report import Results
from cluster.tuning.variants import FUSED, MIXED_64

LONG = "deepseek-r1-distill-qwen-1.5b-finetuned-on-our-own-questions-of-2026-int8-symmetric-smoothed"
CHINESE = "客服团队的第二个模型与它的很长的名字"
KEY = "0f3a" * 10
"""A key of the answer cache."""
ID = "batch_" + "0f3a" * 8
TEAM = "a" * 64
"""The longest name that a team can have."""
ASKED = "How do I get a new password for the VPN?"
TALE = "This is a sentence about what the model was asked and what it said, at some length. " * 3
REPLICA: dict[str, Any] = {
    "cpus": "0,1,2,3,4,5,6,7",
    "engine_pid": 1234567,
    "running": 12,
    "tokens_per_s": 1234.5,
    "kv_used": 0.25,
    "restarts": 0,
}


def replicas() -> DataTable:
    return replicas_table([LONG, CHINESE], [{"model": LONG, "replica": f"{LONG}#a1b2c3", **REPLICA}])


def tuned(bundled: ServedModel) -> DataTable:
    loads = tuple(LoadTimes(streams, streams or 512, 1.0, 0.5, 2.0) for streams in (1, 8, 32, 0))
    return Results(bundled, trials=[TunedTrial(MIXED_64, loads), TunedTrial(FUSED, loads)]).table()


def measured() -> list[DataTable]:
    results = ComparisonResults([f"http://{LONG}/v1", "http://b/v1"], [LONG, CHINESE])
    for server in (0, 1):
        stats = RunStats(Load("concurrency", 16), began=0, until=10)
        results.rounds[Load("concurrency", 16), server] = [stats]
    return tables(results)


def served() -> DataTable:
    running = ShownReplica(f"{LONG}#a1b2c3", "0,1,2,3,4,5,6,7", 12, 1234.5, 0.25, 0)
    times = Percentiles(0.1, 0.2, 0.3, 99)
    return models_table(
        [
            ShownModel(LONG, "generate", 4096, 3, [running], times, times, []),
            ShownModel(CHINESE, "embed", 512, 0, [], None, None, []),
        ]
    )


def asked() -> DataTable:
    request = ("r-0f3a9b", 0.0, "router", TEAM, LONG, "/v1/chat/completions", 429, "rate_limit_exceeded", "bypass")
    return requests_table([ShownRequest(*request, True, 0.1, None, 12.0, 10**6, 10**6, TALE, TALE)])


def batches() -> DataTable:
    counts = {"completed": 10**6, "failed": 0, "total": 10**6}
    batch = {"id": ID, "owner": f"team.{TEAM}", "status": "in_progress", "request_counts": counts, "created_at": 0}
    return batches_table([batch])


def planned() -> DataTable:
    need, target = Capacity(1000, 4, 250, 2000, 16384, 4_096_000, 12), Target(3.0, 0.2)
    return plan_table(Plan(target, need, Trial(1000, 1.0, Measurements()), 12.5, [], 1.0, 0))


TABLES: dict[str, tuple[Callable[[], DataTable | list[DataTable]], tuple[str, ...]]] = {
    "cache stats": (lambda: answers_table({(LONG, CHINESE): 3}), (LONG, CHINESE)),
    "models list": (lambda: catalog_table(CATALOG.values()), tuple(CATALOG)),
    "models list, installed": (
        lambda: installed_table(Path("/models"), [Installed(name, Path("/m"), 1, {}) for name in (LONG, CHINESE)]),
        (LONG, CHINESE),
    ),
    "models check": (
        lambda: check_table([CheckedItem(CHINESE, "found a template", f"{LONG} is wrong; do this and then that")]),
        (CHINESE,),
    ),
    "models compare": (
        lambda: losses_table(
            [TextLoss("/a", "int8", 1.5, 0.01, 0.9), TextLoss("/b", "int8", 1, 0, 1)], {"/a": LONG, "/b": CHINESE}
        ),
        (LONG, CHINESE),
    ),
    "settings": (
        lambda: settings_table(
            [("cluster.address", LONG, "/etc/dray/dray.yaml", "What this setting does, at length.")]
        ),
        ("cluster.address",),
    ),
    "status": (replicas, (LONG, CHINESE)),
    "teams list": (
        lambda: teams_table([Team("a" * 64, 0.0, (LONG, CHINESE), quota=Quota(10**6, 10**9, 100, 10**12))], []),
        ("a" * 64,),
    ),
    "keys list": (lambda: keys_table([Key("k3v9x0ab12", "a" * 64, "", 0.0, CHINESE)]), ("k3v9x0ab12", "a" * 64)),
    "keys usage": (
        lambda: usage_table([UsageRow("2026-11-27", "b" * 64, CHINESE, *[10**9] * 7)]),
        ("2026-11-27", "b" * 64, CHINESE),
    ),
    "ps": (
        lambda: ps_table(
            [RunningModel(LONG, f"{LONG}#a1b2c3", "0,1,2,3", 2**33, 12, 3, 0.0), RunningModel(CHINESE)], 0
        ),
        (LONG, CHINESE),
    ),
    "usage": (
        lambda: sums_table(
            [UsageSum(team=TEAM, model=CHINESE, requests=10**9, cost=1e6)], UsageSum(cost=1e6), ("team", "model"), "EUR"
        ),
        (TEAM, CHINESE),
    ),
    "requests": (asked, (TEAM, "429 rate_limit_exceeded")),
    "errors": (
        lambda: errors_table([ShownError(429, "rate_limit_exceeded", TEAM, LONG, 10**6, 0.0, TALE)]),
        ("rate_limit_exceeded",),
    ),
    "teams budgets": (
        lambda: budgets_table([Budget(TEAM, "2026-11", 10**12, 10**12, 1e6, 1e6, 1.0, "exceeded")], "EUR"),
        (TEAM, "exceeded"),
    ),
    "models replicas": (served, (LONG, CHINESE)),
    "models show": (lambda: entry_table(CATALOG["deepseek-r1-distill-qwen-1.5b"]), ()),
    "batch list": (batches, (ID, "in_progress")),
    "answers list": (
        lambda: curated_table([ListedAnswer(KEY, f"team.{TEAM}", ASKED, ASKED, LONG, CHINESE, 0.0, 1.0, True, True)]),
        (KEY, CHINESE),
    ),
    "feedback list": (
        lambda: feedback_table(
            [ListedFeedback(KEY, TEAM, f"team.{TEAM}", LONG, ASKED, ASKED, 10, 10**6, 10**6, (ASKED,), "", KEY, 0.0)]
        ),
        (KEY, TEAM),
    ),
    "cache search": (
        lambda: found_table([CachedAnswer(KEY, LONG, f"team.{TEAM}", TALE, TALE, 0.0, 60, 1000)]),
        (KEY,),
    ),
    "plan": (planned, ()),
    "bench": (measured, ()),
    "bench --cost": (lambda: cost_tables(DEFAULT), ()),
}
"""Each command's tables, and the names that must be found in them whole."""
BARE = ("models show", "plan")
"""These have no headings."""


def shown(table: DataTable | list[DataTable], width: int) -> list[str]:
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    for each in table if isinstance(table, list) else [table]:
        console.print(each)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", TABLES)
def test_no_name_is_cut_or_wrapped_before_the_edge(name: str, width: int) -> None:
    make, names = TABLES[name]
    lines = shown(make(), width)
    assert max(map(cell_len, lines)) <= width
    joined = "".join(lines)
    assert "…" not in joined
    for each in names:
        assert each in joined, "\n".join(lines)


@pytest.mark.parametrize("name", TABLES)
def test_a_pipe_gets_every_column_a_line_for_each_row(name: str) -> None:
    make, names = TABLES[name]
    made = make()
    lines = shown(made, 1_000_000)
    for table in made if isinstance(made, list) else [made]:
        assert name in BARE or all(heading in "\n".join(lines) for heading in table.columns)
    for each in names:
        assert any(each in line for line in lines)


def test_the_table_of_dray_tune_keeps_the_score(bundled: ServedModel) -> None:
    for width in (80, 120):
        text = "\n".join(shown(tuned(bundled), width))
        assert "score" in text and str(FUSED) in text
    assert str(MIXED_64) in "\n".join(shown(tuned(bundled), 200))


def test_the_least_important_columns_go_first() -> None:
    table = DataTable("name", "one", "two", drop=["two", "one"])
    table.add_row("x" * 10, "y" * 10, "z" * 10)
    headings = {width: shown(table, width)[1] for width in (40, 39, 27, 26)}
    assert {width: ("one" in line, "two" in line) for width, line in headings.items()} == {
        40: (True, True),
        39: (True, False),
        27: (True, False),
        26: (False, False),
    }


def test_a_command_in_a_pipe_wraps_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "models", "list"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"COLUMNS": "40", "HOME": str(tmp_path)}
    )
    lines = done.stdout.splitlines()
    assert all(any(name in line and "│" in line for line in lines) for name in CATALOG)
    assert "thinks" in done.stdout and "\x1b" not in done.stdout
