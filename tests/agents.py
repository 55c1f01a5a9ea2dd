"""Coding agents as their makers ship them: fetched from npm once, kept outside the checkout, and run without a network.

Their requests to anything but this machine go to a closed port.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.fetched import from_npm

PACKAGES = ("@anthropic-ai/claude-code", "@openai/codex")
SHORT = ("--system-prompt", "You are a helpful assistant.", "--tools", "")
"""Claude Code without its own prompt, which has 20,000 tokens."""
ALONE = ("--disable", "multi_agent", "--disable", "goals")
"""Codex without the tools for further agents, which have 3,400 tokens."""
_CODEX = """
model = "{model}"
model_provider = "dray"
[model_providers.dray]
name = "Dray"
base_url = "{url}/v1"
wire_api = "responses"
[analytics]
enabled = false
"""
_ANSWER_S = 300


def installed() -> Path:
    """The folder with the commands `claude` and `codex`. Skips the test where they cannot be had."""
    return from_npm("agents", *PACKAGES) / ".bin"


def ask_claude(url: str, model: str, home: Path, question: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Asks through Claude Code, which prints its report as JSON. url: of Dray, without a path."""
    environment = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_SMALL_FAST_MODEL": model,
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
    }
    command = [str(installed() / "claude"), "-p", question, "--output-format", "json", "--no-session-persistence"]
    return _run([*command, *flags], home, environment)


def ask_codex(url: str, model: str, home: Path, question: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Asks through Codex, which prints its events as lines of JSON. url: of Dray, without a path."""
    (folder := home / ".codex").mkdir(exist_ok=True)
    (folder / "config.toml").write_text(_CODEX.format(model=model, url=url))
    command = [str(installed() / "codex"), "exec", "--json", "--skip-git-repo-check", "--ephemeral", *flags, question]
    return _run(command, home, {"CODEX_HOME": str(folder)})


def _run(command: list[str], home: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs an agent in an empty folder, with a home of its own."""
    (folder := home / "work").mkdir(exist_ok=True)
    closed = "http://127.0.0.1:9"
    proxies = {"HTTP_PROXY": closed, "HTTPS_PROXY": closed, "NO_PROXY": "127.0.0.1,localhost"}
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **proxies, **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_ANSWER_S,
        check=False,
    )
