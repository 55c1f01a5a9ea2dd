"""`dray status`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from cluster.client import ServerError, metrics
from cluster.commands.console import AsJson, Config, StateDir, fail, out, print_json, running_record
from cluster.launch.environment import METRICS_FOLDER
from cluster.launch.state import Record
from cluster.reports.models import REASONS
from cluster.scaling_metrics import read_decisions
from cluster.tables import DataTable
from cluster.units import plural


def status(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show replicas, their cores and speed, autoscaling decisions, cache hits and Redis.

    Exit code 3: Dray is still starting.
    """
    record = running_record(config, state_dir)
    if record.stage != "ready":
        if as_json:
            print_json({"stage": record.stage})
        else:
            out.print(record.stage)
        raise typer.Exit(3)
    try:
        report = _report(record)
    except ServerError as error:
        raise fail(str(error)) from None
    if as_json:
        print_json(report)
        return
    out.print(f"{', '.join(report['models'])} at {report['url']}", highlight=False, markup=False, soft_wrap=True)
    out.print(replicas_table(report["models"], report["replicas"]))
    for name, targets in report["routes"].items():
        out.print(f"{name} routes to {', '.join(targets)}", highlight=False, markup=False, soft_wrap=True)
    for decision in report["autoscaling"]:
        out.print(_explain(decision), highlight=False)
    answers = report["answers"]
    out.print(
        f"answers: {answers['curated']} curated, {answers['hit']} from the cache, {answers['join']} joined, "
        f"{answers['miss']} generated, {answers['bypass']} uncached; Redis: {report['redis']}",
        highlight=False,
    )
    if report["deployment"]["waiting_for"]:
        out.print(f"deploying: {escape(report['deployment']['waiting_for'])}", highlight=False)
    elif report["deployment"]["refused"]:
        out.print(f"the last deployment was refused: {escape(report['deployment']['refused'])}", highlight=False)
    for problem in report["problems"]:
        out.print(f"[yellow]problem:[/yellow] {escape(problem)}", highlight=False, soft_wrap=True)


def replicas_table(models: Sequence[str], replicas: Sequence[dict[str, Any]]) -> DataTable:
    """The replicas that run, and the models without one."""
    figures = ("engine pid", "running", "tokens/s", "KV used", "restarts")
    drop = ("restarts", "engine pid", "KV used", "cores", "replica")
    table = DataTable("model", "replica", "cores", *figures, right=figures, drop=drop)
    for replica in replicas:
        table.add_row(
            replica["model"],
            replica["replica"],
            replica["cpus"],
            str(replica["engine_pid"]),
            str(replica["running"]),
            f"{replica['tokens_per_s']:.0f}",
            f"{replica['kv_used']:.0%}",
            str(replica["restarts"]),
        )
    awake = {replica["model"] for replica in replicas}
    for name in models:
        if name not in awake:
            table.add_row(name, "(asleep)")
    return table


def read_replicas(samples: Mapping[str, Sequence[tuple[dict[str, str], float]]]) -> list[dict[str, Any]]:
    """The replicas that run, from the metrics of Dray."""

    def by_replica(name: str) -> dict[str, float]:
        return {labels["replica"]: value for labels, value in samples.get(name, [])}

    running, rates = by_replica("dray_engine_running"), by_replica("dray_engine_tokens_per_second")
    kv_used, restarts = by_replica("dray_engine_kv_used_ratio"), by_replica("dray_engine_restarts_total")
    return [
        {
            "model": labels["model"],
            "replica": labels["replica"],
            "cpus": labels["cpus"],
            "engine_pid": int(labels["engine_pid"]),
            "running": int(running.get(labels["replica"], 0)),
            "tokens_per_s": rates.get(labels["replica"], 0.0),
            "kv_used": kv_used.get(labels["replica"], 0.0),
            "restarts": int(restarts.get(labels["replica"], 0)),
        }
        for labels, value in samples.get("dray_engine_info", [])
        if value == 1
    ]


def _report(record: Record) -> dict[str, Any]:
    samples = metrics(record.url)
    answers: Counter[str] = Counter()
    for labels, value in samples.get("dray_answer_cache_total", []):
        answers[labels["result"]] += int(value)
    return {
        "models": record.models,
        "url": record.url,
        "replicas": read_replicas(samples),
        "routes": {
            model["name"]: list(dict.fromkeys(rule["to"] for rule in model["route"]))
            for model in record.settings.get("models", ())
            if model.get("route")
        },
        # Read here: the router that answers may be on another machine than Serve's controller.
        "autoscaling": [
            asdict(decision) for decision in read_decisions(Path(record.settings["state_dir"]) / METRICS_FOLDER)
        ],
        "answers": {name: answers[name] for name in ("curated", "hit", "join", "miss", "bypass")},
        "redis": _redis_state(record.redis),
        "deployment": {"waiting_for": record.rollout, "refused": record.refused},
        "problems": record.problems,
    }


def _explain(decision: dict[str, Any]) -> str:
    """A decision of the autoscaling policy, in words."""
    fewer = "; fewer after downscale_delay_s of this" if decision["desired"] < decision["replicas"] else ""
    more = "; more are starting" if decision["desired"] > decision["replicas"] else ""
    return (
        f"{decision['model']}: {plural(decision['replicas'], 'replica')} ({decision['min_replicas']} to "
        f"{decision['max_replicas']}); target {decision['desired']}: {REASONS[decision['reason']]}{fewer}{more}; "
        f"{plural(round(decision['waiting_tokens']), 'token')} waiting, {decision['predicted_wait_s']:.1f} s of work "
        f"(target {decision['target_wait_s']:g} s)"
    )


def _redis_state(url: str) -> str:
    if not url:
        return "off"
    import redis

    from cluster.records.cache import stats
    from cluster.redis_client import connect

    try:
        with connect(url) as client:
            cached = stats(client)
    except (redis.RedisError, OSError):
        return "unreachable; requests are answered without the cache"
    limit = f" of {cached.max_bytes / 2**20:.0f}" if cached.max_bytes else ""
    return f"{plural(sum(cached.answers.values()), 'answer')}, {cached.bytes / 2**20:.1f}{limit} MiB"
