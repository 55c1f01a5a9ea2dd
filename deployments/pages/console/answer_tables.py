"""The lists of the section for answers."""

import time

from cluster.records.cache import ShownAnswer
from cluster.records.feedback import ListedFeedback
from deployments.api.protocol.console import CachedAnswersResponse
from deployments.api.protocol.curated import CuratedAnswers
from deployments.pages.console.tables import Action, Board, Cell, Row, Table, moment, number, text
from deployments.pages.console.words import Words
from deployments.tenancy.auth import SHARED_NAMESPACE, TEAM


def votes(listed: list[ListedFeedback], words: Words) -> str:
    """Answers that people voted down and nobody has corrected yet, the most asked first."""
    wrong = [one for one in listed if one.down and not one.accepted]
    wrong.sort(key=lambda one: (-one.asked, -one.down))
    rows = [
        Row(
            [
                text(one.question),
                text(one.answer),
                number(one.asked),
                number(one.down, "bad"),
                number(one.up),
                text("\n".join(one.reasons)),
                text(one.team),
            ],
            one.id,
            one.question[:60],
            [Action("correct", words["correct"])],
        )
        for one in wrong
    ]
    head = ["question", "answer", "asked", "votes_down", "votes_up", "reasons", "team"]
    return _board(Table(words["voted_down"], [words[name] for name in head], rows, words["no_votes"]))


def cached(page: CachedAnswersResponse, words: Words) -> str:
    """Answers in the cache."""
    now = time.time()
    rows = [
        Row(
            [
                text(one.question),
                text(one.answer),
                text(one.model),
                _owner(one.namespace, words),
                moment(one.made),
                moment(now + one.expires_in_s),
            ],
            one.key,
            one.question[:60],
            [
                Action("see", words["see"]),
                Action("pin", words["pin"]),
                Action("correct", words["correct"]),
                Action("delete", words["delete"], words["delete_cached"]),
            ],
        )
        for one in page.data
    ]
    head = [words[name] for name in ("question", "answer", "model", "team", "made", "ends")]
    more = Action("more", words["more"]) if page.next else None
    return _board(Table(words["cached"], head, rows, words["no_cached"], more))


def details(answer: ShownAnswer, words: Words) -> str:
    """A cached answer with all that is kept of it."""
    rows = [Row([text(words["question"]), text(answer["question"])])]
    for choice in answer["choices"]:
        if choice["reasoning"]:
            rows.append(Row([text(words["thinking"]), text(choice["reasoning"])]))
        rows.append(Row([text(words["answer"]), text(choice["text"])]))
    usage = answer["usage"]
    rows += [
        Row([text(words["model"]), text(answer["model"])]),
        Row([text(words["prompt_tokens"]), number(usage["prompt"])]),
        Row([text(words["completion_tokens"]), number(usage["completion"])]),
        Row([text(words["cache_key"]), text(answer["key"])]),
    ]
    return _board(Table(words["cached_answer"], [words["field"], words["value"]], rows, ""))


def curated(page: CuratedAnswers, words: Words) -> str:
    """Curated answers."""
    rows = []
    for one in page.data:
        state, tone = words["given"], "good"
        if one.expired:
            state, tone = words["expired"], "bad"
        elif one.outdated:
            state, tone = words["outdated"], "warn"
        owner = _owner(one.namespace, words)
        cells = [text(one.question), text(one.answer), owner, text(one.author), moment(one.changed)]
        actions = [Action("edit", words["edit"]), Action("delete", words["delete"], words["delete_curated"])]
        rows.append(Row([*cells, text(state, tone)], one.id, one.question[:60], actions))
    head = [words[name] for name in ("question", "answer", "team", "author", "changed", "state")]
    return _board(Table(words["curated"], head, rows, words["no_curated"]))


def _owner(namespace: str, words: Words) -> Cell:
    """Whose answers these are."""
    if namespace.startswith(TEAM):
        return text(namespace.removeprefix(TEAM))
    return text(words["sharing_teams"] if namespace == SHARED_NAMESPACE else words["without_key"])


def _board(table: Table) -> str:
    return Board(tables=[table]).json()
