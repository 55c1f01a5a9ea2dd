"""A Dray over several machines (network namespaces): who may join, a network parted, a node killed."""

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
from tests.cluster.machines import Cluster, Machine, cluster, machines
from tests.conftest import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_make_hosts(), reason="needs root, and network namespaces")]


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """A head and two machines that joined it, with an engine and a router on each."""
    with cluster(3, DRAY_MODEL__REPLICAS="3", DRAY_ROUTER__REPLICAS="3") as made:
        wait_for(lambda: all(one.engines for one in (made.head, *made.others)), 60)
        yield made


QUESTIONS = [f"What is {number} times {number + 321}?" for number in range(612, 624)]


def pauses_while(made: Cluster, disturb: Callable[[], None]) -> list[float]:
    """Runs streams on all machines and disturbs them midway. Each must be complete. Returns their longest pauses."""
    expected = {question: "".join(made.pieces(question)) for question in QUESTIONS}
    texts: dict[str, str] = {}
    started: set[str] = set()
    pauses: list[float] = []

    def follow(question: str) -> None:
        once, last, longest = secrets.token_hex(8), time.monotonic(), 0.0
        while question not in texts:
            text = ""
            # A stream whose router dies is cut off; the client retries with the same idempotency key.
            with suppress(httpx.HTTPError):
                for piece in made.pieces(question, once):
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


def takes_work(made: Cluster, machine: Machine) -> bool:
    """Whether routers use this machine's engine: hashing spreads the questions, so it computes some of them."""
    engines = [psutil.Process(pid) for pid in machine.engines]
    before = [one.cpu_times().user for one in engines]
    for question in QUESTIONS:
        assert "".join(made.pieces(question))
    return any(one.cpu_times().user > then + 0.05 for one, then in zip(engines, before, strict=True))


def test_no_process_shows_a_password_and_joined_routers_have_it(three: Cluster) -> None:
    lines, passwords = [], set()
    for machine in (three.head, *three.others):
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
def test_a_machine_that_leaves_lets_its_streams_end_or_go_on_elsewhere(three: Cluster) -> None:
    leaving, _ = three.others
    codes: list[int] = []
    began = time.monotonic()
    pauses = pauses_while(three, lambda: codes.append(leaving.stop()))
    assert codes == [0] and not leaving.engines
    assert max(pauses) < time.monotonic() - began
    assert three.ask().status_code == 200
    three.join(leaving)
    wait_for(lambda: leaving.engines, 90)


@pytest.mark.timeout(400)
def test_streams_outlive_a_parted_network_and_a_killed_node(three: Cluster) -> None:
    parted, killed = three.others
    wait_for(lambda: takes_work(three, parted), 60)
    began = time.monotonic()
    pauses = pauses_while(three, parted.host.unplug)
    assert max(pauses) > 1, "none of them ran there"
    while time.monotonic() - began < 30:
        assert three.ask().status_code == 200
        time.sleep(1)
    parted.host.plug()
    pauses_while(three, killed.host.kill)
    for _ in range(20):
        assert three.ask().status_code == 200
    wait_for(lambda: parted.engines, 90)


@pytest.mark.timeout(200)
def test_who_may_not_join_is_told_why(tmp_path: Path) -> None:
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
        there = f"{head.host.address}:6379"

        def refused(head: str, token: str, **extra: str) -> str:
            ended = other.run("join", head, RAY_AUTH_TOKEN=token, **extra)
            assert ended.returncode == 1, ended.stdout + ended.stderr
            return ended.stderr

        assert "refuses this token" in refused(there, "0" * 64)
        assert "no head answers" in refused(f"{head.host.address}:6399", head.token)
        said = refused(there, head.token, PYTHONPATH=f"{tmp_path / 'newer'}:{os.environ.get('PYTHONPATH', '')}")
        assert f"dray 9.0 here and {version('dray')} there" in said
        said = refused(there, head.token, DRAY_MODELS_DIR=str(tmp_path / "altered"))
        assert "differs from the model that the head serves" in said
        assert "school/arithmetic" in refused(there, head.token, DRAY_MODELS_DIR=str(tmp_path / "empty"))


def answers(made: Cluster, tokens: int = 4) -> bool:
    try:
        return made.ask(tokens).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.timeout(300)
def test_the_others_go_on_serving_while_the_head_is_away() -> None:
    with cluster(2, DRAY_MODEL__REPLICAS="2", DRAY_ROUTER__REPLICAS="2") as made:
        [other] = made.others
        wait_for(lambda: len(other.engines) == len(made.head.engines) == 1, 60)
        [engine] = other.engines
        elsewhere = Cluster(other, [], made.key)
        wait_for(lambda: answers(elsewhere), 60)
        # Only a router there shows the metrics of that machine. HAProxy asks routers by turns: nothing else between.
        wait_for(lambda: f'engine_pid="{engine}"' in metrics(elsewhere), 60)

        made.head.host.kill()
        made.head.host.plug()
        answered = []
        for _ in range(20):
            answered.append(answers(elsewhere))
            time.sleep(0.5)
        # One may have been on its way through the head's router.
        assert answered.count(False) <= 1, answered
        made.head.start("up", "--head")
        wait_for(lambda: made.head.ready, 90)
        wait_for(lambda: answers(made))
        # Serve starts the other machine's HAProxy anew: for a moment it refuses connections (ray 2.60).
        for _ in range(15):
            wait_for(lambda: answers(elsewhere), 10)
            time.sleep(1)
        assert other.engines == [engine], "what runs on the other machine has seen nothing of it"


@pytest.mark.timeout(300)
def test_replicas_come_with_the_load_and_go_with_it() -> None:
    scaling = {"MAX_REPLICAS": "2", "TARGET_WAIT_S": "1", "DOWNSCALE_DELAY_S": "8", "MAX_NUM_SEQS": "8"}
    with cluster(2, **{f"DRAY_MODEL__{name}": value for name, value in scaling.items()}) as made:
        [other] = made.others
        assert not other.engines
        answered: list[str] = []
        failed: list[str] = []
        over = threading.Event()

        def lane() -> None:
            while not over.is_set():
                if answers(made, tokens=200):
                    answered.append(time.strftime("%X"))
                else:
                    failed.append(time.strftime("%X"))

        lanes = [threading.Thread(target=lane) for _ in range(24)]
        for one in lanes:
            one.start()
        try:
            wait_for(lambda: other.engines, 60)
            wait_for(lambda: wanted(made) == 2, 10)
            enough = len(answered) + 4 * len(lanes)
            wait_for(lambda: len(answered) >= enough, 60)
        finally:
            over.set()
            for one in lanes:
                one.join()
        wait_for(lambda: wanted(made) == 1, 60)
        wait_for(lambda: not other.engines, 60)
        assert answers(made)
        assert not failed


def wanted(made: Cluster) -> float:
    """Replicas that the policy wants, as the head's metrics say."""
    [line] = [one for one in metrics(made).splitlines() if one.startswith("dray_autoscaling_desired_replicas{")]
    return float(line.rpartition(" ")[2])


def metrics(made: Cluster) -> str:
    return httpx.get(f"{made.url}/metrics", headers=made.headers).text
