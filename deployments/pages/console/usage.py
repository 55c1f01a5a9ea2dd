"""Usage: charts and sums of what teams asked, and what the answer cache saved of it."""

import datetime

import gradio as gr

from cluster.reports.budgets import Budget
from cluster.reports.usage import UsageSum
from deployments.api.protocol.console import BudgetsResponse, UsageReportResponse
from deployments.pages.console.admin import path_of
from deployments.pages.console.charts import Bars
from deployments.pages.console.section import Events, Updates, board, choice
from deployments.pages.console.tables import Board, Cell, Figure, Notice, Row, Table, money, number, share, text
from deployments.pages.console.words import Words, label

_PERIODS = (7, 30, 90)
_MEASURES = ("tokens_count", "requests_count", "saved_count", "cost_count")


class Usage:
    """The section for usage and budgets."""

    name = "usage"

    def __init__(self, events: Events) -> None:
        self._events = events

    def build(self) -> None:
        """Adds its components."""
        with gr.Row():
            self.period = choice("period", [(label(f"days_{days}"), days) for days in _PERIODS], 30)
            self.group = choice("group", [(label(name), name) for name in ("team", "model")], "team")
            self.measure = choice("measure", [(label(name), name) for name in _MEASURES], _MEASURES[0], 260)
        self.sums = board(self.name)
        self.by_day = Bars(label("by_day"))
        self.savings = Bars(label("savings"))
        self.details = board()

    def listen(self) -> None:
        """Sets their events."""
        chosen = [self.period, self.group, self.measure]
        outputs = [self.sums, *self.by_day.outputs, *self.savings.outputs, self.details]
        self._events.on([self.sums.click, *(field.input for field in chosen)], self.show, chosen, outputs)

    async def show(self, key: str, days: int, group: str, measure: str, request: gr.Request) -> Updates:
        """What was used in these last days."""
        admin = self._events.login.admin(key, request)
        report = await admin.get(path_of("usage"), UsageReportResponse, days=days)
        words, rows, all_days = admin.words, report.data, _days(days)
        values = [(row.day, getattr(row, group) or "–", _value(row, measure)) for row in rows]
        saved = [(row.day, words["computed"], row.prompt + row.completion) for row in rows]
        saved += [(row.day, words["from_cache"], row.saved_prompt + row.saved_completion) for row in rows]
        budgets = await admin.get(path_of("budgets"), BudgetsResponse)
        by_team = await admin.get(path_of("usage"), UsageReportResponse, days=days, by="team,model")
        details = [_budgets(budgets, words), _table(by_team.data, words)]
        return {
            self.sums: Board(warnings(budgets.data, words), _figures(report.total, report.currency, words)).json(),
            **self.by_day.shown(values, all_days),
            **self.savings.shown(saved, all_days),
            self.details: Board(tables=details).json(),
        }


def _value(row: UsageSum, measure: str) -> float:
    return {
        "requests_count": row.requests,
        "tokens_count": row.prompt + row.completion,
        "saved_count": row.saved_prompt + row.saved_completion,
        "cost_count": row.cost or 0.0,
    }[measure]


def _figures(total: UsageSum, currency: str, words: Words) -> list[Figure]:
    hits = text(f"{100 * total.hits / total.requests:.0f} %") if total.requests else text("–")
    figures = [
        Figure(words["requests_all"], number(total.requests)),
        Figure(words["hits_share"], hits),
        Figure(words["tokens_all"], number(total.prompt + total.completion)),
        Figure(words["tokens_saved"], number(total.saved_prompt + total.saved_completion, "good")),
    ]
    if total.cost is not None:
        figures.append(Figure(words["cost_all"].format(currency=currency), money(total.cost)))
        figures.append(Figure(words["cost_saved"].format(currency=currency), money(total.saved_cost, "good")))
    return figures


def _table(rows: list[UsageSum], words: Words) -> Table:
    head = ["team", "model", "requests_count", "from_cache", "prompt_tokens", "completion_tokens", "saved_tokens"]
    priced = any(row.cost is not None for row in rows)
    return Table(
        words["usage_table"],
        [words[name] for name in (*head, *(("cost", "saved_cost") if priced else ()))],
        [Row(_cells(row, priced=priced)) for row in rows],
        words["no_usage"],
    )


def _cells(row: UsageSum, *, priced: bool) -> list[Cell]:
    counts = (row.requests, row.hits, row.prompt, row.completion, row.saved_prompt + row.saved_completion)
    amounts = (row.cost, row.saved_cost) if priced else ()
    return [text(row.team), text(row.model), *map(number, counts), *map(money, amounts)]


def warnings(budgets: list[Budget], words: Words) -> list[Notice]:
    """A sentence for each team that has used most of its budget."""
    tones = {"warning": "warn", "exceeded": "bad"}
    return [
        Notice(words["budget_warning"].format(team=one.team, used=round(100 * one.used)), tones[one.state])
        for one in budgets
        if one.state in tones
    ]


def _budgets(budgets: BudgetsResponse, words: Words) -> Table:
    # Where nothing has a price, money would be dashes only.
    priced = any(one.cost or one.cost_limit for one in budgets.data)
    costs = [f"{words['cost']} ({budgets.currency})", words["limit"]] if priced else []
    head = [*(words[name] for name in ("team", "tokens", "limit")), *costs, words["used"], words["state"]]
    tones = {"ok": "good", "warning": "warn", "exceeded": "bad"}
    rows = []
    for one in budgets.data:
        if one.tokens_limit or one.cost_limit:
            tone = tones.get(one.state, "")
            cells = [text(one.team), number(one.tokens), number(one.tokens_limit or None)]
            cells += [money(one.cost), money(one.cost_limit or None)] if priced else []
            state = text(words.get(f"budget_state_{one.state}", one.state), tone)
            rows.append(Row([*cells, share(one.used, tone), state]))
    return Table(words["budgets"], head, rows, words["no_budgets"])


def _days(count: int) -> list[str]:
    """The last days, by ISO date in UTC, as usage has them."""
    today = datetime.datetime.now(datetime.UTC).date()
    return [(today - datetime.timedelta(days=back)).isoformat() for back in range(count)]
