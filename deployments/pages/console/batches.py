"""Batches: how far each has come, and a button that cancels it."""

import gradio as gr

from deployments.api.protocol.batches import AdminBatch, AdminBatchList, BatchObject
from deployments.pages.console.admin import Admin, path_of
from deployments.pages.console.section import Events, Updates, board
from deployments.pages.console.tables import Action, Board, Row, Table, id_text, moment, number, share, text
from deployments.pages.console.words import Words

_SHOWN = 100
_TONES = {"completed": "good", "failed": "bad", "expired": "warn"}
_OPEN = ("validating", "in_progress")


class Batches:
    """The section for batches."""

    name = "batches"

    def __init__(self, events: Events) -> None:
        self._events = events

    def build(self) -> None:
        """Adds its components."""
        self.table = board(self.name)

    def listen(self) -> None:
        """Sets their events."""
        self._events.on([self.table.click], self.act, [], [self.table])

    async def act(self, key: str, event: gr.EventData, request: gr.Request) -> Updates:
        """Cancels a batch if that is what was clicked, and shows the newest of all teams."""
        admin, said = self._events.login.admin(key, request), Updates()
        if event.action == "cancel":
            await admin.post(path_of("batches", event.id, "cancel"), AdminBatch, {})
            said = self._events.say(admin.words["batch_cancelled"])
        return {self.table: await _listed(admin)} | said


async def _listed(admin: Admin) -> str:
    found, words = (await admin.get(path_of("batches"), AdminBatchList, limit=_SHOWN)).data, admin.words
    head = ["created", "request_id", "team", "api", "status", "batch_progress", "batch_completed", "batch_failed"]
    table = Table(
        words["batches"],
        [words[name] for name in head],
        [_row(one.owner.removeprefix("team."), one.batch, words) for one in found],
        words["no_batches"],
    )
    return Board(tables=[table]).json()


def _row(team: str, batch: BatchObject, words: Words) -> Row:
    counts = batch.request_counts
    cancel = Action("cancel", words["cancel"], words["cancel_batch_question"].format(id=batch.id))
    return Row(
        [
            moment(batch.created_at),
            id_text(batch.id),
            text(team),
            text(batch.endpoint.removeprefix("/v1/")),
            text(words[f"batch_is_{batch.status}"], _TONES.get(batch.status, "")),
            share((counts.completed + counts.failed) / counts.total if counts.total else 0.0),
            number(counts.completed),
            number(counts.failed, "bad" if counts.failed else ""),
        ],
        batch.id,
        batch.id,
        [cancel] if batch.status in _OPEN else [],
    )
