"""Curated answers in a real Redis, and the files that they are read from and written to."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.records import curated
from cluster.records.answer_files import jsonl, read_answers, unix_time
from cluster.records.curated import ANSWERS, CHANGES, MODELS, PUBLISH_MODELS, CuratedError, ListedAnswer, new_answer
from cluster.records.team_records import AlreadyExists, NotFound
from cluster.redis_client import connect
from tests.conftest import redis_server

NAMESPACE = "team.support"


@pytest.fixture(scope="module")
def redis_client() -> Iterator[Any]:
    with redis_server(64) as server, connect(server.url) as connected:
        yield connected


@pytest.fixture
def client(redis_client: Any) -> Any:
    redis_client.flushall()
    return redis_client


def texts(client: Any, namespace: str = "", search: str = "") -> list[tuple[str, str, str]]:
    found = curated.list_answers(client, namespace, search)
    return [(answer.namespace, answer.question, answer.answer) for answer in found]


def test_a_newer_answer_replaces_the_one_to_the_same_question(client: Any) -> None:
    for answer in ("port 443", "port 8443"):
        curated.put_answers(client, [new_answer(NAMESPACE, " VPN? ", answer), new_answer("default", "VPN?", "none")])
    assert texts(client) == [("default", "VPN?", "none"), (NAMESPACE, "VPN?", "port 8443")]
    assert texts(client, NAMESPACE) == texts(client, search="8443") == [(NAMESPACE, "VPN?", "port 8443")]
    assert texts(client, search="vpn") == texts(client)
    assert texts(client, search="8444") == []


def test_an_edited_question_gets_another_id_and_never_replaces_another_answer(client: Any) -> None:
    first, second = new_answer(NAMESPACE, "VPN?", "443", author="ann"), new_answer(NAMESPACE, "Wifi?", "guest")
    curated.put_answers(client, [first, second])
    edited = curated.edit_answer(client, first.id, {"answer": "8443", "author": "ben"})
    assert (edited.id, edited.question, edited.answer, edited.author) == (first.id, "VPN?", "8443", "ben")
    with pytest.raises(AlreadyExists, match=second.id):
        curated.edit_answer(client, first.id, {"question": "Wifi?"})
    moved = curated.edit_answer(client, first.id, {"question": "Which port has the VPN?"})
    assert moved.id != first.id
    assert [question for _, question, _ in texts(client)] == ["Which port has the VPN?", "Wifi?"]
    curated.remove_answer(client, moved.id)
    assert [question for _, question, _ in texts(client)] == ["Wifi?"]
    for number in (moved.id, "nonsense"):
        with pytest.raises(NotFound):
            curated.remove_answer(client, number)
        with pytest.raises(NotFound):
            curated.edit_answer(client, number, {"answer": "x"})


@pytest.mark.parametrize(
    ("limit", "largest", "message"),
    [
        ("MAX_ANSWERS", 3, "namespace a can have at most 3 curated answers"),
        ("MAX_BYTES", 1000, "namespace a can have at most 0 MiB"),
        ("MAX_ALL_ANSWERS", 4, "all namespaces together can have at most 4 curated answers"),
        ("MAX_ALL_BYTES", 1200, "all namespaces together can have at most 0 MiB"),
    ],
)
def test_numbers_and_bytes_are_limited_and_a_removal_makes_room(
    client: Any, monkeypatch: pytest.MonkeyPatch, limit: str, largest: int, message: str
) -> None:
    monkeypatch.setattr(curated, limit, largest)
    curated.put_answers(client, [new_answer("b", "other", "x")])
    kept = [new_answer("a", f"question {number}", "x" * 150) for number in range(3)]
    curated.put_answers(client, kept)
    curated.put_answers(client, kept)  # in their own places
    one_more = new_answer("a", "question 3", "x" * 400)
    with pytest.raises(CuratedError, match=message):
        curated.put_answers(client, [one_more])
    assert len(texts(client)) == 4
    for answer in kept[:2]:
        curated.remove_answer(client, answer.id)
    curated.put_answers(client, [one_more])
    assert len(texts(client, "a")) == 2


def test_removed_ids_are_forgotten_in_time(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curated, "_KEPT_REMOVALS", 5)
    for number in range(20):
        answer = new_answer("a", f"question {number}", "x")
        curated.put_answers(client, [answer])
        curated.remove_answer(client, answer.id)
    assert client.zcard(CHANGES) <= 6 and client.hlen(ANSWERS) == 0


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("", "x", "question must have 1 to 2,000"),
        ("  ", "x", "question must have"),
        ("q" * 2001, "x", "question must have"),
        ("q", "", "answer must have 1 to 32,000"),
        ("q", "x" * 32_001, "answer must have"),
    ],
)
def test_sizes_of_texts_are_limited(question: str, answer: str, reason: str) -> None:
    with pytest.raises(CuratedError, match=reason):
        new_answer("a", question, answer)


def publish(client: Any, now: float, **models: str) -> None:
    """What a router does that serves these models."""
    client.eval(PUBLISH_MODELS, 1, MODELS, str(now), *(part for served in models.items() for part in served))


def test_it_is_said_which_answers_were_made_for_an_older_model(client: Any) -> None:
    for_all, for_bot = new_answer("a", "VPN?", "443"), new_answer("a", "Wifi?", "guest", model="bot")
    curated.put_answers(client, [for_all, for_bot])
    now = time.time()

    def outdated() -> set[str]:
        served = curated.served_models(client)
        listed = [ListedAnswer.of(answer, served) for answer in curated.list_answers(client)]
        return {answer.question for answer in listed if answer.outdated}

    assert outdated() == set()
    publish(client, now + 10, bot="one", other="two")
    assert outdated() == set(), "the first that were ever served"
    publish(client, now + 10, bot="one", other="two")
    assert outdated() == set(), "another router serves the same"
    publish(client, now + 10, bot="three", other="two")
    assert outdated() == {"Wifi?"}, "what is for all is still for one that was not replaced"
    publish(client, now + 10, bot="three", another="four")
    assert outdated() == {"Wifi?", "VPN?"}, "none is served any more that was when it was made"
    publish(client, now + 20, bot="three", another="four")
    assert curated.served_models(client) == {"bot": pytest.approx(now + 10), "another": pytest.approx(now + 10)}
    publish(client, now - 1, bot="five", another="six")
    assert outdated() == set(), "somebody has looked at them since"
    publish(client, now - 1, another="six")
    assert outdated() == {"Wifi?"}, "its model is gone"


CSV = (
    "\ufeffQuestion,answer,Valid_Until,author\r\n"
    '"密码怎么重置?","打开""设置"",\r\n选择密码",2030-01-31,王\r\n'
    "VPN?,443,,\r\n"
    ",,,\r\n"
)


def test_a_spreadsheets_csv_is_read(tmp_path: Path) -> None:
    file = tmp_path / "faq.CSV"
    file.write_bytes(CSV.encode())
    first, second = read_answers(file, NAMESPACE, "ann")
    assert (first.question, first.answer, first.author) == ("密码怎么重置?", '打开"设置",\r\n选择密码', "王")
    assert first.valid_until == unix_time("2030-02-01T00:00:00Z") and first.is_valid(first.valid_until - 1)
    assert not first.is_valid(first.valid_until)
    assert (second.namespace, second.author, second.valid_until) == (NAMESPACE, "ann", 0)


def test_a_file_without_a_telling_name_is_read_by_its_content(tmp_path: Path) -> None:
    for content in (CSV, GOOD):
        (tmp_path / "stdin").write_bytes(content.encode())
        assert read_answers(tmp_path / "stdin", "a", "ann")[0].question in ("密码怎么重置?", "a")


def test_what_is_exported_is_imported_again(client: Any, tmp_path: Path) -> None:
    until = unix_time("2030-01-01T12:00:00+08:00")
    answers = [
        new_answer("a", "密码?", "一\n二,三", author="王", valid_until=until),
        new_answer(NAMESPACE, "VPN?", 'port "443"', model="bot", author="ann"),
    ]
    curated.put_answers(client, answers)
    (tmp_path / "answers.jsonl").write_text(jsonl(curated.list_answers(client)), encoding="utf-8")
    again = read_answers(tmp_path / "answers.jsonl", "elsewhere", "somebody")
    assert [(a.id, a.answer, a.author, a.valid_until) for a in again] == [
        (a.id, a.answer, a.author, a.valid_until) for a in answers
    ]


GOOD = json.dumps({"question": "a", "answer": "b"})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("f.jsonl", f'{GOOD}\n\n{{"question": "a"}}', "line 3: answer must have"),
        ("f.jsonl", f"{GOOD}\n[1]", "line 2: not a JSON object"),
        ("f.jsonl", f"{GOOD}\n{'[' * 100_000}", "line 2: not a JSON object"),
        ("f.jsonl", '{"question": "a", "answer": 5}', "line 1: answer must be a text"),
        ("f.jsonl", '{"question": "a", "answers": "b"}', "line 1: unknown field 'answers'"),
        ("f.jsonl", '{"question": "a", "answer": "b", "valid-until": "soon"}', "line 1: valid-until 'soon'"),
        ("f.csv", "question,answer\na,b\nc,d,e\n", "line 3: it has more fields"),
        ("f.csv", 'question,answer\na,b\nc,"d', "line 3: unexpected end of data"),
        ("f.csv", "frage,antwort\na,b\n", "line 2: unknown field 'frage'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CuratedError, match=reason):
        read_answers(tmp_path / name, "a", "ann")


def test_a_file_in_another_encoding_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes("question,answer\n密码?,好".encode("gbk"))
    with pytest.raises(CuratedError, match="save it as CSV UTF-8"):
        read_answers(tmp_path / "f.csv", "a", "ann")
