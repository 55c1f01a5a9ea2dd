"""`dray ps`."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import psutil

from cluster.client import ServerError, metrics
from cluster.commands.console import AsJson, Config, StateDir, fail, out, print_json, running_record
from cluster.commands.status import read_replicas
from cluster.launch.state import Record
from cluster.tables import DataTable
from cluster.units import format_bytes, plural

_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A replica that runs, or a model without one (replica is then empty).

    cores: logical CPUs. memory_bytes: of its process, with its share of what several processes map; None where it runs
    on another machine. streams: that it works on. waiting: requests for the model that wait for any of its replicas.
    since: Unix time of its start; None as for the memory.
    """

    model: str
    replica: str = ""
    cores: str = ""
    memory_bytes: int | None = None
    streams: int = 0
    waiting: int = 0
    since: float | None = None


def ps(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show the models and replicas that run: cores, memory, streams, waiting requests, and since when."""
    record = running_record(config, state_dir)
    try:
        running = _running(record) if record.stage == "ready" else []
    except ServerError as error:
        raise fail(str(error)) from None
    if as_json:
        print_json([asdict(each) for each in running])
    elif record.stage != "ready":
        out.print(f"Dray is still starting: {record.stage}", highlight=False, markup=False)
    else:
        out.print(ps_table(running, time.time()))


def ps_table(running: Sequence[RunningModel], now: float) -> DataTable:
    """The replicas, and the models that are asleep. now: Unix time."""
    figures = ("memory", "streams", "waiting")
    heads = ("model", "replica", "cores", *figures, "since")
    table = DataTable(*heads, right=figures, drop=["replica", "cores", "since", "memory"])
    for each in running:
        if not each.replica:
            table.add_row(each.model, "(asleep)", "", "", "", str(each.waiting))
            continue
        memory = "?" if each.memory_bytes is None else format_bytes(each.memory_bytes)
        since = "?" if each.since is None else _ago(now - each.since)
        table.add_row(each.model, each.replica, each.cores, memory, str(each.streams), str(each.waiting), since)
    return table


def _running(record: Record) -> list[RunningModel]:
    samples = metrics(record.url)
    waiting: dict[str, int] = {}
    for labels, value in samples.get("dray_requests_waiting", []):
        waiting[labels["model"]] = waiting.get(labels["model"], 0) + int(value)
    own = _own_processes(record.pid)
    running = []
    for replica in read_replicas(samples):
        memory, since = _memory_and_start(own.get(replica["engine_pid"]))
        name, model = replica["replica"], replica["model"]
        streams = replica["running"]
        running.append(RunningModel(model, name, replica["cpus"], memory, streams, waiting.get(model, 0), since))
    awake = {each.model for each in running}
    return running + [RunningModel(name, waiting=waiting.get(name, 0)) for name in record.models if name not in awake]


def _own_processes(launcher: int) -> dict[int, psutil.Process]:
    """The processes of this Dray: a replica on another machine may have the number of some other process here."""
    with suppress(psutil.Error):
        return {process.pid: process for process in psutil.Process(launcher).children(recursive=True)}
    return {}


def _memory_and_start(process: psutil.Process | None) -> tuple[int | None, float | None]:
    if process is not None:
        with suppress(psutil.Error):
            return process.memory_full_info().pss, process.create_time()
    return None, None


def _ago(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{plural(int(seconds // size), unit)} ago"
    return "now"
