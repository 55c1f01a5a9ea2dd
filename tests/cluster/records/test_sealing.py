"""Encryption of values in Redis: wrong keys, another place, one changed byte, and keys that change."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.records import curated, feedback, sealing
from cluster.records.cache import pack, unpack
from cluster.records.curated import ANSWERS, list_answers, new_answer, put_answers
from cluster.records.feedback import ADD, COUNTS, KEYS, RECORDS, Feedback, arguments_of, keys_of, list_feedback
from cluster.records.privacy import CHECK, Resealed, check_keys, reseal
from cluster.records.sealing import SealingError, Unreadable, seal, unseal, unseal_record
from cluster.redis_client import connect
from cluster.settings import PRIVACY_KEYS
from tests.conftest import redis_server

FIRST, SECOND = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
TEXT = "Where is the vault? " * 50
"""Long enough to be compressed."""


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server(32) as own:
        yield own.url


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with connect(redis_url) as store:
        store.flushall()
        yield store


def test_a_value_is_read_at_its_place_with_its_key_and_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)
    for body in (b"", b"short", TEXT.encode()):
        stored = pack(body, "a place")
        assert unpack(stored, "a place") == body
        assert unpack(stored, "another place") is None
        assert not body or body not in stored
        for byte in (0, 5, 10, 20, 35, 45, len(stored) - 1):
            changed = bytearray(stored)
            changed[byte] ^= 1
            assert unpack(bytes(changed), "a place") is None
        assert [unpack(stored[:length], "a place") for length in range(len(stored))] == [None] * len(stored)
    monkeypatch.setenv(PRIVACY_KEYS, SECOND)
    assert unpack(stored, "a place") is None
    monkeypatch.setenv(PRIVACY_KEYS, f"{SECOND}, {FIRST}")
    assert unpack(stored, "a place") == TEXT.encode()
    monkeypatch.delenv(PRIVACY_KEYS)
    assert unpack(stored, "a place") is None


def test_no_two_values_are_encrypted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)
    monkeypatch.setattr(sealing, "_MAX_VALUES", 3)
    own = sealing.Vault((base64.b64decode(FIRST),))
    stored = [own.seal(b"the same", "here") for _ in range(10)]
    heads = [value[len(sealing.MARK) + 4 :][:28] for value in stored]
    assert len(set(stored)) == 10 and len({head[16:] for head in heads}) == 10
    assert len({head[:16] for head in heads}) == 4, "another salt after every third value"
    assert {unseal(value, "here") for value in stored} == {b"the same"}


def test_off_nothing_changes_and_no_library_is_loaded() -> None:
    code = """
import sys
from cluster.records.cache import pack, unpack
from cluster.records.sealing import seal, unseal
assert unpack(pack(b"body", "key"), "key") == b"body" and pack(b"body", "key") == b"\\x04pbody"
assert seal(b"text", "place") == unseal(b"text", "place") == b"text"
assert "cryptography" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != PRIVACY_KEYS}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_what_is_not_encrypted_counts_only_among_lasting_records(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pack(b"body", "key")
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)
    assert unpack(plain, "key") is None, "whoever writes into Redis must not be able to forge an answer"
    assert unseal_record(b"{}", "key") == b"{}"


@pytest.mark.parametrize(
    "keys",
    ["x", FIRST[:-4], f"{FIRST},", f"{FIRST},?", "passwort", "密钥"],
    ids=["too short", "cut", "empty second", "bad second", "word", "chinese"],
)
def test_malformed_keys_are_refused(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, keys)
    with pytest.raises(SealingError, match="openssl rand -base64 32") as refused:
        seal(b"body", "key")
    assert keys not in str(refused.value)


def voted(client: Any, number: str) -> None:
    record = Feedback(number, "support", "team.support", "bot", "Where?", "There.", float(number), key=f"key {number}")
    client.eval(ADD, 5, *keys_of("support"), *arguments_of(record, "down"))


def test_the_oldest_feedback_goes_with_its_key_although_it_is_encrypted(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)
    monkeypatch.setattr(feedback, "MAX_PER_TEAM", 2)
    for number in ("1", "2", "3"):
        voted(client, number)
    assert {one.id for one in list_feedback(client)} == {"2", "3"}
    assert set(client.hkeys(KEYS)) == {b"key 2", b"key 3"} and client.hlen(COUNTS) == 2
    feedback.remove_feedback(client, "2")
    assert [one.id for one in list_feedback(client)] == ["3"] and client.hkeys(KEYS) == [b"key 3"]


def test_keys_are_turned_on_changed_and_turned_off(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def texts() -> bytes:
        return b"".join([*client.hgetall(ANSWERS).values(), *client.hgetall(RECORDS).values()])

    def known() -> tuple[list[str], list[str]]:
        return [one.answer for one in list_answers(client, search="wi")], [one.answer for one in list_feedback(client)]

    answer = new_answer("team.support", "Wifi?", "Ask Ben.")
    put_answers(client, [answer])
    voted(client, "1")
    expected = known()
    assert expected == (["Ask Ben."], ["There."]) and check_keys(client) == ""

    monkeypatch.setenv(PRIVACY_KEYS, FIRST)
    assert check_keys(client, renew=True) == "" and known() == expected and b"Ask Ben" in texts()
    assert reseal(client) == Resealed(1, 1)
    assert known() == expected and b"Ask Ben" not in texts() and b"There" not in texts()

    monkeypatch.setenv(PRIVACY_KEYS, SECOND)
    assert "add that one too" in check_keys(client, renew=True)
    assert known() == ([], [])
    for work in (
        lambda: reseal(client),
        lambda: curated.read_answer(client, answer.id),
        lambda: curated.edit_answer(client, answer.id, {"answer": "?"}),
        lambda: feedback.accept(client, "1", "ann", "?"),
    ):
        with pytest.raises(Unreadable, match=PRIVACY_KEYS):
            work()
    monkeypatch.setenv(PRIVACY_KEYS, f"{SECOND},{FIRST}")
    assert check_keys(client, renew=True) == "" and known() == expected
    assert reseal(client) == Resealed(1, 1)
    monkeypatch.setenv(PRIVACY_KEYS, SECOND)
    assert check_keys(client) == "" and known() == expected

    curated.edit_answer(client, answer.id, {"answer": "Ask Ann, wi"})
    assert known()[0] == ["Ask Ann, wi"] and b"Ask Ann" not in texts()
    assert reseal(client, plain=True) == Resealed(1, 1)
    monkeypatch.delenv(PRIVACY_KEYS)
    assert check_keys(client) == "" and known()[0] == ["Ask Ann, wi"] and not client.exists(CHECK)


def test_a_process_without_keys_says_that_it_lacks_them(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)
    assert check_keys(client, renew=True) == ""
    monkeypatch.delenv(PRIVACY_KEYS)
    assert f"{PRIVACY_KEYS} is not set" in check_keys(client)
