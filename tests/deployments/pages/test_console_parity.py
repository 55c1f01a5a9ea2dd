"""What the console does can be done without it: each action has a route of the admin API and a command."""

import re
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the console needs the extra `page`")

import cluster.commands
import deployments
from deployments.api.protocol.openapi import document
from deployments.pages.console import page
from tests.cluster.test_commands import ALL, options

ACTIONS = {
    "teams: list": ("get /admin/teams", "teams list", ""),
    "teams: make": ("post /admin/teams", "teams add", "team.create"),
    "teams: edit": ("get /admin/teams/{}", "teams list", ""),
    "teams: save": ("patch /admin/teams/{}", "teams set", "team.change"),
    "teams: delete": ("delete /admin/teams/{}", "teams remove", "team.remove"),
    "keys: list": ("get /admin/keys", "keys list", ""),
    "keys: make": ("post /admin/keys", "keys create", "key.create"),
    "keys: rotate": ("post /admin/keys/{}/rotate", "keys rotate", "key.rotate"),
    "keys: revoke": ("delete /admin/keys/{}", "keys revoke", "key.revoke"),
    "usage": ("get /admin/usage", "usage", ""),
    "budgets": ("get /admin/budgets", "teams budgets", ""),
    "models": ("get /admin/models", "models replicas", ""),
    "requests": ("get /admin/requests", "requests", ""),
    "errors": ("get /admin/errors", "errors", ""),
    "batches: list": ("get /admin/batches", "batch list", ""),
    "batches: cancel": ("post /admin/batches/{}/cancel", "batch cancel", "batch.cancel"),
    "voted down: list": ("get /admin/feedback", "feedback list", ""),
    "voted down: correct": ("post /admin/feedback/{}/accept", "feedback accept", "feedback.accept"),
    "cached: search": ("get /admin/cache", "cache search", ""),
    "cached: see": ("get /admin/cache/{}", "cache show", ""),
    "cached: delete": ("delete /admin/cache/{}", "cache delete", "cache.delete"),
    "cached: pin, correct": ("post /admin/answers/pin", "answers pin", "answer.pin"),
    "curated: list": ("get /admin/answers", "answers list", ""),
    "curated: add": ("post /admin/answers", "answers import", "answer.import"),
    "curated: open": ("get /admin/answers/{}", "answers list", ""),
    "curated: edit": ("patch /admin/answers/{}", "answers edit", "answer.edit"),
    "curated: delete": ("delete /admin/answers/{}", "answers remove", "answer.remove"),
}
"""By what a person does in the console: the route, the command, and the entry of the audit log, if any."""


def sources(folder: Path) -> str:
    return "\n".join(file.read_text() for file in folder.rglob("*.py"))


CONSOLE = sources(Path(page.__file__).parent)
# `dray batch cancel` asks the API, which writes the entry.
COMMANDS = sources(Path(cluster.commands.__path__[0])) + '"batch.cancel"'
API = sources(Path(deployments.__path__[0]))


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_is_a_route_a_command_and_an_entry(action: str) -> None:
    route, command, entry = ACTIONS[action]
    method, path = route.split()
    offered = {re.sub(r"\{\w+\}", "{}", name): methods for name, methods in document()["paths"].items()}
    assert method in offered[path]
    assert "--json" in options(ALL[command])
    assert bool(entry) == (method != "get")
    if entry:
        assert f'"{entry}"' in API and f'"{entry}"' in COMMANDS


def test_no_action_is_missing() -> None:
    used = set()
    for arguments in re.findall(r"path_of\(((?:[^()]|\(\))+)\)", CONSOLE):
        if ":" not in arguments:  # its definition
            parts = [part.strip() for part in arguments.split(",")]
            used.add("/admin/" + "/".join(part[1:-1] if part.startswith('"') else "{}" for part in parts))
    # With its key somebody opens the console, which a command needs not.
    assert used == {route.split()[1] for route, _, _ in ACTIONS.values()} | {"/admin/logins"}
    calls = {method: len(re.findall(rf"admin\.{method}\(", CONSOLE)) for method in ("post", "patch", "delete")}
    listed = {method: sum(route.startswith(method) for route, _, _ in ACTIONS.values()) for method in calls}
    assert listed["patch"] == calls["patch"] and listed["delete"] == calls["delete"]
    assert listed["post"] == calls["post"] - 1, "a cached answer is pinned as it is, or corrected"
