"""Answers: those in the cache, those that people approved, and those that were voted down; and the form that corrects
any of them."""

from typing import Any

import gradio as gr
import msgspec

from cluster.records.cache import ShownAnswer
from cluster.records.curated import ListedAnswer
from deployments.api.protocol.admin import TeamsResponse
from deployments.api.protocol.console import CachedAnswersResponse
from deployments.api.protocol.curated import AnswerDeletedResponse, CuratedAnswers
from deployments.api.protocol.feedback import FeedbackList
from deployments.pages.console import answer_tables as tables
from deployments.pages.console.admin import Admin, Failed, path_of
from deployments.pages.console.section import Events, Updates, board, follow, kept_in_page, stay
from deployments.pages.console.tables import Board
from deployments.pages.console.words import label

_COMMON = ""
"""Of answers to callers without a key, in the form's list of teams."""


class Correction(msgspec.Struct, frozen=True):
    """What the form writes. kind: new, or edit (a curated answer), cache or feedback; id: of that."""

    kind: str = "new"
    id: str = ""


_read = msgspec.json.Decoder(Correction).decode


class Answers:
    """The section for answers."""

    name = "answers"

    def __init__(self, events: Events) -> None:
        self._events = events

    def build(self) -> None:
        """Adds its components."""
        self.votes = board(self.name)
        with gr.Accordion(label("answer_form"), open=False, elem_id="answer-form") as self.form:
            self.about = kept_in_page()
            self.question = gr.Textbox(label=label("question"), lines=2, max_lines=6)
            self.answer = gr.Textbox(label=label("answer"), lines=4, max_lines=16, elem_id="answer-text")
            self.team = gr.Dropdown([], label=label("for_team"), info=label("for_team_hint"))
            with gr.Row():
                self.save = gr.Button(label("save"), variant="primary")
                self.cancel = gr.Button(label("cancel"))
        self.search = gr.Textbox(
            label=label("search_answers"),
            info=label("search_answers_hint"),
            max_lines=1,
            submit_btn=label("search"),
            elem_id="answer-search",
        )
        self.seen = board()
        self.cached = board()
        self.cursor = kept_in_page()
        self.curated = board()

    def listen(self) -> None:
        """Sets their events."""
        form = [self.form, self.about, self.question, self.answer, self.team]
        lists = [self.votes, self.cached, self.curated, self.cursor, self.seen]
        for table, act in ((self.votes, self.vote), (self.cached, self.cache), (self.curated, self.curate)):
            follow(self._events.on([table.click], act, [self.search, self.cursor], [*form, *lists]), "answer-text")
        self._events.on([self.search.submit], self.find, [self.search], lists)
        inputs = [self.search, self.about, self.question, self.answer, self.team]
        stay(self._events.on([self.save.click], self.store, inputs, [*form, *lists]), "answer-form")
        stay(self._events.on([self.cancel.click], self.cancelled, [], form), "answer-form")

    async def vote(self, key: str, search: str, cursor: str, event: gr.EventData, request: gr.Request) -> Updates:
        """What a button of the answers that were voted down does; "open" shows all lists as they are now."""
        admin = self._events.login.admin(key, request)
        if event.action != "correct":
            teams = (await admin.get(path_of("teams"), TeamsResponse)).data
            names = [(team.name, f"team.{team.name}") for team in teams]
            choices = [(admin.words["without_key"], _COMMON), *names]
            return {self.team: gr.update(choices=choices)} | await self._listed(admin, search)
        votes = (await admin.get(path_of("feedback"), FeedbackList, limit=1000)).data
        one = next((vote for vote in votes if vote.id == event.id), None)
        if one is None:
            return await self._listed(admin, search)
        return self._opened(Correction("feedback", one.id), one.question, one.correction or one.answer)

    async def cache(self, key: str, search: str, cursor: str, event: gr.EventData, request: gr.Request) -> Updates:
        """What a button of the cached answers does."""
        admin, path = self._events.login.admin(key, request), path_of("cache", event.id)
        if event.action == "more":
            page = await admin.get(path_of("cache"), CachedAnswersResponse, search=search, cursor=cursor)
            return {self.cached: tables.cached(page, admin.words), self.cursor: page.next}
        if event.action == "delete":
            await admin.delete(path, AnswerDeletedResponse)
            said = self._events.say(admin.words["deleted"])
        elif event.action == "pin":
            await admin.post(path_of("answers", "pin"), ListedAnswer, {"key": event.id})
            said = self._events.say(admin.words["pinned"])
        else:
            details = await admin.get(path, ShownAnswer)
            if event.action == "see":
                return {self.seen: tables.details(details, admin.words)}
            [first, *_] = details["choices"]
            return self._opened(Correction("cache", event.id), details["question"], first["text"])
        return await self._listed(admin, search) | said

    async def curate(self, key: str, search: str, cursor: str, event: gr.EventData, request: gr.Request) -> Updates:
        """What a button of the curated answers does."""
        admin = self._events.login.admin(key, request)
        if event.action == "edit":
            answer = await admin.get(path_of("answers", event.id), ListedAnswer)
            return self._opened(Correction("edit", answer.id), answer.question, answer.answer)
        await admin.delete(path_of("answers", event.id), AnswerDeletedResponse)
        return await self._listed(admin, search) | self._events.say(admin.words["deleted"])

    async def find(self, key: str, search: str, request: gr.Request) -> Updates:
        """The answers that the search finds."""
        return await self._listed(self._events.login.admin(key, request), search)

    async def store(
        self, key: str, search: str, about: str, question: str, answer: str, team: str | None, request: gr.Request
    ) -> Updates:
        """Writes a curated answer."""
        admin = self._events.login.admin(key, request)
        correction = _read(about) if about else Correction()
        if not (answer or "").strip() or not (question or "").strip():
            raise Failed(admin.words["answer_missing"])
        if correction.kind == "feedback":
            await admin.post(path_of("feedback", correction.id, "accept"), ListedAnswer, {"answer": answer})
        elif correction.kind == "cache":
            await admin.post(path_of("answers", "pin"), ListedAnswer, {"key": correction.id, "answer": answer})
        elif correction.kind == "edit":
            body = {"question": question, "answer": answer}
            await admin.patch(path_of("answers", correction.id), ListedAnswer, body)
        else:
            added = {"question": question, "answer": answer, "namespace": team or ""}
            await admin.post(path_of("answers"), CuratedAnswers, {"answers": [added]})
        return self._closed() | await self._listed(admin, search) | self._events.say(admin.words["saved"])

    async def cancelled(self, key: str) -> Updates:
        """Closes the form."""
        return self._closed()

    async def _listed(self, admin: Admin, search: str) -> Updates:
        """All lists as they are now."""
        words = admin.words
        votes = (await admin.get(path_of("feedback"), FeedbackList)).data
        cached = await admin.get(path_of("cache"), CachedAnswersResponse, search=search)
        curated = await admin.get(path_of("answers"), CuratedAnswers, search=search)
        return {
            self.votes: tables.votes(votes, words),
            self.cached: tables.cached(cached, words),
            self.cursor: cached.next,
            self.curated: tables.curated(curated, words),
            self.seen: Board().json(),
        }

    def _opened(self, correction: Correction, question: str, answer: str) -> Updates:
        return {
            self.form: gr.update(open=True),
            self.about: msgspec.json.encode(correction).decode(),
            self.question: gr.update(value=question, interactive=correction.kind == "edit"),
            self.answer: answer,
            self.team: gr.update(interactive=False),
        }

    def _closed(self) -> dict[Any, Any]:
        return {
            self.form: gr.update(open=False),
            self.about: "",
            self.question: gr.update(value="", interactive=True),
            self.answer: "",
            self.team: gr.update(interactive=True),
        }
