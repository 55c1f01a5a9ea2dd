"""Dray on several machines (network namespaces): joining, a network that is cut, a machine that is killed."""

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from cluster.configuration import variable
from cluster.models.folder import BUNDLED_FOLDER
from tests.cluster.hosts import can_make_hosts
from tests.cluster.machines import Cluster, Machine, machines, running_cluster
from tests.conftest import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_make_hosts(), reason="needs root, and network namespaces")]


@pytest.fixture(scope="module")
def three_machines() -> Iterator[Cluster]:
    """A head and two machines that joined it, with an engine and a router on each."""
    with running_cluster(3, DRAY_MODEL__REPLICAS="3", DRAY_ROUTER__REPLICAS="3") as cluster:
        wait_for(lambda: all(machine.engines for machine in (cluster.head, *cluster.others)), 60)
        yield cluster


QUESTIONS = [f"What is {number} times {number + 321}?" for number in range(612, 624)]


def longest_pauses(cluster: Cluster, disturb: Callable[[], object]) -> list[float]:
    """Runs streams on all machines, disturbs the machines midway, and checks that every stream is complete.

    Returns the longest pause of each stream, in seconds.
    """
    expected = {question: "".join(cluster.pieces(question)) for question in QUESTIONS}
    texts: dict[str, str] = {}
    started: set[str] = set()
    pauses: list[float] = []

    def follow(question: str) -> None:
        idempotency_key, last, longest = secrets.token_hex(8), time.monotonic(), 0.0
        while question not in texts:
            text = ""
            # A stream whose router dies is cut off; the client retries with the same idempotency key.
            with suppress(httpx.HTTPError):
                for piece in cluster.pieces(question, idempotency_key):
                    started.add(question)
                    now = time.monotonic()
                    text, longest, last = text + piece, max(longest, now - last), now
                texts[question] = text
        pauses.append(longest)

    threads = [threading.Thread(target=follow, args=(question,)) for question in QUESTIONS]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(started) == len(QUESTIONS), 60)
    disturb()
    for thread in threads:
        thread.join(100)
    assert texts == expected
    return pauses


def takes_work(cluster: Cluster, machine: Machine) -> bool:
    """Whether routers use this machine's engine: hashing spreads the questions, so it computes some of them."""
    engines = [psutil.Process(pid) for pid in machine.engines]
    cpu_s_before = [engine.cpu_times().user for engine in engines]
    for question in QUESTIONS:
        assert "".join(cluster.pieces(question))
    return any(engine.cpu_times().user > before + 0.05 for engine, before in zip(engines, cpu_s_before, strict=True))


def test_no_process_shows_a_password_and_joined_routers_have_it(three_machines: Cluster) -> None:
    lines, passwords = [], set()
    for machine in (three_machines.head, *three_machines.others):
        for pid in machine.host.pids:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                lines.append(" ".join(process.cmdline()))
                environment = process.environ()
                urls = [environment.get(variable(name), "") for name in ("cache.url", "teams.url")]
                passwords |= {urlsplit(url).password for url in urls if url.startswith("redis://")}
                passwords |= {value for name, value in environment.items() if name == "FLAGS_redis_password"}
    assert len(passwords) == 3, "of the answers, of the teams, and of Ray's state"
    assert not [line for line in lines for password in passwords if password and password in line]


@pytest.mark.timeout(300)
def test_streams_of_a_machine_that_leaves_end_there_or_continue_elsewhere(three_machines: Cluster) -> None:
    leaving, _ = three_machines.others
    exit_codes: list[int] = []
    start = time.monotonic()
    pauses = longest_pauses(three_machines, lambda: exit_codes.append(leaving.stop()))
    assert exit_codes == [0] and not leaving.engines
    assert max(pauses) < time.monotonic() - start
    assert three_machines.ask().status_code == 200
    three_machines.join(leaving)
    wait_for(lambda: leaving.engines, 90)


@pytest.mark.timeout(400)
def test_streams_survive_an_unplugged_and_a_killed_machine(three_machines: Cluster) -> None:
    unplugged, killed = three_machines.others
    wait_for(lambda: takes_work(three_machines, unplugged), 60)
    start = time.monotonic()
    pauses = longest_pauses(three_machines, unplugged.host.unplug)
    assert max(pauses) > 1, "no stream ran on the unplugged machine"
    # Long enough for Ray to give the machine up, which no request can see. Requests must succeed before and after.
    while time.monotonic() - start < 30:
        assert three_machines.ask().status_code == 200
    unplugged.host.plug()
    longest_pauses(three_machines, killed.host.kill)
    for _ in range(20):
        assert three_machines.ask().status_code == 200
    wait_for(lambda: unplugged.engines, 90)


@pytest.mark.timeout(200)
def test_a_refused_machine_learns_the_reason(tmp_path: Path) -> None:
    for name in ("theirs", "altered"):
        shutil.copytree(BUNDLED_FOLDER, tmp_path / name / "school--arithmetic-int8")
    with (tmp_path / "altered" / "school--arithmetic-int8" / "openvino_model.bin").open("r+b") as weights:
        weights.write(b"another")
    (tmp_path / "empty").mkdir()
    (tmp_path / "newer" / "dray-9.0.dist-info").mkdir(parents=True)
    (tmp_path / "newer" / "dray-9.0.dist-info" / "METADATA").write_text("Name: dray\nVersion: 9.0\n")

    with machines(2, DRAY_MODEL__SOURCE="school/arithmetic", DRAY_MODELS_DIR=str(tmp_path / "theirs")) as [head, other]:
        head.start("up", "--head")
        wait_for(lambda: head.ready, 90)
        address = f"{head.host.address}:6379"

        def refusal(address: str, token: str, **extra: str) -> str:
            done = other.run("join", address, RAY_AUTH_TOKEN=token, **extra)
            assert done.returncode == 1, done.stdout + done.stderr
            return done.stderr

        assert "refuses this token" in refusal(address, "0" * 64)
        assert "no head answers" in refusal(f"{head.host.address}:6399", head.token)
        message = refusal(address, head.token, PYTHONPATH=f"{tmp_path / 'newer'}:{os.environ.get('PYTHONPATH', '')}")
        assert f"dray 9.0 here and {version('dray')} there" in message
        message = refusal(address, head.token, DRAY_MODELS_DIR=str(tmp_path / "altered"))
        assert "differs from the model that the head serves" in message
        assert "school/arithmetic" in refusal(address, head.token, DRAY_MODELS_DIR=str(tmp_path / "empty"))


def answers(cluster: Cluster, tokens: int = 4) -> bool:
    """Whether a request succeeds."""
    try:
        return cluster.ask(tokens).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.timeout(300)
def test_the_other_machine_serves_while_the_head_is_away() -> None:
    with running_cluster(2, DRAY_MODEL__REPLICAS="2", DRAY_ROUTER__REPLICAS="2") as cluster:
        [other] = cluster.others
        wait_for(lambda: len(other.engines) == len(cluster.head.engines) == 1, 60)
        [engine] = other.engines
        through_other = Cluster(other, [], cluster.key)
        wait_for(lambda: answers(through_other), 60)
        # Only a router on the other machine has that machine's metrics. HAProxy alternates between the routers, so no
        # other request may come between.
        wait_for(lambda: f'engine_pid="{engine}"' in metrics(through_other), 60)

        cluster.head.host.kill()
        cluster.head.host.plug()
        successes = []
        for _ in range(20):
            successes.append(answers(through_other))
            # Nothing on the other machine shows how long the head is away, so the requests are spread over 10 s.
            time.sleep(0.5)
        # A request may have been on its way through the head's router.
        assert successes.count(False) <= 1, successes
        cluster.head.start("up", "--head")
        wait_for(lambda: cluster.head.ready, 90)
        wait_for(lambda: answers(cluster))
        # Serve restarts the other machine's HAProxy: for a moment it refuses connections (ray 2.60). Serve reports
        # neither that nor when it is done with the machine, so the requests are spread over 15 s.
        for _ in range(15):
            wait_for(lambda: answers(through_other), 10)
            time.sleep(1)
        assert other.engines == [engine], "the other machine's engine was restarted"


@pytest.mark.timeout(300)
def test_replicas_come_and_go_with_the_load() -> None:
    scaling = {"MAX_REPLICAS": "2", "TARGET_WAIT_S": "1", "DOWNSCALE_DELAY_S": "8", "MAX_NUM_SEQS": "8"}
    with running_cluster(2, **{f"DRAY_MODEL__{name}": value for name, value in scaling.items()}) as cluster:
        [other] = cluster.others
        assert not other.engines
        answered_at: list[str] = []
        failed_at: list[str] = []
        load_over = threading.Event()

        def send_requests() -> None:
            while not load_over.is_set():
                if answers(cluster, tokens=200):
                    answered_at.append(time.strftime("%X"))
                else:
                    failed_at.append(time.strftime("%X"))

        clients = [threading.Thread(target=send_requests) for _ in range(24)]
        for client in clients:
            client.start()
        try:
            wait_for(lambda: other.engines, 60)
            wait_for(lambda: desired_replicas(cluster) == 2, 10)
            enough = len(answered_at) + 4 * len(clients)
            wait_for(lambda: len(answered_at) >= enough, 60)
        finally:
            load_over.set()
            for client in clients:
                client.join()
        wait_for(lambda: desired_replicas(cluster) == 1, 60)
        wait_for(lambda: not other.engines, 60)
        assert answers(cluster)
        assert not failed_at


def desired_replicas(cluster: Cluster) -> float:
    """The number of replicas that the policy asks for, from the head's metrics."""
    lines = metrics(cluster).splitlines()
    [line] = [line for line in lines if line.startswith("dray_autoscaling_desired_replicas{")]
    return float(line.rpartition(" ")[2])


def metrics(cluster: Cluster) -> str:
    return httpx.get(f"{cluster.url}/metrics", headers=cluster.headers).text
