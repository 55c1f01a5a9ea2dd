"""The requests of the last time, and the errors among them."""

import gradio as gr

from cluster.reports.activity import ShownRequest
from deployments.api.protocol.admin import TeamsResponse
from deployments.api.protocol.console import ErrorsResponse, RequestsResponse
from deployments.pages.console.admin import path_of
from deployments.pages.console.advice import advice
from deployments.pages.console.section import Events, Updates, board
from deployments.pages.console.tables import Board, Row, Table, id_text, moment, number, seconds, text
from deployments.pages.console.words import Words, label

_ALL = ""
_SHOWN = 100


class Requests:
    """The section for recent requests."""

    name = "requests"

    def __init__(self, events: Events) -> None:
        self._events = events

    def build(self) -> None:
        """Adds its components."""
        with gr.Row():
            everything = [(label("all"), _ALL)]
            self.team = gr.Dropdown(everything, value=_ALL, label=label("team"), min_width=140)
            self.model = gr.Dropdown(everything, value=_ALL, label=label("model"), min_width=140)
        self.errors = gr.Checkbox(label=label("errors_only"))
        self.table = board(self.name)

    def listen(self) -> None:
        """Sets their events."""
        fields = [self.team, self.model, self.errors]
        events = [self.table.click, *(field.input for field in fields)]
        self._events.on(events, self.show, fields, [self.table, self.team, self.model])

    async def show(self, key: str, team: str | None, model: str | None, errors: bool, request: gr.Request) -> Updates:
        """The newest requests, and the teams and models to choose from."""
        admin = self._events.login.admin(key, request)
        filters = {"team": team, "model": model, "errors": "true" if errors else "", "limit": _SHOWN}
        found = (await admin.get(path_of("requests"), RequestsResponse, **filters)).data
        teams = (await admin.get(path_of("teams"), TeamsResponse)).data
        everything = [(admin.words["all"], _ALL)]
        return {
            self.table: Board(tables=[_table(found, admin.words)]).json(),
            self.team: gr.update(choices=everything + [(one.name, one.name) for one in teams]),
            self.model: gr.update(choices=everything + [(name, name) for name in await admin.models()]),
        }


class Errors:
    """The section for the errors of the last hour."""

    name = "errors"

    def __init__(self, events: Events) -> None:
        self._events = events

    def build(self) -> None:
        """Adds its components."""
        self.table = board(self.name)

    def listen(self) -> None:
        """Sets their events."""
        self._events.on([self.table.click], self.show, [], [self.table])

    async def show(self, key: str, request: gr.Request) -> Updates:
        """The errors, the most frequent first."""
        admin = self._events.login.admin(key, request)
        found, words = (await admin.get(path_of("errors"), ErrorsResponse)).data, admin.words
        head = ["status", "code", "team", "model", "count", "last", "advice"]
        rows = [
            Row(
                [
                    text(str(error.status), _tone(error.status)),
                    text(error.code),
                    text(error.team),
                    text(error.model),
                    number(error.count),
                    moment(error.last),
                    text(advice(error, words)),
                ]
            )
            for error in found
        ]
        table = Table(words["errors_table"], [words[name] for name in head], rows, words["no_errors"])
        return {self.table: Board(tables=[table]).json()}


def _table(found: list[ShownRequest], words: Words) -> Table:
    head = ["time", "request_id", "team", "model", "api", "status", "cache_result"]
    head += ["queue_time", "first_token_time", "total_time", "tokens"]
    # The API gives texts only where the settings have them kept.
    has_texts = any(one.question or one.answer for one in found)
    head += ["question", "answer"] if has_texts else []
    rows = [
        Row(
            [
                moment(one.time),
                id_text(one.id),
                text(one.team),
                text(one.model),
                text(one.api.removeprefix("/v1/")),
                text(f"{one.status} {one.code}".strip(), _tone(one.status)),
                text(words.get(f"cache_{one.cache}", one.cache)),
                seconds(one.queue_s),
                seconds(one.first_token_s),
                seconds(one.total_s),
                text(f"{one.prompt:,} + {one.completion:,}"),
                *([text(one.question), text(one.answer)] if has_texts else []),
            ]
        )
        for one in found
    ]
    return Table(words["requests"], [words[name] for name in head], rows, words["no_requests"])


def _tone(status: int) -> str:
    return "bad" if status >= 500 else "warn" if status >= 400 else "good"
