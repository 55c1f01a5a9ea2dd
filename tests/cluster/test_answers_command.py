"""`dray answers` and `dray feedback` with a real Redis; and what commands leave in the audit log."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from cluster.audit import AUDIT_FOLDER, AuditLog
from cluster.cli import app
from cluster.commands.auditing import user_name
from cluster.records.batches import OWNERS, FileRecord, encode_file, owner_key
from cluster.records.cache import key_of, pack
from cluster.records.curated import ANSWERS, MAX_ANSWERS, MODELS, new_answer
from cluster.records.feedback import ADD, Feedback, arguments_of, keys_of
from cluster.records.forget import user_tag
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from cluster.settings import PRIVACY_KEYS
from tests.conftest import redis_server

NAMESPACE = "team.support"
Dray = Callable[..., str]


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


@pytest.fixture
def store(server: OwnRedis) -> Iterator[Any]:
    with connect(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def dray(server: OwnRedis, tmp_path: Path) -> Dray:
    """Runs a command; returns its output. code: its exit code."""
    environment = {
        "DRAY_TEAMS__URL": server.url,
        "DRAY_CACHE__URL": server.url,
        "DRAY_DATA_DIR": str(tmp_path / "d"),
        "DRAY_STATE_DIR": str(tmp_path / "s"),
        "COLUMNS": "250",
    }

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, arguments, env=environment)
        assert done.exit_code == code, done.output
        return done.output

    return run


def log(tmp_path: Path) -> list[dict[str, Any]]:
    assert AuditLog(tmp_path / "d" / AUDIT_FOLDER).verify().faults == []
    lines = (tmp_path / "d" / AUDIT_FOLDER / "audit.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert {entry["actor"] for entry in entries} == {f"user:{user_name()}"}
    return entries


def test_answers_are_managed_from_a_file_to_their_removal(dray: Dray, store: Any, tmp_path: Path) -> None:
    file = tmp_path / "faq.csv"
    file.write_bytes("\ufeffquestion,answer,author\r\n密码怎么重置?,打开设置。,王\r\nVPN?,port 443,\r\n".encode())
    assert "imported 2 answers" in dray("answers", "import", str(file), "--namespace", NAMESPACE)
    listed = json.loads(dray("answers", "list", "--json"))
    assert [(row["question"], row["author"], row["namespace"]) for row in listed] == [
        ("VPN?", user_name(), NAMESPACE),
        ("密码怎么重置?", "王", NAMESPACE),
    ]
    assert "打开设置" in dray("answers", "list", "--search", "密码") and "打开" not in dray(
        "answers", "list", "--search", "vpn"
    )
    number = listed[0]["id"]
    dray("answers", "edit", number, "--answer", "port 8443", "--valid-until", "2030-01-01", "--author", "ann")
    store.hset(MODELS, "bot", f"fingerprint {time.time() + 60}")
    table = dray("answers", "list")
    assert "port 8443" in table and "ann" in table and "older model" in table
    exported = [json.loads(line) for line in dray("answers", "export").splitlines()]
    assert exported[0]["valid-until"] == "2030-01-02T00:00:00+00:00"
    assert "removed" in dray("answers", "remove", number)
    assert "no curated answer" in dray("answers", "remove", number, code=1)
    entries = log(tmp_path)
    assert [entry["action"] for entry in entries] == ["answer.import", "answer.edit", "answer.remove"]
    assert entries[0]["details"]["ids"] == [listed[1]["id"], number]
    assert entries[0]["details"]["authors"] == sorted([user_name(), "王"])
    assert (entries[1]["target"], entries[1]["details"]["author"]) == (number, "ann")
    assert "8443" not in json.dumps(entries), "no answer is in a log"


def test_an_import_that_was_killed_is_repeated_and_each_answer_is_there_once(
    server: OwnRedis, dray: Dray, store: Any, tmp_path: Path
) -> None:
    file, count = tmp_path / "faq.jsonl", MAX_ANSWERS
    lines = [json.dumps({"question": f"question {number}?", "answer": "x" * 20}) for number in range(count)]
    file.write_text("\n".join(lines))
    environment = os.environ | {
        "DRAY_TEAMS__URL": server.url,
        "DRAY_DATA_DIR": str(tmp_path / "d"),
        "DRAY_STATE_DIR": str(tmp_path / "s"),
    }
    importing = [sys.executable, "-m", "cluster.cli", "answers", "import", str(file), "--namespace", NAMESPACE]
    for _ in range(10):
        with subprocess.Popen(importing, env=environment, stdout=subprocess.DEVNULL) as process:
            while not store.hlen(ANSWERS) and process.poll() is None:
                pass
            process.kill()
        if 0 < store.hlen(ANSWERS) < count:
            break
        store.flushall()  # it was over already
    assert 0 < store.hlen(ANSWERS) < count
    dray("answers", "import", str(file), "--namespace", NAMESPACE)
    exported = dray("answers", "export", "--namespace", NAMESPACE).splitlines()
    questions = [json.loads(line)["question"] for line in exported]
    assert len(questions) == len(set(questions)) == count
    # What counts towards the limits is counted once too: there is room for none more, and after a removal for one.
    another = tmp_path / "another.jsonl"
    another.write_text(json.dumps({"question": "another?", "answer": "x"}))
    assert "remove some first" in dray("answers", "import", str(another), "--namespace", NAMESPACE, code=1)
    dray("answers", "remove", new_answer(NAMESPACE, "question 0?", "x").id)
    dray("answers", "import", str(another), "--namespace", NAMESPACE)


def test_one_wrong_line_and_nothing_is_imported(dray: Dray, store: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n{"question": "c"}\n')
    assert "line 2: answer must have" in dray("answers", "import", str(file), code=1)
    assert "nothing.csv" in dray("answers", "import", str(tmp_path / "nothing.csv"), code=1)
    file.write_text("")
    assert "holds no answers" in dray("answers", "import", str(file), code=1)
    assert json.loads(dray("answers", "list", "--json")) == []
    assert not (tmp_path / "d" / AUDIT_FOLDER).exists()


def cached(store: Any, digest: str, question: str, finish: str = "stop", user: str = "") -> None:
    """Stores an answer as routers store it (GenerationResult of deployments.common.types)."""
    result = [[["thinking", " the answer ", finish]], [1, 2, 1, 0], 1e9, "replica", question, user]
    key = key_of("bot", NAMESPACE, digest)
    store.set(key, pack(msgspec.msgpack.encode(result), key), ex=60)


def test_a_cached_answer_is_pinned_if_it_is_known_what_was_asked(dray: Dray, store: Any, tmp_path: Path) -> None:
    cached(store, "a" * 40, "VPN?")
    cached(store, "b" * 40, "")
    cached(store, "c" * 40, "Wifi?", "length")
    assert "pinned as" in dray("answers", "pin", "a" * 40)
    [pinned] = json.loads(dray("answers", "list", "--json"))
    assert (pinned["namespace"], pinned["question"], pinned["answer"]) == (NAMESPACE, "VPN?", "the answer")
    assert "first question of a conversation" in dray("answers", "pin", "b" * 40, code=1)
    assert "not complete" in dray("answers", "pin", "c" * 40, code=1)
    assert "no answer is cached" in dray("answers", "pin", "d" * 40, code=1)
    assert [entry["details"]["key"] for entry in log(tmp_path)] == ["a" * 40]


def voted(store: Any, number: str, up: int, down: int, **fields: Any) -> None:
    question = fields.pop("question", f"question {number}?")
    record = Feedback(number, "support", NAMESPACE, "bot", question, f"answer {number}", 1e9, **fields)
    keys = keys_of("support")
    for rating in ["up"] * up + ["down"] * down:
        store.eval(ADD, len(keys), *keys, *arguments_of(record, rating))  # type: ignore[arg-type]


def test_what_was_voted_down_most_is_first_and_becomes_curated(dray: Dray, store: Any, tmp_path: Path) -> None:
    voted(store, "1", 2, 0)
    voted(store, "2", 0, 1)
    voted(store, "3", 1, 3, correction="right", reasons=("down: old",))
    voted(store, "4", 0, 2, single=False, correction="x")
    listed = json.loads(dray("feedback", "list", "--json"))
    assert [(row["id"], row["up"], row["down"]) for row in listed] == [
        ("3", 1, 3),
        ("4", 0, 2),
        ("2", 0, 1),
        ("1", 2, 0),
    ]
    assert json.loads(dray("feedback", "list", "--team", "other", "--json")) == []
    assert "curated as" in dray("feedback", "accept", "3", "--author", "ann")
    assert "curated as" in dray("feedback", "accept", "2", "--answer", "also right")
    assert "nobody has written a correction" in dray("feedback", "accept", "1", code=1)
    assert "belongs to a conversation" in dray("feedback", "accept", "4", code=1)
    assert "no feedback has the id" in dray("feedback", "accept", "5", code=1)
    answers = {row["question"]: row["answer"] for row in json.loads(dray("answers", "list", "--json"))}
    assert answers == {"question 3?": "right", "question 2?": "also right"}
    assert "accepted" in dray("feedback", "list")
    assert [row["id"] for row in json.loads(dray("feedback", "list", "--json"))] == ["4", "1", "3", "2"]
    rows = [json.loads(line) for line in dray("feedback", "export").splitlines()]
    told = {row["messages"][0]["content"]: (row["messages"][1]["content"], row.get("rejected")) for row in rows}
    assert told == {
        "question 1?": ("answer 1", None),
        "question 2?": ("also right", "answer 2"),
        "question 3?": ("right", "answer 3"),
        "question 4?": ("x", "answer 4"),
    }
    assert [entry["action"] for entry in log(tmp_path)] == ["feedback.accept"] * 2


def test_changes_of_teams_and_keys_are_in_the_audit_log(dray: Dray, store: Any, tmp_path: Path) -> None:
    dray("teams", "add", "support", "--tokens-per-minute", "100", "--model", "bot")
    dray("teams", "set", "support", "--weight", "2")
    key = json.loads(dray("keys", "create", "support", "--label", "bot", "--json"))
    new = json.loads(dray("keys", "rotate", key["id"], "--json"))
    dray("keys", "revoke", new["id"])
    dray("keys", "remove", new["id"])
    dray("teams", "remove", "support")
    dray("cache", "clear", "--namespace", NAMESPACE)
    entries = log(tmp_path)
    assert [(entry["action"], entry["target"]) for entry in entries] == [
        ("team.create", "support"),
        ("team.change", "support"),
        ("key.create", key["id"]),
        ("key.rotate", key["id"]),
        ("key.revoke", new["id"]),
        ("key.remove", new["id"]),
        ("team.remove", "support"),
        ("cache.clear", ""),
    ]
    assert entries[0]["details"]["quota.tokens_per_minute"] == 100 and entries[0]["details"]["models"] == ["bot"]
    assert entries[1]["details"]["weight"] == 2
    assert not any(secret in json.dumps(entries) for secret in (key["key"], new["key"]))


def test_a_log_that_cannot_be_written_undoes_nothing(dray: Dray, store: Any, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "d" / AUDIT_FOLDER).write_text("not a folder")
    assert "not in the audit log" in dray("teams", "add", "support")
    assert "support" in dray("teams", "list")


def test_a_user_is_forgotten_by_the_command(dray: Dray, store: Any, tmp_path: Path) -> None:
    ann, ben = user_tag("team.support", "ann"), user_tag("team.support", "ben")
    for digest, tag in (("a" * 40, ann), ("b" * 40, ben)):
        cached(store, digest, "VPN?", user=tag)
    voted(store, "1", 1, 0, users=(ann,))
    voted(store, "2", 1, 0, users=(ben,))
    done = json.loads(dray("forget", "ann", "--team", "support", "--json"))
    assert done == {"answers": 1, "responses": 0, "feedback": 1, "batch_lines": 0}
    assert "deleted 0 answers" in dray("forget", "ann", "--team", "support")
    assert "deleted 0 answers" in dray("forget", "ben")
    assert [row["id"] for row in json.loads(dray("feedback", "list", "--json"))] == ["2"]
    assert not store.exists(key_of("bot", NAMESPACE, "a" * 40)) and store.exists(key_of("bot", NAMESPACE, "b" * 40))
    assert [entry["target"] for entry in log(tmp_path)] == [ann, ann, user_tag("default", "ben")]


def test_a_command_that_cannot_reach_the_files_of_batches_says_so(
    dray: Dray, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster without the bucket's address, they would silently be left as they are."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(PRIVACY_KEYS, base64.b64encode(bytes(32)).decode())
    assert "0 lines of batches" in dray("forget", "ann")
    record = FileRecord("file-a", 3, 1, "a", "batch", 2**33)
    store.sadd(OWNERS, "default")
    store.hset(owner_key("files", "default"), "file-a", encode_file(record))
    cached(store, "a" * 40, "VPN?", user=user_tag("default", "ann"))
    for arguments in (("forget", "ann"), ("privacy", "reseal")):
        assert "DRAY_BATCHES__URL" in dray(*arguments, code=1)
    assert store.exists(key_of("bot", NAMESPACE, "a" * 40)), "nothing was deleted before"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    # Another machine's folder: the file is not here.
    assert "file-a" in dray("forget", "ann", code=1) and not store.exists(key_of("bot", NAMESPACE, "a" * 40))
    assert "file-a" in dray("privacy", "reseal", code=1)
