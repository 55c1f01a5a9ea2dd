"""A steady mixed load, while a seeded schedule kills engines, replicas, routers, Redis and machines, or stops them.

`make chaos` runs it and writes the reports. CHAOS_SECONDS sets its length, CHAOS_SEED its schedule.
"""

import os
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import httpx
import psutil
import pytest
import redis

from cluster.cores import held_cores
from cluster.records.cache import PREFIX
from cluster.records.forget import GIVEN_PREFIX
from tests.cluster.hosts import can_make_hosts
from tests.cluster.machines import Cluster, Machine, running_cluster
from tests.conftest import wait_for

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_make_hosts(), reason="needs root, and network namespaces"),
]

SECONDS = float(os.environ.get("CHAOS_SECONDS", "300"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
CLIENTS = 6
QUESTIONS = [f"What is {number} times {number + 321}?" for number in range(612, 652)]
REPORTS = {False: Path("chaos-report.md"), True: Path("chaos-report-hangs.md")}
"""By whether processes hang too."""
STAYING = (PREFIX, GIVEN_PREFIX, "dray:kv:")
HANGING = {
    "engine": ("deployments.engine.core", 60),
    "engine replica": ("ServeReplica:engine", 60),
    "router": ("ServeReplica:dray:router", 60),
    "HAProxy": ("bin/haproxy", 60),
    "Serve's controller": ("ServeController", 60),
    "raylet": ("raylet/raylet", 20),
    "Ray's GCS": ("gcs_server", 20),
}
"""Kinds of processes that hang: text of their command lines, and the maximum seconds.

A machine whose raylet hangs for longer counts as dead, and so does everything while the GCS hangs.
"""


@dataclass
class Tally:
    """What the clients saw. retries: number of requests that they sent again, by reason."""

    answered: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class Load:
    """Clients that send requests while the block runs, each client one at a time."""

    def __init__(self, cluster: Cluster, answers: dict[str, str]) -> None:
        """answers: the right answer to each question."""
        self._cluster = cluster
        self._answers = answers
        self._stop = threading.Event()
        self.tally = Tally()
        self._threads = [threading.Thread(target=self._client, args=(random.Random(SEED + n),)) for n in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _client(self, chance: random.Random) -> None:
        while not self._stop.is_set():
            kind = chance.choice(("stream", "stream", "cached", "cancelled"))
            self._request(kind, chance.choice(QUESTIONS), chance)

    def _request(self, kind: str, question: str, chance: random.Random) -> None:
        idempotency_key = "" if kind == "cached" else secrets.token_hex(8)
        start = time.monotonic()
        while time.monotonic() - start < 90:
            try:
                text, pieces = "", chance.randrange(1, 30)
                for piece in self._cluster.pieces(question, idempotency_key, cached=kind == "cached"):
                    text += piece
                    pieces -= 1
                    if kind == "cancelled" and not pieces:
                        self.tally.answered[kind] += 1
                        return
            except (httpx.HTTPError, AssertionError) as error:
                # The router died, or all queues are full. Clients retry, with the same idempotency key.
                status = isinstance(error, httpx.HTTPStatusError) and f"status {error.response.status_code}"
                self.tally.retries[status or f"{type(error).__name__} {error}"[:120]] += 1
                time.sleep(0.5)
                continue
            self.tally.answered[kind] += 1
            self.tally.seconds.append(time.monotonic() - start)
            if text != self._answers[question]:
                self.tally.wrong.append((question, text))
            return
        self.tally.lost.append(question)


class Faults:
    """The faults that are injected, by name."""

    def __init__(self, cluster: Cluster, chance: random.Random, *, hangs: bool) -> None:
        """hangs: processes of every kind are also stopped for up to a minute."""
        self._cluster = cluster
        self._chance = chance
        self._hung: dict[str, threading.Timer] = {}
        self.counts: Counter[str] = Counter()
        self._kinds: dict[str, Callable[[], bool]] = {
            "engine killed": lambda: self._kill("deployments.engine.core"),
            "replica killed": lambda: self._kill("ServeReplica:engine"),
            "router killed": lambda: self._kill("ServeReplica:dray:router"),
            "Redis killed": lambda: self._signal_redis(signal.SIGKILL),
            "Redis stopped for two seconds": self._pause_redis,
            "machine killed, and back": self._kill_machine,
            "machine offline for five seconds": self._unplug_machine,
        }
        if hangs:
            self._kinds |= {f"{name} hung": partial(self._hang, name) for name in HANGING}

    def end(self) -> None:
        """Waits until nothing hangs any more."""
        for timer in self._hung.values():
            timer.join()

    def inject(self) -> None:
        """Injects a random fault."""
        name = self._chance.choice(list(self._kinds))
        if self._kinds[name]():
            self.counts[name] += 1

    def _kill(self, text: str) -> bool:
        machines = (self._cluster.head, *self._cluster.others)
        candidates = [process for machine in machines for process in processes(machine, text)]
        if len(candidates) < 2:
            # The last process of its kind stays alive; tests/service/test_faults.py kills that.
            return False
        with suppress(psutil.NoSuchProcess):
            self._chance.choice(candidates).kill()
        return True

    def _hang(self, name: str) -> bool:
        """Stops a process of this kind, and lets it go on later. One of a kind hangs at a time."""
        if (timer := self._hung.get(name)) is not None and timer.is_alive():
            return False
        text, seconds = HANGING[name]
        machines = (self._cluster.head, *self._cluster.others)
        candidates = [process for machine in machines for process in processes(machine, text)]
        if not candidates:
            return False
        hung = self._chance.choice(candidates)

        def resume() -> None:
            with suppress(psutil.NoSuchProcess):
                hung.resume()

        with suppress(psutil.NoSuchProcess):
            hung.suspend()
        self._hung[name] = threading.Timer(self._chance.uniform(10, seconds), resume)
        self._hung[name].start()
        return True

    def _signal_redis(self, number: int) -> bool:
        servers = [process for process in processes(self._cluster.head, "server") if "/s/redis" in process.cwd()]
        for server in servers:
            server.send_signal(number)
        return bool(servers)

    def _pause_redis(self) -> bool:
        self._signal_redis(signal.SIGSTOP)
        time.sleep(2)
        return self._signal_redis(signal.SIGCONT)

    def _kill_machine(self) -> bool:
        machine = self._chance.choice(self._cluster.others)
        machine.host.kill()
        time.sleep(3)
        machine.host.plug()
        self._cluster.join(machine)
        return True

    def _unplug_machine(self) -> bool:
        machine = self._chance.choice(self._cluster.others)
        machine.host.unplug()
        time.sleep(5)
        machine.host.plug()
        return True


def processes(machine: Machine, text: str) -> list[psutil.Process]:
    """Processes on a machine whose command line contains the text."""
    matching = []
    for pid in machine.host.pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if text in " ".join(process.cmdline()):
                matching.append(process)
    return matching


@pytest.mark.parametrize("hangs", [False, True], ids=["kills", "kills-and-hangs"])
def test_nothing_is_lost_and_nothing_leaks(hangs: bool) -> None:
    chance = random.Random(SEED)
    with running_cluster(3, DRAY_MODEL__REPLICAS="3", DRAY_ROUTER__REPLICAS="3") as cluster:
        machines = (cluster.head, *cluster.others)
        wait_for(lambda: all(machine.engines for machine in machines), 60)
        answers = {question: "".join(cluster.pieces(question)) for question in QUESTIONS}
        faults, start = Faults(cluster, chance, hangs=hangs), time.monotonic()
        with Load(cluster, answers) as load:
            while time.monotonic() - start < SECONDS:
                time.sleep(chance.uniform(2, 6))
                faults.inject()
            faults.end()
        tally = load.tally
        write_report(tally, faults.counts, REPORTS[hangs])
        assert faults.counts
        assert not tally.wrong, tally.wrong[0]
        assert not tally.lost
        assert tally.answered["stream"] > SECONDS / 5

        wait_for(lambda: sum(len(machine.engines) for machine in machines) == 3, 120)
        wait_for(lambda: at_rest(cluster), 60)
        for machine in machines:
            assert len(held_cores(machine.folder / "c")) == len(machine.engines), machine.host
        with suppress(AssertionError):
            wait_for(lambda: not leftover_keys(cluster), 90)
        assert not leftover_keys(cluster)
        for machine in reversed(machines):
            assert machine.stop() == 0, (machine.folder / "out").read_text()
            wait_for(lambda machine=machine: not machine.host.pids, 20)  # type: ignore[misc]
            assert not (machine.folder / "s").exists()


def at_rest(cluster: Cluster) -> bool:
    """Whether no engine runs a sequence."""
    text = httpx.get(f"{cluster.url}/metrics", headers=cluster.headers).text
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("dray_engine_running{")]
    return bool(values) and all(float(value) == 0 for value in values)


def leftover_keys(cluster: Cluster) -> list[str]:
    """Keys in the answers' Redis, except those that stay: answers, what can be voted on, and the index of cached prompt
    prefixes."""
    url = cluster.head.record["redis"]
    assert cluster.head.host.address in url
    with redis.Redis.from_url(url) as client:
        return [key for key in map(bytes.decode, client.scan_iter()) if not key.startswith(STAYING)]


def write_report(tally: Tally, faults: Counter[str], report: Path) -> None:
    """Writes the report, and prints it."""
    percentiles = quantiles(tally.seconds, n=100)
    lines = [
        "# Chaos report",
        "",
        f"{SECONDS:.0f} s, seed {SEED}, {CLIENTS} clients, three machines with an engine and a router each.",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name} | {times} |" for name, times in sorted(faults.items())),
        "",
        "| what clients saw | |",
        "|---|---|",
        *(f"| {kind} | {times} |" for kind, times in sorted(tally.answered.items())),
        *(f"| sent again after {reason} | {times} |" for reason, times in sorted(tally.retries.items())),
        f"| answers that differ from an undisturbed run | {len(tally.wrong)} |",
        f"| requests without an answer within 90 s | {len(tally.lost)} |",
        f"| seconds to an answer, p50 / p95 / p99 | {median(tally.seconds):.1f} / {percentiles[94]:.1f} / "
        f"{percentiles[98]:.1f} |",
        "",
    ]
    report.write_text("\n".join(lines))
    print("\n".join(lines))
