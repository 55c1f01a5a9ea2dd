"""Dashboard and alerts in a real Prometheus that scrapes a real Dray under load: each panel has data."""

import json
import math
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.charts import Chart, Line, draw
from cluster.ports import free_port
from tests.conftest import MODEL, Dray, wait_for
from tests.k8s.test_monitoring import MONITORING, dashboard
from tests.service.test_cache import new_question

_LOAD_S = 30.0


def rules() -> dict[str, Any]:
    """The alerts in the form that Prometheus reads."""
    spec: dict[str, Any] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    return spec


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus' promtool")
def test_promtool_accepts_the_alerts(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    done = subprocess.run(
        ["promtool", "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(target: str) -> Iterator[str]:
    """A Prometheus that scrapes the target's address every second; yields its own URL."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="dray-p-") as folder:
        (Path(folder) / "rules.yaml").write_text(yaml.safe_dump(rules()))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "dray", "static_configs": [{"targets": [target]}]}],
        }
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config))
        arguments = [f"--config.file={folder}/config.yaml", f"--storage.tsdb.path={folder}/data"]
        with subprocess.Popen(
            ["prometheus", *arguments, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


def create_keys(dray: Dray) -> list[str]:
    """The keys of two new teams: the first has a monthly limit, the second may send only one request a minute."""
    assert dray.run("teams", "add", "bots", "--tokens-per-month", "100000000").returncode == 0
    assert dray.run("teams", "add", "few", "--requests-per-minute", "1").returncode == 0
    keys = [json.loads(dray.run("keys", "create", team, "--json").stdout)["key"] for team in ("bots", "few")]
    wait_for(lambda: all(ask(dray, key, "What is 1 + 2?").status_code != 401 for key in keys))
    return keys


def ask(dray: Dray, key: str, question: str, model: str = MODEL) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{dray.url}/chat/completions", json=body, headers=headers, timeout=60)


def submit_batch(dray: Dray, key: str, lines: int) -> None:
    """Starts a batch of as many new questions."""
    file = dray.folder / "requests.jsonl"
    with file.open("w") as out:
        for number in range(lines):
            body = {"model": MODEL, "messages": [{"role": "user", "content": new_question()}]}
            line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")
    submitted = dray.run("batch", "submit", str(file), "--key", key)
    assert submitted.returncode == 0, submitted.stderr


@contextmanager
def load(dray: Dray) -> Iterator[None]:
    """Sends requests while the block runs, beside a batch: cache hits, misses, and requests beyond a quota."""
    load_over = threading.Event()
    keys = create_keys(dray)
    submit_batch(dray, keys[0], 500)

    def send_requests() -> None:
        while not load_over.is_set():
            for key in keys:
                ask(dray, key, new_question())
                ask(dray, key, "What is 1 + 2?", "auto")

    threads = [threading.Thread(target=send_requests) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        load_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus")
def test_every_panel_has_data_of_a_dray_under_load(another: Dray, tmp_path: Path) -> None:
    models = json.dumps([{"name": MODEL}, {"name": "auto", "route": [{"to": MODEL}]}])
    started = another.run(
        *("up", "--detach"),
        timeout=600,
        DRAY_MODELS=models,
        DRAY_MODEL__MAX_REPLICAS="2",
        DRAY_MODEL__CORES_PER_REPLICA="1",
    )
    assert started.returncode == 0, started.stderr
    empty = {title: expanded(expression) for title, expression in dashboard().items()}
    with prometheus(f"127.0.0.1:{another.port}") as url, load(another):

        def all_have_data() -> bool:
            for title in [title for title, expression in empty.items() if values(url, expression)]:
                del empty[title]
            return not empty

        try:
            wait_for(all_have_data, 2 * _LOAD_S)
        except AssertionError:
            pytest.fail(f"panels without data: {empty}")
        teams = httpx.get(f"{url}/api/v1/label/team/values").json()["data"]
        assert {*teams} == {"bots", "few"}
        groups = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"]
        states = {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}
        assert {*states} == {rule["alert"] for group in rules()["groups"] for rule in group["rules"]}
        assert {name: state for name, state in states.items() if state != ("ok", "inactive")} == {}
        image = tmp_path / "dashboard.png"
        draw(list(panels(url)), image)
        print(f"the panels are drawn in {image}")


def panels(url: str) -> Iterator[Chart]:
    """The dashboard's panels for the last half minute, with legends and units as Grafana writes them."""
    end = time.time()
    for panel in json.loads((MONITORING / "dray.json").read_text())["panels"]:
        lines = []
        for target in panel.get("targets", ()):
            query = expanded(target["expr"])
            parameters: dict[str, str | float] = {"query": query, "start": end - _LOAD_S, "end": end, "step": 1}
            answer = httpx.get(f"{url}/api/v1/query_range", params=parameters).raise_for_status().json()
            for series in answer["data"]["result"]:
                points = [(at - end + _LOAD_S, float(value)) for at, value in series["values"] if value != "NaN"]
                if points:
                    lines.append(Line(legend(target["legendFormat"], series["metric"]), points))
        if lines:
            yield Chart(panel["title"], "s", panel["fieldConfig"]["defaults"].get("unit", ""), lines)


def legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), template)


def expanded(expression: str) -> str:
    return expression.replace("$__rate_interval", "10s").replace("$model", ".*")


def values(url: str, expression: str) -> list[float]:
    """The current values of the expression, without NaN."""
    try:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": expression})
    except httpx.HTTPError:  # Prometheus has not started yet
        return []
    if answer.status_code == 503:
        return []
    assert answer.status_code == 200, (expression, answer.text)
    numbers = [float(series["value"][1]) for series in answer.json()["data"]["result"]]
    return [number for number in numbers if not math.isnan(number)]
