"""Teams: what each may use, and the form that makes or changes one."""

from typing import Any

import gradio as gr

from cluster.records.team_records import Team
from deployments.api.protocol.admin import TeamDeletedResponse, TeamsResponse
from deployments.pages.console.admin import Admin, path_of
from deployments.pages.console.keys import Keys
from deployments.pages.console.section import Events, Updates, board, follow, kept_in_page, stay
from deployments.pages.console.tables import Action, Board, Cell, Row, Table, moment, number, text
from deployments.pages.console.words import Words, label

_LIMITS = ("requests_per_minute", "tokens_per_minute", "requests_at_a_time", "tokens_per_month")
"""The fields of a quota."""


class Teams:
    """The section for teams and keys."""

    name = "teams"

    def __init__(self, events: Events) -> None:
        self._events = events
        self._keys = Keys(events)

    def build(self) -> None:
        """Adds its components."""
        self.table = board(self.name)
        with gr.Accordion(label("team_form"), open=False, elem_id="team-form") as self.form:
            self.chosen = kept_in_page()
            self.team = gr.Textbox(label=label("team_name"), info=label("team_name_hint"), max_lines=1)
            with gr.Row():
                self.weight = gr.Number(
                    1, label=label("weight"), info=label("weight_hint"), step=0.1, min_width=140, elem_id="team-weight"
                )
                self.shares = gr.Checkbox(label=label("shares_answers"), min_width=140)
            with gr.Row():
                self.cost = gr.Number(
                    0, label=label("cost_per_month"), info=label("unlimited_hint"), minimum=0, min_width=140
                )
                self.limits = [
                    gr.Number(0, label=label(name), info=label("unlimited_hint"), minimum=0, precision=0, min_width=140)
                    for name in _LIMITS
                ]
            self.models = gr.Dropdown(
                [],
                label=label("models_allowed"),
                info=label("models_allowed_hint"),
                multiselect=True,
                allow_custom_value=True,
            )
            with gr.Row():
                self.save = gr.Button(label("save"), variant="primary")
                self.cancel = gr.Button(label("cancel"))
        self._keys.build()

    def listen(self) -> None:
        """Sets their events."""
        fields = [self.chosen, self.team, self.models, self.weight, self.shares, self.cost, *self.limits]
        outputs = [self.table, self.form, *fields, *self._keys.outputs]
        follow(self._events.on([self.table.click], self.act, [], outputs), "team-weight")
        stay(self._events.on([self.save.click], self.store, fields, outputs), "team-form")
        stay(self._events.on([self.cancel.click], self.cancelled, [], outputs), "team-form")
        self._keys.listen()

    async def act(self, key: str, event: gr.EventData, request: gr.Request) -> Updates:
        """What a button of the table does; "open" shows what is there now."""
        admin = self._events.login.admin(key, request)
        if event.action == "edit":
            return self._filled(await admin.get(path_of("teams", event.id), Team))
        if event.action == "delete":
            await admin.delete(path_of("teams", event.id), TeamDeletedResponse)
            return await self._shown(admin) | self._events.say(admin.words["deleted"])
        return await self._shown(admin)

    async def store(
        self,
        key: str,
        request: gr.Request,
        chosen: str,
        name: str,
        models: list[str],
        weight: float | None,
        shares: bool,
        cost: float | None,
        *limits: float | None,
    ) -> Updates:
        """Makes a team, or changes the one that was chosen."""
        admin = self._events.login.admin(key, request)
        quota = {limit: int(value or 0) for limit, value in zip(_LIMITS, limits, strict=True)}
        fields: dict[str, Any] = {
            "models": models or [],
            "weight": weight or 0,
            "shares_answers": shares,
            "quota": quota,
            "cost_per_month": cost or 0,
        }
        if chosen:
            await admin.patch(path_of("teams", chosen), Team, fields)
        else:
            await admin.post(path_of("teams"), Team, {"name": (name or "").strip(), **fields})
        return self._emptied() | await self._shown(admin) | self._events.say(admin.words["saved"])

    async def cancelled(self, key: str) -> Updates:
        """Closes the form."""
        return self._emptied()

    async def _shown(self, admin: Admin) -> Updates:
        teams = sorted((await admin.get(path_of("teams"), TeamsResponse)).data, key=lambda team: team.name)
        models = await admin.models()
        shown = Board(tables=[_table(teams, admin.words)]).json()
        return {self.table: shown, self.models: gr.update(choices=models)} | await self._keys.shown(admin, teams)

    def _filled(self, team: Team) -> Updates:
        limits = [getattr(team.quota, name) for name in _LIMITS]
        return {
            self.form: gr.update(open=True),
            self.chosen: team.name,
            self.team: gr.update(value=team.name, interactive=False),
            self.models: list(team.models),
            self.weight: team.weight,
            self.shares: team.shares_answers,
            self.cost: team.cost_per_month,
            **dict(zip(self.limits, limits, strict=True)),
        }

    def _emptied(self) -> Updates:
        return {
            self.form: gr.update(open=False),
            self.chosen: "",
            self.team: gr.update(value="", interactive=True),
            self.models: [],
            self.weight: 1,
            self.shares: False,
            self.cost: 0,
            **dict.fromkeys(self.limits, 0),
        }


def _table(teams: list[Team], words: Words) -> Table:
    head = ["team", "models_allowed", "weight", *_LIMITS, "cost_per_month", "created"]
    rows = [
        Row(
            [
                text(team.name),
                text(", ".join(team.models) or words["all_models"]),
                number(team.weight),
                *(_limit(getattr(team.quota, name), words) for name in _LIMITS),
                _limit(team.cost_per_month, words),
                moment(team.created),
            ],
            team.name,
            team.name,
            [
                Action("edit", words["edit"]),
                Action("delete", words["delete"], words["delete_team"].format(name=team.name)),
            ],
        )
        for team in teams
    ]
    return Table(words["teams_table"], [words[name] for name in head], rows, words["no_teams"])


def _limit(value: float, words: Words) -> Cell:
    return number(value) if value else text(words["unlimited"])
