"""A steady mixed load while engines, replicas, routers, Redis and machines are killed by a seeded schedule.

`make chaos` runs it and writes chaos-report.md. CHAOS_SECONDS and CHAOS_SEED choose another length and schedule.
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
from pathlib import Path
from statistics import median, quantiles

import httpx
import psutil
import pytest
import redis

from cluster.cores import held_cores
from tests.cluster.hosts import can_make_hosts
from tests.cluster.machines import Cluster, Machine, cluster
from tests.conftest import wait_for

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_make_hosts(), reason="needs root, and network namespaces"),
]

SECONDS = float(os.environ.get("CHAOS_SECONDS", "300"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
LANES = 6
QUESTIONS = [f"What is {number} times {number + 321}?" for number in range(612, 652)]
REPORT = Path("chaos-report.md")


@dataclass
class Tally:
    """What the clients saw. retries: requests that had to be sent again, by why."""

    answered: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class Load:
    """Lanes of clients, each of which asks one thing after the other until it is told to stop."""

    def __init__(self, made: Cluster, whole: dict[str, str]) -> None:
        self._made = made
        self._whole = whole
        self._over = threading.Event()
        self.tally = Tally()
        self._lanes = [threading.Thread(target=self._lane, args=(random.Random(SEED + n),)) for n in range(LANES)]

    def __enter__(self) -> "Load":
        for lane in self._lanes:
            lane.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for lane in self._lanes:
            lane.join(120)

    def _lane(self, chance: random.Random) -> None:
        while not self._over.is_set():
            kind = chance.choice(("stream", "stream", "cached", "cancelled"))
            self._one(kind, chance.choice(QUESTIONS), chance)

    def _one(self, kind: str, question: str, chance: random.Random) -> None:
        once = "" if kind == "cached" else secrets.token_hex(8)
        began = time.monotonic()
        while time.monotonic() - began < 90:
            try:
                text, pieces = "", chance.randrange(1, 30)
                for piece in self._made.pieces(question, once, cached=kind == "cached"):
                    text += piece
                    pieces -= 1
                    if kind == "cancelled" and not pieces:
                        self.tally.answered[kind] += 1
                        return
            except (httpx.HTTPError, AssertionError) as error:
                # Its router has gone, or there is no place now: a client asks again, by the same key.
                status = isinstance(error, httpx.HTTPStatusError) and f"status {error.response.status_code}"
                self.tally.retries[status or f"{type(error).__name__} {error}"[:120]] += 1
                time.sleep(0.5)
                continue
            self.tally.answered[kind] += 1
            self.tally.seconds.append(time.monotonic() - began)
            if text != self._whole[question]:
                self.tally.wrong.append((question, text))
            return
        self.tally.lost.append(question)


class Mischief:
    """What can go wrong, each by its name."""

    def __init__(self, made: Cluster, chance: random.Random) -> None:
        self._made = made
        self._chance = chance
        self.done: Counter[str] = Counter()
        self._kinds: dict[str, Callable[[], bool]] = {
            "engine killed": lambda: self._kill("deployments.engine.core"),
            "replica killed": lambda: self._kill("ServeReplica:engine"),
            "router killed": lambda: self._kill("ServeReplica:dray:router"),
            "Redis killed": lambda: self._redis(signal.SIGKILL),
            "Redis stopped for two seconds": self._pause_redis,
            "machine killed, and back": self._lose_machine,
            "network parted for five seconds": self._part,
        }

    def one(self) -> None:
        """One of them."""
        name = self._chance.choice(list(self._kinds))
        if self._kinds[name]():
            self.done[name] += 1

    def _kill(self, what: str) -> bool:
        found = [one for machine in (self._made.head, *self._made.others) for one in processes(machine, what)]
        if len(found) < 2:  # the last one of its kind is left alone: that is another test
            return False
        with suppress(psutil.NoSuchProcess):
            self._chance.choice(found).kill()
        return True

    def _redis(self, number: int) -> bool:
        found = [one for one in processes(self._made.head, "server") if "/s/redis" in one.cwd()]
        for one in found:
            one.send_signal(number)
        return bool(found)

    def _pause_redis(self) -> bool:
        self._redis(signal.SIGSTOP)
        time.sleep(2)
        return self._redis(signal.SIGCONT)

    def _lose_machine(self) -> bool:
        machine = self._chance.choice(self._made.others)
        machine.host.kill()
        time.sleep(3)
        machine.host.plug()
        self._made.join(machine)
        return True

    def _part(self) -> bool:
        machine = self._chance.choice(self._made.others)
        machine.host.unplug()
        time.sleep(5)
        machine.host.plug()
        return True


def processes(machine: Machine, what: str) -> list[psutil.Process]:
    """Those on a machine that have this in their command line."""
    found = []
    for pid in machine.host.pids:
        with suppress(psutil.Error):
            one = psutil.Process(pid)
            if what in " ".join(one.cmdline()):
                found.append(one)
    return found


def test_nothing_is_lost_and_nothing_leaks() -> None:
    chance = random.Random(SEED)
    with cluster(3, DRAY_MODEL__REPLICAS="3", DRAY_ROUTER__REPLICAS="3") as made:
        everywhere = (made.head, *made.others)
        wait_for(lambda: all(one.engines for one in everywhere), 60)
        whole = {question: "".join(made.pieces(question)) for question in QUESTIONS}
        mischief, began = Mischief(made, chance), time.monotonic()
        with Load(made, whole) as load:
            while time.monotonic() - began < SECONDS:
                time.sleep(chance.uniform(2, 6))
                mischief.one()
        tally = load.tally
        write_report(tally, mischief.done)
        assert not tally.wrong, tally.wrong[0]
        assert not tally.lost
        assert tally.answered["stream"] > SECONDS / 5

        wait_for(lambda: sum(len(one.engines) for one in everywhere) == 3, 120)
        wait_for(lambda: at_rest(made), 60)
        for one in everywhere:
            assert len(held_cores(one.folder / "c")) == len(one.engines), one.host
        wait_for(lambda: not left_in_redis(made), 90)
        for one in reversed(everywhere):
            assert one.stop() == 0, (one.folder / "out").read_text()
            wait_for(lambda one=one: not one.host.pids, 20)  # type: ignore[misc]
            assert not (one.folder / "s").exists()


def at_rest(made: Cluster) -> bool:
    """Whether no engine has anything under way, or holds KV blocks for it."""
    said = httpx.get(f"{made.url}/metrics", headers=made.headers).text
    values = [line.rpartition(" ")[2] for line in said.splitlines() if line.startswith("dray_engine_running{")]
    return bool(values) and all(float(value) == 0 for value in values)


def left_in_redis(made: Cluster) -> list[str]:
    """Keys in the Redis of answers that are no answers, and do not say where a prompt's beginning is cached."""
    url = made.head.record["redis"]
    inside = made.head.host.address
    assert inside in url
    with redis.Redis.from_url(url) as client:
        return [key.decode() for key in client.scan_iter() if not key.startswith((b"dray:answer:", b"dray:kv:"))]


def write_report(tally: Tally, done: Counter[str]) -> None:
    """One page."""
    cuts = quantiles(tally.seconds, n=100)
    lines = [
        "# Chaos report",
        "",
        f"{SECONDS:.0f} s, seed {SEED}, {LANES} clients, three machines with an engine and a router each.",
        "",
        "| what happened | times |",
        "|---|---|",
        *(f"| {name} | {times} |" for name, times in sorted(done.items())),
        "",
        "| what clients saw | |",
        "|---|---|",
        *(f"| {kind} | {times} |" for kind, times in sorted(tally.answered.items())),
        *(f"| sent again after {why} | {times} |" for why, times in sorted(tally.retries.items())),
        f"| answers that differ from an undisturbed run | {len(tally.wrong)} |",
        f"| requests without an answer within 90 s | {len(tally.lost)} |",
        f"| seconds to an answer, p50 / p95 / p99 | {median(tally.seconds):.1f} / {cuts[94]:.1f} / {cuts[98]:.1f} |",
        "",
    ]
    REPORT.write_text("\n".join(lines))
    print("\n".join(lines))
