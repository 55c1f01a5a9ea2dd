"""`dray status`."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from cluster.client import ServerError, metrics
from cluster.commands.console import AsJson, Config, StateDir, fail, found, out
from cluster.launch.environment import METRICS_FOLDER
from cluster.launch.state import Record
from cluster.scaling_metrics import read_decisions

_WHY = {
    "load": "what waits needs them",
    "office_hours": "office_hours asks for them",
    "min": "the least that the settings ask for",
    "max": "the most that the settings allow",
    "unknown": "as before, since no replica has reported its pace",
}


def status(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show the replicas, their cores, why there are so many, tokens a second, cache hits and Redis.

    Exit code 3: still starting.
    """
    record = found(config, state_dir)
    if record.stage != "ready":
        if as_json:
            out.print_json(data={"stage": record.stage})
        else:
            out.print(record.stage)
        raise typer.Exit(3)
    try:
        report = _report(record)
    except ServerError as error:
        raise fail(str(error)) from None
    if as_json:
        out.print_json(data=report)
        return
    table = Table("model", "replica", "cores", "engine pid", "running", "tokens/s", "KV used", "restarts")
    for one in report["replicas"]:
        table.add_row(
            one["model"],
            one["replica"],
            one["cpus"],
            str(one["engine_pid"]),
            str(one["running"]),
            f"{one['tokens_per_s']:.0f}",
            f"{one['kv_used']:.0%}",
            str(one["restarts"]),
        )
    awake = {one["model"] for one in report["replicas"]}
    for name in report["models"]:
        if name not in awake:
            table.add_row(name, "(asleep)")
    out.print(f"{', '.join(report['models'])} at {report['url']}", highlight=False)
    out.print(table)
    for one in report["autoscaling"]:
        out.print(_why(one), highlight=False)
    answers = report["answers"]
    out.print(
        f"answers: {answers['hit']} from the cache, {answers['join']} joined, {answers['miss']} generated, "
        f"{answers['bypass']} uncached; "
        f"Redis: {report['redis']}",
        highlight=False,
    )


def _report(record: Record) -> dict[str, Any]:
    samples = metrics(record.url)

    def by_replica(name: str) -> dict[str, float]:
        return {labels["replica"]: value for labels, value in samples.get(name, [])}

    running_now, rates = by_replica("dray_engine_running"), by_replica("dray_engine_tokens_per_second")
    kv_used, restarts = by_replica("dray_engine_kv_used_ratio"), by_replica("dray_engine_restarts_total")
    replicas = [
        {
            "model": labels["model"],
            "replica": labels["replica"],
            "cpus": labels["cpus"],
            "engine_pid": int(labels["engine_pid"]),
            "running": int(running_now.get(labels["replica"], 0)),
            "tokens_per_s": rates.get(labels["replica"], 0.0),
            "kv_used": kv_used.get(labels["replica"], 0.0),
            "restarts": int(restarts.get(labels["replica"], 0)),
        }
        for labels, value in samples.get("dray_engine_info", [])
        if value == 1
    ]
    counted: Counter[str] = Counter()
    for labels, value in samples.get("dray_answer_cache_total", []):
        counted[labels["result"]] += int(value)
    return {
        "models": record.models,
        "url": record.url,
        "replicas": replicas,
        # Not from the router that answers, which may be on another machine than Serve's controller.
        "autoscaling": [asdict(one) for one in read_decisions(Path(record.settings["state_dir"]) / METRICS_FOLDER)],
        "answers": {name: counted[name] for name in ("hit", "join", "miss", "bypass")},
        "redis": _redis_state(record.redis),
    }


def _why(one: dict[str, Any]) -> str:
    """A decision of the autoscaling policy, in words."""
    less = "; fewer once that has held for downscale_delay_s" if one["desired"] < one["replicas"] else ""
    more = "; more are to start" if one["desired"] > one["replicas"] else ""
    return (
        f"{one['model']}: {one['replicas']} of {one['min_replicas']} to {one['max_replicas']} replicas; "
        f"{one['desired']} wanted: "
        f"{_WHY[one['reason']]}{less}{more}; {one['waiting_tokens']:.0f} tokens wait, "
        f"{one['predicted_wait_s']:.1f} s of work (target {one['target_wait_s']:g} s)"
    )


def _redis_state(url: str) -> str:
    if not url:
        return "off"
    import redis

    from cluster.records.cache import stats
    from cluster.redis_client import connect

    try:
        with connect(url) as client:
            seen = stats(client)
    except (redis.RedisError, OSError):
        return "not reachable; requests go on uncached"
    most = f" of {seen.max_bytes / 2**20:.0f}" if seen.max_bytes else ""
    return f"{sum(seen.answers.values())} answers, {seen.bytes / 2**20:.1f}{most} MiB"
