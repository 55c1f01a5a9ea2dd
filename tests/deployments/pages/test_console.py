"""The console's handlers with a real router and a real Redis behind them. Its browser's part: tests/browser."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the console needs the extra `page`")

from cluster.records.curated import list_answers
from cluster.records.team_records import ADMIN
from cluster.records.teams import create_key, read_registry
from cluster.reports.activity import ShownError
from cluster.reports.advice import _BY_CODE, _BY_STATUS, advice
from deployments.pages.client import ApiRefused, ServerUnreachable
from deployments.pages.console import words as console_words
from deployments.pages.console.admin import AdminClient, Failed
from deployments.pages.console.advice import advice as shown_advice
from deployments.pages.console.answers import Answers
from deployments.pages.console.page import Console
from deployments.pages.console.teams import Teams
from deployments.pages.console.words import TEXTS, WORDS
from deployments.pages.i18n import ENGLISH_LABELS
from tests.cluster.streams import serving
from tests.conftest import MODEL
from tests.deployments.api.test_curated import GENERATED, QUESTION, Bot, run, servers
from tests.deployments.api.test_feedback import voted
from tests.deployments.pages.consoles import (
    CHINESE_REQUEST,
    ENGLISH,
    REQUEST,
    Open,
    Servers,
    audited,
    click,
    may_ask,
    opened,
    tables,
)
from tests.deployments.waiting import until

__all__ = ["servers"]

FOLDER = Path(console_words.__file__).parent


def test_only_an_admin_key_opens_it(servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work(console: Open) -> None:
        login = console.page.login
        team = create_key(console.bot.store, "support").secret

        async def notices(key: str) -> list[str]:
            state, board, kept = await login.sign_in(key, REQUEST)
            assert state == "out" and kept == key
            return [notice["text"] for notice in json.loads(board)["notices"]]

        for wrong in ("dray-wrong", console.key[:-1], "ключ", "a\nb", console.key + "\r\nx: y"):
            assert (await notices(wrong))[0] == ENGLISH["key_refused"], wrong
        assert await notices("") == [ENGLISH["key_missing"], ENGLISH["how_to_create"]]
        while (told := (await notices(team))[0]) == ENGLISH["key_refused"]:  # until the router has read the key
            pass
        assert told == ENGLISH["not_admin"]
        assert await login.restore(f" {console.key}\n", REQUEST) == ("in", "", console.key)
        state, _, kept = await login.restore("dray-old", REQUEST)
        assert (state, kept) == ("out", ""), "what the browser kept and is no longer good goes"
        with pytest.raises(Failed, match=re.escape(ENGLISH["not_admin"])):
            await console.section("teams").act(team, click("open"), REQUEST)

    opened(servers, monkeypatch, tmp_path, work)


def test_without_any_key_it_says_how_to_begin(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        client = AdminClient(f"{bot.running.url}/v1")
        state, board, _ = await Console(client).login.restore("", REQUEST)
        await client._http.aclose()
        [notice] = json.loads(board)["notices"]
        assert (state, notice["text"], notice["code"]) == ("out", ENGLISH["keyless"], "dray keys create --admin")

    run(servers, monkeypatch, tmp_path, work)


def test_teams_are_made_changed_and_deleted_with_the_persons_own_key(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(console: Open) -> None:
        teams, store = console.section("teams"), console.bot.store
        assert isinstance(teams, Teams)
        made = await teams.store(console.key, REQUEST, "", " hotline ", [MODEL], 2.0, True, 9.5, 60, None, 0, 5_000)
        [hotline, support] = tables(made[teams.table])["Teams"]
        assert hotline[:8] == ["hotline", MODEL, 2.0, 60, "unlimited", "unlimited", 5_000, 9.5]
        assert support[0] == "support"
        assert read_registry(store).teams["hotline"].shares_answers
        with pytest.raises(Failed, match="Team hotline already exists"):
            await teams.store(console.key, REQUEST, "", "hotline", [], 1.0, False, 0, 0, 0, 0, 0)
        for name, reason in (("hotline", "已经存在"), ("a b", "操作失败：")):
            with pytest.raises(Failed, match=reason):
                await teams.store(console.key, CHINESE_REQUEST, "", name, [], 1.0, False, 0, 0, 0, 0, 0)
        with pytest.raises(Failed, match="它已不存在"):
            await teams.act(console.key, click("edit", "nobody"), CHINESE_REQUEST)
        filled = await teams.act(console.key, click("edit", "hotline"), REQUEST)
        assert (filled[teams.chosen], filled[teams.models], filled[teams.weight]) == ("hotline", [MODEL], 2.0)
        assert [filled[field] for field in teams.limits] == [60, 0, 0, 5_000]
        await teams.store(console.key, REQUEST, "hotline", "hotline", [], 1.5, False, 0, 0, 0, 3, 0)
        changed = read_registry(store).teams["hotline"]
        assert (changed.models, changed.weight, changed.quota.requests_at_a_time) == ((), 1.5, 3)
        left = await teams.act(console.key, click("delete", "hotline"), REQUEST)
        assert [row[0] for row in tables(left[teams.table])["Teams"]] == ["support"]
        entries = audited(tmp_path)
        assert {entry["actor"] for entry in entries} == {f"key:{console.key.split('-')[1]}"}
        assert entries[0]["action"] == "console.login"
        actions = [(entry["action"], entry["target"]) for entry in entries if entry["action"] != "console.login"]
        assert actions == [(f"team.{action}", "hotline") for action in ("create", "change", "remove")]

    opened(servers, monkeypatch, tmp_path, work)


def test_a_new_key_is_shown_once_rotated_and_revoked(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(console: Open) -> None:
        keys, store = console.section("teams")._keys, console.bot.store
        with pytest.raises(Failed, match=re.escape(ENGLISH["team_missing"])):
            await keys.create(console.key, None, "", 0, REQUEST)
        made = await keys.create(console.key, "support", "bot", 30, REQUEST)
        secret, number = made[keys.secret], made[keys.secret].split("-")[1]
        assert secret not in made[keys.table] and number in made[keys.table]
        key = read_registry(store).keys[number]
        assert (key.team, key.label) == ("support", "bot")
        assert 29 < (key.ends - time.time()) / 86_400 <= 30
        rotated = await keys.act(console.key, click("rotate", number), REQUEST)
        assert rotated[keys.secret] != secret and rotated[keys.secret].startswith("dray-")
        assert read_registry(store).keys[number].replaced_by == rotated[keys.secret].split("-")[1]
        revoked = await keys.act(console.key, click("revoke", number), REQUEST)
        assert keys.secret not in revoked
        assert not read_registry(store).keys[number].is_valid(time.time())
        made = await keys.create(console.key, "*", "", 0, REQUEST)
        assert read_registry(store).keys[made[keys.secret].split("-")[1]].team == ADMIN

    opened(servers, monkeypatch, tmp_path, work)


def test_answers_are_found_pinned_corrected_and_deleted(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(console: Open) -> None:
        answers, bot, key = console.section("answers"), console.bot, console.key
        assert isinstance(answers, Answers)
        team = create_key(bot.store, "support").secret
        await until(lambda: may_ask(bot, team))
        first = await bot.chat(key=team)
        await bot.chat("What is the VAT rate?", key=team)
        await voted(bot, id=first.json()["id"], key=team, reason="old", correction="Ask Ann.")

        async def found() -> Any:
            listed = await answers.vote(key, "", "", click("open"), REQUEST)
            return listed if len(tables(listed[answers.cached])[ENGLISH["cached"]]) == 2 else None

        listed = await until(found)
        [vote] = json.loads(listed[answers.votes])["tables"][0]["rows"]
        assert vote["cells"][0]["text"] == QUESTION and vote["actions"][0]["action"] == "correct"
        corrected = await answers.vote(key, "", "", click("correct", vote["id"]), REQUEST)
        assert corrected[answers.answer] == "Ask Ann." and corrected[answers.question]["value"] == QUESTION
        about = corrected[answers.about]
        with pytest.raises(Failed, match=re.escape(ENGLISH["answer_missing"])):
            await answers.store(key, "", about, QUESTION, " ", None, REQUEST)
        saved = await answers.store(key, "", about, QUESTION, "Ask Ann.", None, REQUEST)
        assert tables(saved[answers.votes])[ENGLISH["voted_down"]] == []
        assert audited(tmp_path)[-1]["action"] == "feedback.accept"
        [curated] = list_answers(bot.store)
        assert (curated.namespace, curated.question, curated.answer) == ("team.support", QUESTION, "Ask Ann.")

        search = await answers.find(key, "vat", REQUEST)
        [row] = json.loads(search[answers.cached])["tables"][0]["rows"]
        assert row["cells"][3]["text"] == "support", "the team, not its namespace"
        seen = await answers.cache(key, "vat", "", click("see", row["id"]), REQUEST)
        assert ["Answer", GENERATED] in tables(seen[answers.seen])[ENGLISH["cached_answer"]]
        await answers.cache(key, "", "", click("pin", row["id"]), REQUEST)
        assert {one.answer for one in list_answers(bot.store)} == {"Ask Ann.", GENERATED}
        opened_form = await answers.cache(key, "", "", click("correct", row["id"]), REQUEST)
        await answers.store(key, "", opened_form[answers.about], "What is the VAT rate?", "19 %", None, REQUEST)
        assert {one.answer for one in list_answers(bot.store)} == {"Ask Ann.", "19 %"}
        gone = await answers.cache(key, "vat", "", click("delete", row["id"]), REQUEST)
        assert tables(gone[answers.cached])[ENGLISH["cached"]] == []

        await answers.store(key, "", "", "Who pays?", "The company.", "team.support", REQUEST)
        [added] = list_answers(bot.store, search="who pays")
        edited = await answers.curate(key, "", "", click("edit", added.id), REQUEST)
        await answers.store(key, "", edited[answers.about], "Who pays?", "We do.", None, REQUEST)
        left = await answers.curate(key, "", "", click("delete", curated.id), REQUEST)
        assert {(row[1], row[2]) for row in tables(left[answers.curated])[ENGLISH["curated"]]} == {
            ("19 %", "support"),
            ("We do.", "support"),
        }

    opened(servers, monkeypatch, tmp_path, work)


def test_batches_show_how_far_they_are_and_are_cancelled(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(console: Open) -> None:
        bot, key, section = console.bot, console.key, console.section("batches")
        headers = {"Authorization": f"Bearer {create_key(bot.store, 'support').secret}"}
        await until(lambda: may_ask(bot, headers["Authorization"].removeprefix("Bearer ")))

        async def rows(action: str = "open", of: str = "") -> Any:
            return tables((await section.act(key, click(action, of), REQUEST))[section.table])[ENGLISH["batches"]]

        async def submitted(lines: list[str]) -> str:
            files = {"file": ("in.jsonl", "\n".join(lines).encode())}
            uploaded = await bot.client.post("/v1/files", files=files, data={"purpose": "batch"}, headers=headers)
            body = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/chat/completions"}
            made = await bot.client.post("/v1/batches", json=body | {"completion_window": "24h"}, headers=headers)
            return str(made.json()["id"])

        assert await rows() == []
        question = {"model": MODEL, "messages": [{"role": "user", "content": "1 + 1?"}], "max_tokens": 20}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": question}
        batch = await submitted([json.dumps(line)])

        async def answered() -> Any:
            [row] = await rows()
            return row if row[4] == ENGLISH["batch_is_completed"] else None

        row = await until(answered)
        assert (row[1], row[2], row[3], row[6], row[7]) == (batch, "support", "chat/completions", 1, 0)
        with pytest.raises(Failed):
            await rows("cancel", batch)
        bot.running.engines.blocked = asyncio.Event()
        other = await submitted([json.dumps(line | {"body": question | {"temperature": 0.9}})])
        await until(lambda: bot.running.engines.requests > 1)
        assert "cancel" in {shown[1]: shown[4] for shown in await rows("cancel", other)}[other]
        bot.running.engines.blocked.set()

    opened(servers, monkeypatch, tmp_path, work)


def test_what_goes_wrong_is_said_and_a_proxys_page_is_no_answer() -> None:
    async def asked(url: str) -> None:
        await AdminClient(url).call("POST", "/admin/teams", dict[str, Any], {}, {})

    for body, status, error in (
        (b'{"error":{"message":"no","code":"x"}}', 409, ApiRefused),
        (b"<html>bad gateway</html>", 502, ServerUnreachable),
        (b"no json", 200, ServerUnreachable),
    ):
        with serving(body, status=status) as url, pytest.raises(error):
            asyncio.run(asked(url))
    with pytest.raises(ServerUnreachable):
        asyncio.run(asked("http://127.0.0.1:1/v1"))


@pytest.mark.parametrize("code", [*_BY_CODE, ""])
def test_chinese_readers_are_told_in_chinese_what_to_do_about_errors(code: str) -> None:
    for status in (*_BY_STATUS, 418, 500, 599):
        error = ShownError(status, code, "support", MODEL, 1, 0.0, advice(status, code))
        assert shown_advice(error, ENGLISH) == error.advice.replace("`", "")
        told = shown_advice(error, WORDS["zh"])
        assert told.endswith("。") and "`" not in told


def test_every_text_is_used_and_has_the_same_fields_in_both_languages() -> None:
    sources = [file.read_text() for file in (*FOLDER.glob("*.py"), *FOLDER.glob("*.js")) if file.name != "words.py"]
    code = "\n".join(sources)
    prefixes = tuple(re.findall(r'f"(\w+_)\{', code))
    named = {name for name in TEXTS if re.search(rf'"{name}"|\btext\.{name}\b', code)}
    unused = {name for name in TEXTS.keys() - named if not name.startswith(prefixes)}
    # Sections are named after their texts.
    assert unused <= {section.name for section in Console(AdminClient("http://127.0.0.1:1/v1")).sections}
    used = set(re.findall(r'(?:words\[|label\()"(\w+)"', code)) | set(re.findall(r"\btext\.(\w+)", code))
    assert used <= TEXTS.keys() | set(ENGLISH_LABELS.__slots__)
    for name, (english, chinese) in TEXTS.items():
        assert sorted(re.findall(r"\{(\w+)\}", english)) == sorted(re.findall(r"\{(\w+)\}", chinese)), name
        assert english and chinese and english[0] not in "。，", name
