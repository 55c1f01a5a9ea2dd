"""What the console reports: usage and budgets, requests, errors, models; and the commands that say the same."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the console needs the extra `page`")

from cluster.records.activity import (
    KEYS,
    PUBLISH,
    Latency,
    ModelState,
    ReplicaState,
    RouterActivity,
    ScalingChange,
    pack_activity,
)
from cluster.records.team_records import Quota
from cluster.records.teams import change_team, create_key
from cluster.reports.budgets import Budget
from deployments.pages.console.usage import Usage, warnings
from tests.conftest import MODEL
from tests.deployments.api.test_curated import GENERATED, QUESTION, servers
from tests.deployments.pages.consoles import ENGLISH, REQUEST, Open, Servers, command, heads, may_ask, opened, tables
from tests.deployments.waiting import until

__all__ = ["servers"]


def report_of_another_router(store: Any) -> ScalingChange:
    """Puts a router's report beside that of the test's own, as it does itself. Returns the change by autoscaling."""
    now = time.time()
    change = ScalingChange(now - 60, MODEL, 1, 2, "load", 1234.0, 5.0, 2.0, 1, 4)
    model = ModelState(MODEL, "generate", 4096, 3, [ReplicaState("other#1", "4,5", 2, 81.6, 0.95, 1)])
    latencies: dict[str, list[Latency]] = {MODEL: [(0.5, 0.02)] * 500}
    report = RouterActivity("other", now, [], [], [model], latencies, [change], "another cluster")
    store.eval(PUBLISH, len(KEYS), *KEYS, now, "other", pack_activity(report))
    return change


def test_usage_is_summed_up_with_what_the_cache_saved(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(console: Open) -> None:
        usage, bot = console.section("usage"), console.bot
        assert isinstance(usage, Usage)
        key = create_key(bot.store, "support").secret
        change_team(bot.store, "support", quota=Quota(tokens_per_month=10**9), cost_per_month=1000.0)
        await until(lambda: may_ask(bot, key))
        for _ in range(3):
            await bot.chat(key=key)

        async def shown() -> Any:
            updates = await usage.show(console.key, 30, "team", "requests_count", REQUEST)
            rows = tables(updates[usage.details])[ENGLISH["usage_table"]]
            return updates if rows and rows[0][2] == 3 else None

        updates = await until(shown)
        details = tables(updates[usage.details])
        [team, model, requests, hits, *_] = details[ENGLISH["usage_table"]][0]
        assert (team, model, requests, hits) == ("support", MODEL, 3, 2)
        assert details[ENGLISH["usage_table"]][0][-1] > 0, "what the cache saved has a price"
        [budget] = details[ENGLISH["budgets"]]
        assert budget[0] == "support" and budget[2] == 10**9
        figures = {one["name"]: one["value"] for one in json.loads(updates[usage.sums])["figures"]}
        assert figures["answered from the cache"]["text"] == "67 %" and figures["requests"]["number"] == 3
        plot, legend = usage.by_day.outputs
        data = updates[plot]["value"]["data"]
        assert len(data) == 30 and data[-1][1:] == ["support", 3.0] and {row[2] for row in data[:-1]} == {0.0}
        assert [entry["name"] for entry in json.loads(updates[legend])["legend"]] == ["support"]
        prompt, completion, saved, cost, saved_cost = details[ENGLISH["usage_table"]][0][4:]
        computed = prompt + completion
        chart = updates[usage.savings.outputs[0]]["value"]["data"]
        today = {row[1]: row[2] for row in chart[-2:]}
        assert len(chart) == 60 and today == {ENGLISH["computed"]: computed, ENGLISH["from_cache"]: saved}
        assert saved == 2 * computed, "of three answers, one was computed"
        weeks = await usage.show(console.key, 90, "model", "saved_count", REQUEST)
        assert len(weeks[plot]["value"]["data"]) in (13, 14)
        assert weeks[plot]["value"]["data"][-1][1:] == [MODEL, saved]
        spent = await usage.show(console.key, 7, "team", "cost_count", REQUEST)
        assert spent[plot]["value"]["data"][-1][1:] == ["support", cost] and cost > 0
        assert figures[ENGLISH["cost_all"].format(currency="USD")]["number"] == cost
        assert figures[ENGLISH["cost_saved"].format(currency="USD")]["number"] == saved_cost > 0

        change_team(bot.store, "support", quota=Quota(tokens_per_month=int(computed / 0.85)))

        async def warned() -> Any:
            updates = await usage.show(console.key, 7, "team", "tokens_count", REQUEST)
            return json.loads(updates[usage.sums]).get("notices") and updates

        updates = await until(warned)
        used = round(100 * computed / int(computed / 0.85))
        assert json.loads(updates[usage.sums])["notices"] == [
            {"text": ENGLISH["budget_warning"].format(team="support", used=used)}
        ]
        [budget] = tables(updates[usage.details])[ENGLISH["budgets"]]
        listed = (await command(servers, "teams", "budgets", DRAY_PRICES__MODELS=json.dumps(prices["models"])))["data"]
        assert [(one["team"], one["tokens"], one["state"]) for one in listed] == [("support", computed, "warning")]
        assert listed[0]["used"] == pytest.approx(budget[5])

        requests = console.section("requests")
        table = (await requests.show(console.key, "", None, False, REQUEST))[requests.table]
        assert ENGLISH["question"] not in heads(table, ENGLISH["requests"]), "no text, unless the settings allow it"

    prices = {"models": [{"model": MODEL, "input": 1000, "output": 2000}]}
    opened(servers, monkeypatch, tmp_path, work, prices=prices)


def test_a_team_that_has_used_most_of_its_budget_is_warned_of() -> None:
    budgets = [
        Budget("a", "2026-11", 79, 100, None, 0.0, 0.79, "ok"),
        Budget("b", "2026-11", 80, 100, None, 0.0, 0.8, "warning"),
        Budget("c", "2026-11", 1, 0, 12.0, 10.0, 1.2, "exceeded"),
    ]
    notices = [(one.text, one.tone) for one in warnings(budgets, ENGLISH)]
    assert notices == [
        ("b has used 80 % of its budget of this month.", "warn"),
        ("c has used 120 % of its budget of this month.", "bad"),
    ]


def test_requests_errors_and_models_are_listed(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(console: Open) -> None:
        bot, key = console.bot, console.key
        team = create_key(bot.store, "support").secret
        await until(lambda: may_ask(bot, team))
        await bot.chat(key=team)
        refused = await bot.client.post("/v1/chat/completions", json={}, headers={"Authorization": f"Bearer {team}"})
        requests, errors, models = (console.section(name) for name in ("requests", "errors", "models"))

        async def listed(errors_only: bool = False) -> Any:
            updates = await requests.show(key, "support", None, errors_only, REQUEST)
            return tables(updates[requests.table])[ENGLISH["requests"]]

        rows = await until(lambda: listed(errors_only=False))
        assert any(row[2] == "support" and row[5].startswith("200") for row in rows)
        assert [QUESTION, GENERATED] in [row[11:] for row in rows], "as admin.request_texts_s allows"
        [failed] = await until(lambda: listed(errors_only=True))
        assert failed[5].startswith(str(refused.status_code))

        async def wrong() -> Any:
            return tables((await errors.show(key, REQUEST))[errors.table])[ENGLISH["errors_table"]]

        [error] = [row for row in await until(wrong) if row[2] == "support"]
        [told] = [one for one in await command(servers, "errors") if one["team"] == "support"]
        assert [told[name] for name in ("code", "model", "count")] == [error[1], error[3], error[4]]
        assert told["advice"].replace("`", "") == error[6] != ""
        known = {row[1] for row in await listed()}
        assert {one["id"] for one in await command(servers, "requests", "--team", "support")} == known

        async def served() -> Any:
            shown = tables((await models.show(key, REQUEST))[models.tables])
            return shown if shown[ENGLISH["models"]] else None

        assert (await until(served))[ENGLISH["models"]][0][:2] == [MODEL, ENGLISH["task_generate"]]
        change = report_of_another_router(bot.store)
        shown = await served()
        [model] = shown[ENGLISH["models"]]
        first, each = "500\u00a0ms / 500\u00a0ms / 500\u00a0ms", "20\u00a0ms / 20\u00a0ms / 20\u00a0ms"
        assert model[3:] == [len(shown[ENGLISH["replicas_table"]]), 3, first, each]
        assert [MODEL, "other#1", "4, 5", 2, 82, 0.95, 1] in shown[ENGLISH["replicas_table"]]
        why = [change.time, MODEL, "1 → 2", 1234, "5.00\u00a0s", "2.00\u00a0s", ENGLISH["scaled_load"]]
        assert shown[ENGLISH["decisions"]] == [why]
        [reported] = await command(servers, "models", "replicas")
        assert (reported["waiting"], reported["first_token_s"]["p99"]) == (3, 0.5)
        assert reported["changes"][0]["after"] == 2

    opened(servers, monkeypatch, tmp_path, work, admin={"request_texts_s": 600})
