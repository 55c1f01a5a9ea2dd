"""Models and replicas: what each does now, how long people wait, and why there are as many replicas as there are."""

import gradio as gr

from cluster.reports.models import Percentiles, ShownModel
from deployments.api.protocol.console import ModelsResponse
from deployments.pages.console.admin import path_of
from deployments.pages.console.section import Events, Updates, board
from deployments.pages.console.tables import Board, Cell, Row, Table, moment, number, seconds, share, text
from deployments.pages.console.words import Words

_FULL = 0.9
"""A KV cache that is used by more than this soon makes requests wait."""


class Models:
    """The section for models and replicas. The page asks for it again every few seconds (console.js)."""

    name = "models"

    def __init__(self, events: Events) -> None:
        self._events = events

    def build(self) -> None:
        """Adds its components."""
        self.tables = board(self.name)

    def listen(self) -> None:
        """Sets their events."""
        self._events.on([self.tables.click], self.show, [], [self.tables])

    async def show(self, key: str, request: gr.Request) -> Updates:
        """The tables as they are now."""
        admin = self._events.login.admin(key, request)
        models = (await admin.get(path_of("models"), ModelsResponse)).data
        words = admin.words
        tables = [_models(models, words), _replicas(models, words), _changes(models, words)]
        return {self.tables: Board(tables=tables).json()}


def _models(models: list[ShownModel], words: Words) -> Table:
    head = ["model", "task", "context", "replicas", "waiting", "first_token", "per_token"]
    rows = [
        Row(
            [
                text(model.model),
                text(words.get(f"task_{model.task}", model.task)),
                number(model.context_tokens),
                number(len(model.replicas)),
                number(model.waiting, "warn" if model.waiting else ""),
                _percentiles(model.first_token_s),
                _percentiles(model.per_token_s),
            ]
        )
        for model in models
    ]
    return Table(words["models"], [words[name] for name in head], rows, words["no_models"])


def _percentiles(times: Percentiles | None) -> Cell:
    if times is None:
        return text("–")
    return text(" / ".join(seconds(value).text for value in (times.p50, times.p90, times.p99)))


def _replicas(models: list[ShownModel], words: Words) -> Table:
    head = ["model", "replica", "cores", "running", "tokens_per_s", "kv_used", "restarts"]
    rows = [
        Row(
            [
                text(model.model),
                text(replica.replica),
                text(replica.cpus.replace(",", ", ")),
                number(replica.running),
                number(round(replica.tokens_per_s)),
                share(replica.kv_used, "bad" if replica.kv_used > _FULL else ""),
                number(replica.restarts, "warn" if replica.restarts else ""),
            ]
        )
        for model in models
        for replica in model.replicas
    ]
    return Table(words["replicas_table"], [words[name] for name in head], rows, words["no_replicas"])


def _changes(models: list[ShownModel], words: Words) -> Table:
    found = [(change, model.model) for model in models for change in model.changes]
    found.sort(key=lambda entry: -entry[0].time)
    head = ["time", "model", "replicas", "waiting_tokens", "predicted_wait", "target_wait", "why"]
    rows = [
        Row(
            [
                moment(change.time),
                text(model),
                text(f"{change.before} → {change.after}"),
                number(round(change.waiting_tokens)),
                seconds(change.predicted_wait_s),
                seconds(change.target_wait_s),
                text(words.get(f"scaled_{change.reason}", change.why)),
            ]
        )
        for change, model in found
    ]
    return Table(words["decisions"], [words[name] for name in head], rows, words["no_decisions"])
