"""What commands that act say with --json: one document with what they did, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_answers_command import NAMESPACE, Dray, cached, dray, server, store, voted

__all__ = ["dray", "server", "store"]

TEAM = {"models": ["bot"], "weight": 2.0, "shares_answers": False, "cost_per_month": 9.5}


def did(dray: Dray, *arguments: str) -> Any:
    return json.loads(dray(*arguments, "--json"))


def test_teams_and_keys(dray: Dray, store: Any) -> None:
    added = did(dray, "teams", "add", "support", "--model", "bot", "--weight", "2", "--cost-per-month", "9.5")
    assert added == added | TEAM | {"name": "support"} and [added] == json.loads(dray("teams", "list", "--json"))
    changed = did(dray, "teams", "set", "support", "--tokens-per-month", "7", "--weight", "3")
    assert (changed["weight"], changed["quota"]["tokens_per_month"], changed["models"]) == (3.0, 7, ["bot"])
    key, other = (did(dray, "keys", "create", "support")["id"] for _ in range(2))
    revoked = did(dray, "keys", "revoke", key)
    assert (revoked["id"], revoked["kept"]) == (key, True) and revoked["ends"] > 0 and "digest" not in revoked
    assert did(dray, "keys", "remove", key) == {"id": key}
    assert did(dray, "teams", "remove", "support") == {"name": "support", "keys": 1} and other


def test_money_is_written_out(dray: Dray, store: Any) -> None:
    dray("teams", "add", "support", "--cost-per-month", "12345678.5")
    for table in ("list", "budgets"):
        assert "12,345,678.5" in dray("teams", table)


def test_answers_and_feedback(dray: Dray, store: Any, tmp_path: Path) -> None:
    file = tmp_path / "faq.jsonl"
    line = json.dumps({"question": "VPN?", "answer": "port 443"})
    file.write_text(f"{line}\n{line}\n")
    imported = did(dray, "answers", "import", str(file), "--namespace", NAMESPACE)
    [listed] = json.loads(dray("answers", "list", "--json"))
    assert imported == {"answers": 1, "ids": [listed["id"]]}
    edited = did(dray, "answers", "edit", listed["id"], "--answer", "port 8443", "--author", "ann")
    assert (edited["id"], edited["answer"], edited["author"]) == (listed["id"], "port 8443", "ann")
    assert did(dray, "answers", "remove", listed["id"]) == edited
    cached(store, "a" * 40, "Wifi?")
    pinned = did(dray, "answers", "pin", "a" * 40)
    assert (pinned["question"], pinned["namespace"]) == ("Wifi?", NAMESPACE)
    voted(store, "1", 0, 1, correction="right")
    accepted = did(dray, "feedback", "accept", "1", "--author", "ben")
    assert (accepted["question"], accepted["answer"], accepted["author"]) == ("question 1?", "right", "ben")
    assert accepted in json.loads(dray("answers", "list", "--json"))


def test_the_cache(dray: Dray, store: Any) -> None:
    for digest in ("a", "b", "c"):
        cached(store, digest * 40, "VPN?")
    assert did(dray, "cache", "delete", "a" * 40) == {"key": "a" * 40, "model": "bot", "namespace": NAMESPACE}
    assert did(dray, "cache", "clear", "--model", "bot") == {"answers": 2, "responses": 0}
    assert "cleared 0 answers" in dray("cache", "clear")


@pytest.mark.parametrize("arguments", [("teams", "remove", "nobody"), ("cache", "delete", "d" * 40)])
def test_a_failure_is_no_json(dray: Dray, store: Any, arguments: tuple[str, ...]) -> None:
    assert dray(*arguments, "--json", code=1).startswith("error: ")
