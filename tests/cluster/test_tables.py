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
from cluster.commands.cache import answers_table
from cluster.commands.keys import keys_table, usage_table
from cluster.commands.model_folders import check_table, losses_table
from cluster.commands.models import catalog_table, installed_table
from cluster.commands.settings import settings_table
from cluster.commands.status import replicas_table
from cluster.commands.teams import teams_table
from cluster.models.catalog import CATALOG
from cluster.models.check import CheckedItem
from cluster.models.folder import ServedModel
from cluster.models.store import Installed
from cluster.models.text_loss import TextLoss
from cluster.records.team_records import Key, Quota, Team
from cluster.records.usage import UsageRow
from cluster.tables import DataTable
from cluster.tuning.choice import LoadTimes, Trial
from cluster.tuning.report import Results
from cluster.tuning.variants import FUSED, MIXED_64

LONG = "deepseek-r1-distill-qwen-1.5b-finetuned-on-our-own-questions-of-2026-int8-symmetric-smoothed"
CHINESE = "客服团队的第二个模型与它的很长的名字"
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
    return Results(bundled, trials=[Trial(MIXED_64, loads), Trial(FUSED, loads)]).table()


def measured() -> list[DataTable]:
    results = ComparisonResults([f"http://{LONG}/v1", "http://b/v1"], [LONG, CHINESE])
    for server in (0, 1):
        stats = RunStats(Load("concurrency", 16), began=0, until=10)
        results.rounds[Load("concurrency", 16), server] = [stats]
    return tables(results)


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
    "bench": (measured, ()),
    "bench --cost": (lambda: cost_tables(DEFAULT), ()),
}
"""Each command's tables, and the names that must be found in them whole."""


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
        assert all(heading in "\n".join(lines) for heading in table.columns)
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
