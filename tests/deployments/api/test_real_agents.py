"""Claude Code and Codex, as their makers ship them, asking a router whose engines answer what the test says."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from cluster.models.folder import BUNDLED_FOLDER, ServedModel
from cluster.redis_server import OwnRedis
from tests.agents import ALONE, SHORT, ask_claude, ask_codex, installed
from tests.conftest import redis_server
from tests.deployments.routers import Engines, running_router

pytestmark = pytest.mark.slow
TOKENIZER = Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    installed()
    with redis_server(32) as own:
        yield own


@asynccontextmanager
async def answering(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, bundled: ServedModel, folder: Path, *texts: str, context: int
) -> AsyncIterator[tuple[Engines, str]]:
    """Engines that answer these texts in turn, and the URL of their router. context: of the model, in tokens."""
    shutil.copytree(bundled.folder, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    answers, engines = iter(texts), Engines()

    def answer() -> None:
        engines.tokens = tuple(TOKENIZER.encode(f"</think>{next(answers)}", add_special_tokens=False).ids)

    engines.on_request = answer
    models = [{"name": "bot", "source": str(folder / "model")}]
    async with running_router(monkeypatch, server.url, engines=engines, models=models, data_dir=folder) as router:
        yield engines, router.url


def call(name: str, **arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What Claude Code says of a question that it got an answer to."""
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["is_error"] is False
    return said


def items(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What Codex has done for a question that it got an answer to."""
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert events[-1]["type"] == "turn.completed" and events[-1]["usage"]["input_tokens"] > 0
    return [event["item"] for event in events if event["type"] == "item.completed"]


def test_claude_code(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, bundled: ServedModel, tmp_path: Path) -> None:
    """With its own prompt, and with a short one; and it runs a command that the model calls."""
    calling = ("--bare", "--tools", "Bash", "--allowedTools", "Bash(echo:*)")
    texts = ("The sum is 4.", "It is 5.", f"I look. {call('Bash', command='echo hi-there')}", "It says so.")

    async def work() -> None:
        async with answering(server, monkeypatch, bundled, tmp_path, *texts, context=500_000) as (engines, url):

            async def ask(question: str, *flags: str) -> dict[str, Any]:
                return report(await asyncio.to_thread(ask_claude, url, "bot", tmp_path, question, *flags))

            own = await ask("What is 2 + 2?")
            assert own["result"] == texts[0] and own["usage"]["input_tokens"] == len(engines.request.prompt_ids)
            assert (await ask("What is 2 + 3?", *SHORT))["result"] == texts[1]
            assert (await ask("Say hi by echo.", *calling))["result"] == texts[3]
            assert "hi-there" in TOKENIZER.decode(engines.request.prompt_ids).rpartition("hi-there")[0]

    asyncio.run(work())


def test_claude_code_says_that_a_prompt_is_too_long(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, bundled: ServedModel, tmp_path: Path
) -> None:
    async def work() -> None:
        async with answering(server, monkeypatch, bundled, tmp_path, context=2048) as (_, url):
            done = await asyncio.to_thread(ask_claude, url, "bot", tmp_path, "What is 2 + 2?")
            assert done.returncode == 1
            assert "too long" in json.loads(done.stdout)["result"] and "2047" in done.stdout

    asyncio.run(work())


def test_codex(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, bundled: ServedModel, tmp_path: Path) -> None:
    """With all its tools, and without those for further agents; and it runs a command that the model calls."""
    texts = ("The sum is 4.", "It is 5.", call("exec_command", cmd="echo hi-there"), "It says so.")

    async def work() -> None:
        async with answering(server, monkeypatch, bundled, tmp_path, *texts, context=500_000) as (engines, url):

            async def ask(question: str, *flags: str) -> list[dict[str, Any]]:
                return items(await asyncio.to_thread(ask_codex, url, "bot", tmp_path, question, *flags))

            assert (await ask("What is 2 + 2?"))[-1]["text"] == texts[0]
            assert (await ask("What is 2 + 3?", *ALONE))[-1]["text"] == texts[1]
            *_, command, message = await ask("Say hi by echo.", *ALONE)
            assert (command["type"], command["aggregated_output"], command["exit_code"]) == (
                "command_execution",
                "hi-there\n",
                0,
            )
            assert message["text"] == texts[3]
            assert "exited with code 0" in TOKENIZER.decode(engines.request.prompt_ids)

    asyncio.run(work())
