"""A console with a real router and a real Redis behind it, and what its sections show."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from typer.testing import CliRunner

from cluster.audit import AUDIT_FOLDER
from cluster.cli import app
from cluster.records.team_records import ADMIN, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_server import OwnRedis
from deployments.pages.console.admin import AdminClient
from deployments.pages.console.page import Console
from deployments.pages.console.words import WORDS
from tests.deployments.api.test_curated import Bot, run

Servers = tuple[OwnRedis, OwnRedis]
ENGLISH = WORDS["en"]
REQUEST = gr.Request(headers={"accept-language": "en"}, cookies={})
CHINESE_REQUEST = gr.Request(headers={"accept-language": "zh-CN"}, cookies={})


def click(action: str, of: str = "") -> gr.EventData:
    """A click on a row's button."""
    return gr.EventData(None, {"action": action, "id": of})


@dataclass
class Open:
    """An open console and an admin key. bot: the router."""

    page: Console
    bot: Bot
    key: str

    def section(self, name: str) -> Any:
        [found] = [section for section in self.page.sections if section.name == name]
        return found


def tables(value: str) -> dict[str, list[list[Any]]]:
    """The cells of a board's tables, by caption."""

    def cell(of: dict[str, Any]) -> Any:
        return next((of[name] for name in ("number", "time", "share") if name in of), of.get("text", ""))

    return {
        table["caption"]: [[cell(one) for one in row["cells"]] for row in table["rows"]]
        for table in json.loads(value)["tables"]
    }


def heads(value: str, caption: str) -> list[str]:
    """The names of a table's columns."""
    [table] = [table for table in json.loads(value)["tables"] if table["caption"] == caption]
    return list(table["head"])


def audited(folder: Path) -> list[dict[str, Any]]:
    """The entries of the audit log."""
    return [json.loads(line) for line in (folder / AUDIT_FOLDER / "audit.jsonl").read_text().splitlines()]


async def command(servers: Servers, *arguments: str, **environment: str) -> Any:
    """What a command prints as JSON, of the same teams."""
    variables = {"DRAY_TEAMS__URL": servers[1].url, "DRAY_STATE_DIR": "/nowhere/dray", **environment}

    def run() -> Any:
        done = CliRunner().invoke(app, [*arguments, "--json"], env=variables)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return await asyncio.to_thread(run)


def opened(
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    work: Callable[[Open], Awaitable[None]],
    **settings: Any,
) -> None:
    """Runs the work with a console whose router has a team, `support`, and an admin key."""

    async def with_console(bot: Bot) -> None:
        add_team(bot.store, Team("support", 1.0))
        key = create_key(bot.store, ADMIN, "operations").secret
        client = AdminClient(f"{bot.running.url}/v1")
        page = Console(client)
        page.build()
        console = Open(page, bot, key)
        await console.page.login.sign_in(key, REQUEST)
        while (await console.page.login.sign_in(key, REQUEST))[0] != "in":  # until the router has read the key
            pass
        await work(console)
        await client._http.aclose()

    run(servers, monkeypatch, folder, with_console, **settings)


async def may_ask(bot: Bot, key: str) -> bool:
    """Whether the router knows the key."""
    headers = {"Authorization": f"Bearer {key}"}
    return (await bot.client.get("/v1/models", headers=headers)).is_success
