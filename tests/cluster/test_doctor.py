"""`dray doctor`: its findings on this machine as it is, and on machines that cannot run Dray."""

import base64
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.configuration import load
from cluster.doctor import Finding, examine
from cluster.models.folder import BUNDLED_FOLDER
from cluster.records.privacy import check_keys
from cluster.redis_client import connect
from cluster.settings import PRIVACY_KEYS
from tests.conftest import Dray, redis_server
from tests.models.hubs import stand_in


def run_doctor(dray: Dray, *arguments: str, **environment: str) -> tuple[int, dict[str, list[Finding]]]:
    """The exit code, and the findings of each check."""
    done = dray.run("doctor", "--json", *arguments, **environment)  # type: ignore[arg-type]
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    checks: dict[str, list[Finding]] = {}
    for fields in report["checks"]:
        checks.setdefault(fields["check"], []).append(Finding(**fields))
    return done.returncode, checks


def findings_of(check: str, *, cpu_manager: Path = Path("/nowhere"), **overrides: Any) -> list[Finding]:
    """The findings of one check, with these settings."""
    settings = load({name.replace("__", "."): value for name, value in overrides.items()}).settings
    findings = examine(settings, offline=True, cpu_manager=cpu_manager)
    return [finding for finding in findings if finding.check == check]


def test_all_checks_pass_on_this_machine(another: Dray) -> None:
    code, checks = run_doctor(another, "--offline")
    assert code == 0
    assert {finding.level for name in checks if name != "shared memory" for finding in checks[name]} == {"passed"}
    required = {"processor", "NUMA", "limits", "model", "cores", "memory", "disk", "ports", "Redis", "packages", "Ray"}
    assert required <= set(checks) and "hub" not in checks
    assert "INT8 with" in checks["processor"][0].message or "not x86" in checks["processor"][0].message
    assert not (another.folder / "s").exists() and not (another.folder / "d").exists()


def test_all_failures_are_reported_at_once_with_the_messages_of_up(another: Dray) -> None:
    model = another.folder / "half"
    shutil.copytree(BUNDLED_FOLDER, model)
    (model / "openvino_model.bin").unlink()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", another.port))
        taken.listen()
        code, checks = run_doctor(
            another,
            "--offline",
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
        failed = {
            name: finding.message
            for name, findings in checks.items()
            for finding in findings
            if finding.level == "failed"
        }
        assert set(failed) == {"model", "cores", "memory", "ports", "Redis"}
        assert another.run("up").stderr == f"error: {failed['ports']}\n"
    assert "lacks openvino_model.bin" in failed["model"]
    assert "Run fewer replicas" in failed["cores"]
    assert "use fewer replicas" in failed["memory"]
    assert "does not answer" in failed["Redis"]
    done = another.run("doctor", "--offline", "--cores", "4096")
    assert done.returncode == 1 and "1 failed" in done.stdout


def test_a_missing_model_is_sized_before_it_is_fetched(tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"models_dir": tmp_path, "model__source": "deepseek-r1-distill-qwen-7b"}
    (model,) = findings_of("model", **overrides)
    assert model.level == "warning" and "7.1 GiB" in model.message and "dray models pull" in model.message
    (memory,) = findings_of("memory", **overrides, model__kv_cache_mb=4096)
    assert "deepseek-r1-distill-qwen-7b 18.8 GiB" in memory.message
    (unknown,) = findings_of("model", models_dir=tmp_path, model__source="some/model")
    assert unknown.level == "warning" and "size unknown" in unknown.message


@pytest.mark.slow
def test_hubs_are_asked_and_a_silent_hub_is_only_a_warning(another: Dray) -> None:
    with stand_in("huggingface") as hub, stand_in("modelscope") as scope:
        proxy = {"ALL_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}  # so that the mirror is out of reach
        code, checks = run_doctor(another, HF_ENDPOINT=hub.url, MODELSCOPE_ENDPOINT=scope.url, **proxy)
        assert code == 0
        assert {finding.message.split()[0]: finding.level for finding in checks["hub"]} == {
            hub.url: "passed",
            "https://hf-mirror.com": "warning",
            scope.url: "passed",
        }
        assert hub.asked and scope.asked


def test_the_cores_of_the_running_dray_count_as_free(dray: Dray) -> None:
    code, checks = run_doctor(dray, "--offline")
    assert code == 0
    assert dray.url in checks["ports"][0].message
    assert checks["cores"][0].level == "passed" and "those of the Dray that runs here" in checks["cores"][0].message
    assert "Redis and Ray" not in checks["memory"][0].message
    own_pids = {str(process.pid) for process in dray.processes("raylet/raylet")}
    assert own_pids and not own_pids & set(re.findall(r"\d+", checks["Ray"][0].message))


def test_a_redis_that_evicts_is_a_warning_for_teams() -> None:
    with redis_server(16) as own:
        teams, _ = findings_of("Redis", teams__url=own.url)
        assert teams.level == "warning" and "noeviction" in teams.message
        answers, _ = findings_of("Redis", cache__url=own.url)
        assert answers.level == "passed"


def test_keys_that_do_not_fit_what_redis_keeps_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [base64.b64encode(os.urandom(32)).decode() for _ in range(2)]
    with redis_server(16) as own, connect(own.url) as client:
        assert findings_of("privacy", teams__url=own.url) == []
        monkeypatch.setenv(PRIVACY_KEYS, keys[0])
        assert check_keys(client, renew=True) == ""
        (fits,) = findings_of("privacy", teams__url=own.url)
        assert fits.level == "passed"
        for wrong in (keys[1], None, "x"):
            if wrong is None:
                monkeypatch.delenv(PRIVACY_KEYS)
            else:
                monkeypatch.setenv(PRIVACY_KEYS, wrong)
            (finding,) = findings_of("privacy", teams__url=own.url)
            assert finding.level == "failed" and PRIVACY_KEYS in finding.message


def test_a_state_folder_with_too_long_a_path_fails(tmp_path: Path) -> None:
    (path, *_) = findings_of("disk", state_dir=tmp_path / ("x" * 60))
    assert path.level == "failed" and "characters" in path.message


@pytest.mark.parametrize(("policy", "level"), [("static", "passed"), ("none", "warning")])
def test_the_policy_of_a_nodes_cpu_manager_is_reported(tmp_path: Path, policy: str, level: str) -> None:
    state = tmp_path / "cpu_manager_state"
    state.write_text(json.dumps({"policyName": policy, "defaultCpuSet": "0-1", "checksum": 1}))
    (finding,) = findings_of("Kubernetes", cpu_manager=state)
    assert finding.level == level and policy in finding.message


def test_a_pod_that_sees_the_whole_node_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings_of("Kubernetes") == []
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    (finding,) = findings_of("Kubernetes")
    assert finding.level == "warning" and "cpuManagerPolicy: static" in finding.message
    assert findings_of("cores") == findings_of("ports") == []  # the settings are the whole cluster's
    if len(os.sched_getaffinity(0)) > 1:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            (finding,) = findings_of("Kubernetes")
        finally:
            os.sched_setaffinity(0, before)
        assert (finding.level, finding.message) == ("passed", f"this pod is pinned to CPUs {min(before)}")


def test_each_advice_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.doctor.machine._LITTLE_DISK", 1 << 62)
    environment = {"DRAY_STATE_DIR": str(tmp_path / "s"), "DRAY_DATA_DIR": str(tmp_path / "d")}
    shown = CliRunner(env=environment).invoke(app, ["doctor", "--offline"]).stdout
    assert shown.count("GiB free") - shown.count("free in /dev/shm") >= 3 and shown.count("make room") == 1
    report = CliRunner(env=environment).invoke(app, ["doctor", "--offline", "--json"]).stdout
    assert report.count("make room") == 3, "for a program, each check stands alone"
