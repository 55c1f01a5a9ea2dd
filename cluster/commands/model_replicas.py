"""`dray models replicas`."""

import time
from collections.abc import Sequence
from datetime import datetime

import msgspec

from cluster.commands.console import AsJson, Config, StateDir, out, print_json
from cluster.commands.teams import teams_redis
from cluster.records.activity import read_activity
from cluster.reports.models import Percentiles, ShownModel, shown_models
from cluster.tables import DataTable

_SHOWN_CHANGES = 5


def replicas(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show the served models with their replicas on all machines, their speed, and the last changes by autoscaling."""
    now = time.time()
    with teams_redis(config, state_dir) as client:
        models = shown_models(read_activity(client, now), now)
    if as_json:
        print_json(msgspec.to_builtins(models))
        return
    out.print(models_table(models))
    for model in models:
        for change in model.changes[:_SHOWN_CHANGES]:
            when = f"{datetime.fromtimestamp(change.time):%Y-%m-%d %H:%M:%S}"
            out.print(f"{when} {model.model}: {change.why}", highlight=False, markup=False)


def models_table(models: Sequence[ShownModel]) -> DataTable:
    """A line for each replica."""
    figures = ("running", "tokens/s", "KV used", "restarts", "waiting", "first token s", "per token s")
    drop = ("restarts", "KV used", "cores", "replica", "per token s")
    table = DataTable("model", "replica", "cores", *figures, right=figures, drop=drop)
    for model in models:
        speed = (str(model.waiting), _median(model.first_token_s), _median(model.per_token_s))
        if not model.replicas:
            table.add_row(model.model, "", "", "", "", "", "", *speed)
        for replica in model.replicas:
            rate, used = f"{replica.tokens_per_s:.0f}", f"{replica.kv_used:.0%}"
            load = (str(replica.running), rate, used, str(replica.restarts))
            table.add_row(model.model, replica.replica, replica.cpus, *load, *speed)
    return table


def _median(measured: Percentiles | None) -> str:
    return "-" if measured is None else f"{measured.p50:.3f}"
