"""`dray up` and `dray down` as users run them: each failure is one clear line, and nothing is left behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import httpx
import psutil
import pytest

from cluster.launch.state import DEPLOY_REQUEST_FILE
from cluster.models.folder import BUNDLED_FOLDER
from tests.conftest import Dray, wait_for
from tests.service.test_cache import ask, new_question
from tests.service.test_faults import redis_process


def processes_of(dray: Dray) -> list[str]:
    """Command lines that name this Dray's folder."""
    own_pid = os.getpid()
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline", "pid"])
        if process.info["pid"] != own_pid
        and process.info["cmdline"]
        and str(dray.folder) in " ".join(process.info["cmdline"])
    ]


def left_over(dray: Dray) -> list[str]:
    """Processes that name this Dray's folder, and files in its state, lease and data folders."""
    files = [path for name in ("s", "c", "d") if (folder := dray.folder / name).exists() for path in folder.rglob("*")]
    return processes_of(dray) + [str(path) for path in files]


def refused(dray: Dray, *arguments: str, **environment: str) -> str:
    """Runs `dray up`, which must fail with a single line and leave nothing behind; returns the line."""
    done = dray.run("up", *arguments, **environment)  # type: ignore[arg-type]
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert left_over(dray) == []
    return lines[0]


def test_port_in_use(another: Dray) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", another.port))
        taken.listen()
        assert f"port {another.port} on 127.0.0.1 is in use" in refused(another)


def test_no_such_model(another: Dray) -> None:
    assert "does not exist" in refused(another, "--model", str(another.folder / "nothing"))


def test_incomplete_model(another: Dray) -> None:
    model = another.folder / "half"
    shutil.copytree(BUNDLED_FOLDER, model)
    (model / "openvino_model.bin").unlink()
    assert "lacks openvino_model.bin" in refused(another, "--model", str(model))


def test_broken_model(another: Dray) -> None:
    model = another.folder / "broken"
    shutil.copytree(BUNDLED_FOLDER, model)
    weights = model / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert "is broken" in refused(another, "--model", str(model))


def test_too_many_cores(another: Dray) -> None:
    assert "core" in refused(another, "--cores", "4096")


def test_cores_held_by_another(dray: Dray, another: Dray) -> None:
    line = refused(another, DRAY_LEASE_DIR=str(dray.folder / "c"))
    assert "dray-demo" in line


def test_too_little_memory(another: Dray) -> None:
    assert "GiB" in refused(another, DRAY_MODEL__KV_CACHE_MB="100000000")


def test_unknown_setting(another: Dray) -> None:
    assert "DRAY_PROT" in refused(another, DRAY_PROT="1")


def test_a_second_up_says_that_dray_already_runs(dray: Dray) -> None:
    second = dray.run("up")
    assert second.returncode == 1
    assert f"already runs at {dray.url}" in second.stderr
    assert dray.run("up", "--detach").returncode == 1


def test_down_without_up(another: Dray) -> None:
    done = another.run("down")
    assert done.returncode == 1 and "not running" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing(another: Dray, number: signal.Signals) -> None:
    command = another.command("up")
    with subprocess.Popen(command, env=another.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "Dray is ready" in process.stdout.readline()
        # A terminal's Ctrl-C reaches the whole foreground group; the supervisor alone is the harder case.
        process.send_signal(number)
        assert process.wait(60) == 0
    assert left_over(another) == []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", another.port))


@pytest.mark.slow
def test_down_clears_away_what_a_killed_launcher_left(another: Dray) -> None:
    assert another.run("up", "--detach").returncode == 0
    record = json.loads((another.folder / "s" / "dray.json").read_text())
    os.kill(record["pid"], signal.SIGKILL)
    assert "not running" in another.run("down").stderr
    wait_for(lambda: not processes_of(another))
    data_dir = str(another.folder / "d")
    assert [path for path in left_over(another) if not path.startswith(data_dir)] == []


def test_status_chat_and_settings(dray: Dray) -> None:
    report = dray.status()
    [replica] = report["replicas"]
    assert set(os.sched_getaffinity(replica["engine_pid"])) <= {int(cpu) for cpu in replica["cpus"].split(",")}
    assert "answers" in report["redis"]
    output = dray.run("status").stdout
    assert replica["replica"] in output and "Redis" in output
    chat = subprocess.run(
        dray.command("chat"),
        input="What is 20 + 22?\n\n",
        env=dray.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "42" in chat.stdout and "tokens" in chat.stdout
    settings = json.loads(dray.run("settings", "--json").stdout)
    assert settings["port"] == {"value": dray.port, "origin": "environment", "variable": "DRAY_PORT"}
    assert settings["limits.messages"]["origin"] == "default"


def test_every_thread_of_the_engine_is_on_its_cores(dray: Dray) -> None:
    [replica] = dray.status()["replicas"]
    cpus = {int(cpu) for cpu in replica["cpus"].split(",")}
    threads = psutil.Process(replica["engine_pid"]).threads()
    assert threads
    for thread in threads:
        assert os.sched_getaffinity(thread.id) <= cpus


def test_a_wrong_deploy_request_is_refused_and_serving_continues(dray: Dray, http: httpx.Client) -> None:
    file = dray.folder / "s" / DEPLOY_REQUEST_FILE
    for content, reason in (
        ('{"id": "1", "settings": {"prot": 1}}', "prot: unknown setting"),
        ("not JSON", "the deploy request was unreadable"),
    ):
        new = file.with_name("new")
        new.write_text(content)
        new.replace(file)
        wait_for(lambda reason=reason: reason in dray.status()["deployment"]["refused"])  # type: ignore[misc]
        assert reason in dray.run("status").stdout
        assert not file.exists()
    assert ask(http, new_question()).status_code == 200


def test_without_its_redis_dray_serves_uncached_until_redis_restarts(dray: Dray, http: httpx.Client) -> None:
    question = new_question()
    ask(http, question)
    assert ask(http, question).headers["x-dray-cache"] == "hit"
    folder = dray.folder / "s" / "redis"
    folder.rename(folder.with_name("away"))
    folder.touch()
    redis_process(dray).kill()
    try:
        [problem] = wait_for(lambda: dray.status()["problems"])
        assert "the Redis of the answer cache has ended and does not start again" in problem
        assert "problem:" in dray.run("status").stdout
        for _ in range(2):
            answer = ask(http, question)
            assert answer.status_code == 200 and answer.headers["x-dray-cache"] == "miss"
    finally:
        folder.unlink()
        shutil.rmtree(folder.with_name("away"))
    wait_for(lambda: not dray.status()["problems"])
    wait_for(lambda: ask(http, question).headers["x-dray-cache"] == "hit")


@pytest.mark.slow
def test_when_ray_ends_at_once_dray_ends_with_one_line_and_leaves_nothing(another: Dray) -> None:
    assert another.run("up", "--detach").returncode == 0
    launcher = launcher_of(another)
    raylet = part_of_ray(launcher, "raylet")
    raylet.kill()
    launcher.wait(60)
    log = (another.folder / "s" / "dray.log").read_text()
    assert log.splitlines()[-1] == f"error: Ray has ended: its raylet (process {raylet.pid}) died; Dray stops"
    (another.folder / "s" / "dray.log").unlink()
    assert left_over(another) == []


@pytest.mark.slow
def test_when_ray_ends_later_dray_starts_again(another: Dray) -> None:
    assert another.run("up", "--detach").returncode == 0
    launcher = launcher_of(another)
    for name in ("gcs_server", "raylet"):
        ready_at = time.monotonic()
        wait_for(lambda ready_at=ready_at: time.monotonic() - ready_at > 11)  # type: ignore[misc]  # an end at once is another test
        process = part_of_ray(launcher, name)
        process.kill()
        ended = f"Ray has ended: its {name} (process {process.pid}) died; Dray starts again"
        wait_for(lambda ended=ended: ended in (another.folder / "s" / "dray.log").read_text())  # type: ignore[misc]
        wait_for(lambda: another.run("status").returncode == 0, 90)
        assert launcher_of(another) == launcher
        with httpx.Client(base_url=another.root, timeout=60) as client:
            assert ask(client, new_question()).status_code == 200
    assert another.run("down").returncode == 0
    (another.folder / "s" / "dray.log").unlink(missing_ok=True)
    assert left_over(another) == []


def launcher_of(dray: Dray) -> psutil.Process:
    """The process that started this Dray and looks after it."""
    return psutil.Process(json.loads((dray.folder / "s" / "dray.json").read_text())["pid"])


def part_of_ray(launcher: psutil.Process, name: str) -> psutil.Process:
    """The launcher's `raylet` or `gcs_server`."""
    [process] = [process for process in launcher.children() if process.name() == name]
    return process
