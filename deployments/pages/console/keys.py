"""Keys: made, rotated and revoked. A new one is shown once."""

from time import time
from typing import Any

import gradio as gr

from cluster.records.team_records import ADMIN, Team
from deployments.api.protocol.admin import KeyResponse, KeysResponse
from deployments.pages.console.admin import Admin, Failed, path_of
from deployments.pages.console.section import Events, Updates, board
from deployments.pages.console.tables import Action, Board, Cell, Row, Table, moment, text
from deployments.pages.console.words import Words, label

_DAY_S = 86_400
_ADMINISTRATORS = "*"
"""The choice of no team; none can have this name."""


class Keys:
    """The keys, below the teams."""

    def __init__(self, events: Events) -> None:
        self._events = events

    @property
    def outputs(self) -> list[Any]:
        """The components that change when the section opens."""
        return [self.table, self.team]

    def build(self) -> None:
        """Adds its components."""
        # A field of gradio's that cannot be changed cannot be reached by the keyboard either (6.31).
        script = "console_page.secret(element, props, watch)"
        self.secret = gr.HTML("", html_template="<div></div>", js_on_load=script)
        self.table = board()
        with gr.Accordion(label("key_form"), open=False, elem_id="key-form"):
            with gr.Row():
                self.team = gr.Dropdown([], label=label("key_team"), min_width=160)
                self.label = gr.Textbox(
                    label=label("key_label"), info=label("key_label_hint"), max_lines=1, min_width=160
                )
                self.days = gr.Number(
                    0, label=label("expires_in_days"), info=label("never_hint"), minimum=0, min_width=140
                )
            self.make = gr.Button(label("make_key"), variant="primary")

    def listen(self) -> None:
        """Sets their events."""
        outputs = [self.secret, self.table]
        self._events.on([self.table.click], self.act, [], outputs)
        fields = [self.team, self.label, self.days]
        self._events.on([self.make.click], self.create, fields, [*outputs, self.label])

    async def act(self, key: str, event: gr.EventData, request: gr.Request) -> Updates:
        """What a button of the table does."""
        admin = self._events.login.admin(key, request)
        if event.action == "rotate":
            created = await admin.post(path_of("keys", event.id, "rotate"), KeyResponse, {})
            return {self.secret: created.key, self.table: await self._listed(admin)}
        revoked = await admin.delete(path_of("keys", event.id), KeyResponse)
        said = self._events.say(admin.words["revoked"])
        if revoked.kept is False:
            said = self._events.say(admin.words["revoked_not_kept"], "warn")
        return {self.table: await self._listed(admin)} | said

    async def create(self, key: str, team: str | None, note: str, days: float | None, request: gr.Request) -> Updates:
        """Makes a key."""
        admin = self._events.login.admin(key, request)
        if not team:
            raise Failed(admin.words["team_missing"])
        body = {
            "team": ADMIN if team == _ADMINISTRATORS else team,
            "label": note or "",
            "expires_in_s": (days or 0) * _DAY_S,
        }
        created = await admin.post(path_of("keys"), KeyResponse, body)
        return {self.secret: created.key, self.table: await self._listed(admin), self.label: ""}

    async def shown(self, admin: Admin, teams: list[Team]) -> Updates:
        """Updates of `outputs`."""
        choices = [(team.name, team.name) for team in teams] + [(admin.words["admin"], _ADMINISTRATORS)]
        return {self.table: await self._listed(admin), self.team: gr.update(choices=choices)}

    async def _listed(self, admin: Admin) -> str:
        listed = (await admin.get(path_of("keys"), KeysResponse)).data
        # Those that end are below those that never do.
        listed.sort(key=lambda one: (one.team, bool(one.ends), -one.created))
        return Board(tables=[_table(listed, time(), admin.words)]).json()


def _table(keys: list[KeyResponse], now: float, words: Words) -> Table:
    head = [words[name] for name in ("key_id", "team", "key_label", "created", "ends", "state")]
    rows = [_row(key, is_valid=not key.ends or now < key.ends, words=words) for key in keys]
    return Table(words["keys_table"], head, rows, words["no_keys"])


def _row(key: KeyResponse, *, is_valid: bool, words: Words) -> Row:
    team = key.team or words["admin"]
    state = words["valid"] if is_valid else words["ended"]
    if key.replaced_by:
        state = words["replaced"].format(id=key.replaced_by)
    tone = "good" if is_valid and not key.replaced_by else ""
    rotate = Action("rotate", words["rotate"], words["rotate_question"].format(id=key.id))
    revoke = Action("revoke", words["revoke"], words["revoke_question"].format(id=key.id, team=team))
    actions = ([] if key.replaced_by else [rotate]) + [revoke] if is_valid else []
    ends: Cell = moment(key.ends) if key.ends else text(words["never"])
    cells = [text(key.id), text(team), text(key.label), moment(key.created), ends, text(state, tone)]
    return Row(cells, key.id, key.id, actions)
