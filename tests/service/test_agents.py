"""Coding agents as their makers ship them, asking a Dray that serves a small real model.

Both are fetched from npm once and kept outside the checkout. Their requests to anything but Dray go to a closed port.
"""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import Dray, started_dray
from tests.models.smollm2 import smollm2

pytestmark = pytest.mark.slow
PACKAGES = ("@anthropic-ai/claude-code", "@openai/codex")
QUESTION = "What is 2 + 2?"
CODEX = """
model = "{model}"
model_provider = "dray"
model_context_window = 8192
[model_providers.dray]
name = "Dray"
base_url = "{url}"
wire_api = "responses"
[analytics]
enabled = false
"""
_INSTALL_S = 600
_ANSWER_S = 300


@pytest.fixture(scope="module")
def commands() -> Path:
    """The folder with both commands."""
    if (npm := shutil.which("npm")) is None:
        pytest.skip("npm is not installed")
    cache = Path(os.environ.get("DRAY_TEST_CACHE", "~/.cache/dray-tests")).expanduser() / "agents"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "node_modules" / ".bin"
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ((folder / "claude").exists() and (folder / "codex").exists()):
            command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(cache), *PACKAGES]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
            if done.returncode:
                pytest.skip(f"npm cannot install {' and '.join(PACKAGES)}: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def service() -> Iterator[Dray]:
    model = smollm2()
    settings = {"DRAY_MODEL__NAME": "smollm2", "DRAY_MODEL__KV_CACHE_MB": "512", "DRAY_MODEL__PRECISION": "exact"}
    with started_dray("--model", str(model.folder), settings=settings) as running:
        yield running


def run(command: list[str], home: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs an agent in an empty folder, with a home of its own."""
    (folder := home / "work").mkdir(exist_ok=True)
    closed = "http://127.0.0.1:9"
    proxies = {"HTTP_PROXY": closed, "HTTPS_PROXY": closed, "NO_PROXY": "127.0.0.1,localhost"}
    own = {"PATH": os.environ["PATH"], "HOME": str(home), **proxies, **environment}
    return subprocess.run(
        command,
        env=own,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_ANSWER_S,
        check=False,
    )


def ask_claude(commands: Path, service: Dray, home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "ANTHROPIC_BASE_URL": service.root,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": "smollm2",
        "ANTHROPIC_SMALL_FAST_MODEL": "smollm2",
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
    }
    command = [str(commands / "claude"), "-p", QUESTION, "--output-format", "json", "--no-session-persistence", *flags]
    return run(command, home, environment)


SHORT = ("--system-prompt", "You are a helpful assistant.", "--tools", "")


def test_claude_code_gets_an_answer(commands: Path, service: Dray, tmp_path: Path) -> None:
    for more in ((), ("--bare",)):
        done = ask_claude(commands, service, tmp_path, *SHORT, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert report["is_error"] is False and report["result"].strip()
        assert report["usage"]["input_tokens"] > 0 < report["usage"]["output_tokens"]


def test_claude_code_says_that_its_own_prompt_is_too_long(commands: Path, service: Dray, tmp_path: Path) -> None:
    done = ask_claude(commands, service, tmp_path)
    assert done.returncode == 1
    assert "too long" in json.loads(done.stdout)["result"].lower()


def test_codex_gets_an_answer(commands: Path, service: Dray, tmp_path: Path) -> None:
    """Without the tools for further agents: with these its own prompt is longer than the model's context."""
    (folder := tmp_path / ".codex").mkdir()
    (folder / "config.toml").write_text(CODEX.format(model="smollm2", url=service.url))
    flags = ["--json", "--skip-git-repo-check", "--ephemeral", "--disable", "multi_agent", "--disable", "goals"]
    done = run([str(commands / "codex"), "exec", *flags, QUESTION], tmp_path, {"CODEX_HOME": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert events[-1]["type"] == "turn.completed" and events[-1]["usage"]["input_tokens"] > 0
    messages = [event["item"] for event in events if event.get("item", {}).get("type") == "agent_message"]
    assert messages[-1]["text"].strip()
