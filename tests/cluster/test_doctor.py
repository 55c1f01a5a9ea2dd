"""`dray doctor`: what it says of this machine as it is, and of one that cannot run Dray."""

import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration import load
from cluster.doctor import Finding, examine
from cluster.models.folder import BUNDLED_FOLDER
from tests.conftest import Dray, redis_server
from tests.models.hubs import stand_in


def found(*arguments: str, by: Dray, **environment: str) -> tuple[int, dict[str, list[Finding]]]:
    """The exit code, and the findings by what was checked."""
    ended = by.run("doctor", "--json", *arguments, **environment)  # type: ignore[arg-type]
    report = json.loads(ended.stdout)
    assert report["ok"] == (ended.returncode == 0)
    checks: dict[str, list[Finding]] = {}
    for one in report["checks"]:
        checks.setdefault(one["check"], []).append(Finding(**one))
    return ended.returncode, checks


def looked(check: str, *, cpu_manager: Path = Path("/nowhere"), **overrides: Any) -> list[Finding]:
    settings = load({name.replace("__", "."): value for name, value in overrides.items()}).settings
    return [one for one in examine(settings, offline=True, cpu_manager=cpu_manager) if one.check == check]


def test_all_is_well_here(another: Dray) -> None:
    code, checks = found("--offline", by=another)
    assert code == 0
    assert {one.level for name in checks if name != "shared memory" for one in checks[name]} == {"passed"}
    wanted = {"processor", "NUMA", "limits", "model", "cores", "memory", "disk", "ports", "Redis", "packages", "Ray"}
    assert wanted <= set(checks) and "hub" not in checks
    assert "INT8 with" in checks["processor"][0].message or "not x86" in checks["processor"][0].message
    assert not (another.folder / "s").exists() and not (another.folder / "d").exists()


def test_everything_that_fails_is_told_at_once_and_as_up_tells_it(another: Dray) -> None:
    model = another.folder / "half"
    shutil.copytree(BUNDLED_FOLDER, model)
    (model / "openvino_model.bin").unlink()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", another.port))
        taken.listen()
        code, checks = found(
            "--offline",
            by=another,
            DRAY_CACHE__URL="redis://127.0.0.1:1/0",
            DRAY_MODELS=json.dumps(
                [
                    {"source": str(model)},
                    {"name": "a", "cores_per_replica": 4096},
                    {"name": "b", "kv_cache_mb": 100_000_000},
                ]
            ),
        )
        assert code == 1
        failed = {name: one.message for name, every in checks.items() for one in every if one.level == "failed"}
        assert set(failed) == {"model", "cores", "memory", "ports", "Redis"}
        assert another.run("up").stderr == f"error: {failed['ports']}\n"
    assert "lacks openvino_model.bin" in failed["model"]
    assert "Run fewer replicas" in failed["cores"]
    assert "use fewer replicas" in failed["memory"]
    assert "does not answer" in failed["Redis"]
    shown = another.run("doctor", "--offline", "--cores", "4096")
    assert shown.returncode == 1 and "1 failed" in shown.stdout


def test_a_model_that_is_to_be_fetched_is_sized_before(tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"models_dir": tmp_path, "model__source": "deepseek-r1-distill-qwen-7b"}
    (model,) = looked("model", **overrides)
    assert model.level == "warning" and "7.1 GiB" in model.message and "dray models pull" in model.message
    (memory,) = looked("memory", **overrides, model__kv_cache_mb=4096)
    assert "deepseek-r1-distill-qwen-7b 18.8 GiB" in memory.message
    (unknown,) = looked("model", models_dir=tmp_path, model__source="some/model")
    assert unknown.level == "warning" and "size unknown" in unknown.message


@pytest.mark.slow
def test_hubs_are_asked_and_one_that_is_silent_fails_nothing(another: Dray) -> None:
    with stand_in("huggingface") as hub, stand_in("modelscope") as scope:
        proxy = {"ALL_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}  # so that the mirror is out of reach
        code, checks = found(by=another, HF_ENDPOINT=hub.url, MODELSCOPE_ENDPOINT=scope.url, **proxy)
        assert code == 0
        assert {one.message.split()[0]: one.level for one in checks["hub"]} == {
            hub.url: "passed",
            "https://hf-mirror.com": "warning",
            scope.url: "passed",
        }
        assert hub.asked and scope.asked


def test_the_cores_of_the_dray_that_runs_here_count_as_free(dray: Dray) -> None:
    code, checks = found("--offline", by=dray)
    assert code == 0
    assert dray.url in checks["ports"][0].message
    assert checks["cores"][0].level == "passed" and "those of the Dray that runs here" in checks["cores"][0].message
    assert "Redis and Ray" not in checks["memory"][0].message
    ours = {str(one.pid) for one in dray.processes("raylet/raylet")}
    assert ours and not ours & set(re.findall(r"\d+", checks["Ray"][0].message))


def test_a_redis_that_evicts_is_none_for_teams() -> None:
    with redis_server(16) as own:
        teams, _ = looked("Redis", teams__url=own.url)
        assert teams.level == "warning" and "noeviction" in teams.message
        answers, _ = looked("Redis", cache__url=own.url)
        assert answers.level == "passed"


def test_a_state_folder_with_too_long_a_path_is_told(tmp_path: Path) -> None:
    (path, *_) = looked("disk", state_dir=tmp_path / ("x" * 60))
    assert path.level == "failed" and "characters" in path.message


@pytest.mark.parametrize(("policy", "level"), [("static", "passed"), ("none", "warning")])
def test_a_node_tells_its_cpu_managers_policy(tmp_path: Path, policy: str, level: str) -> None:
    state = tmp_path / "cpu_manager_state"
    state.write_text(json.dumps({"policyName": policy, "defaultCpuSet": "0-1", "checksum": 1}))
    (finding,) = looked("Kubernetes", cpu_manager=state)
    assert finding.level == level and policy in finding.message


def test_a_pod_that_sees_the_whole_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked("Kubernetes") == []
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    (finding,) = looked("Kubernetes")
    assert finding.level == "warning" and "cpuManagerPolicy: static" in finding.message
    assert looked("cores") == looked("ports") == []  # the settings are the whole cluster's
    if len(os.sched_getaffinity(0)) > 1:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            (finding,) = looked("Kubernetes")
        finally:
            os.sched_setaffinity(0, before)
        assert (finding.level, finding.message) == ("passed", f"this pod is pinned to CPUs {min(before)}")
