"""How the chat page shows a conversation: as messages of gradio's chatbot."""

from collections.abc import Callable
from html import escape
from typing import Any

from deployments.pages.client import Progress
from deployments.pages.conversation import Answer, Conversation, Turn
from deployments.pages.file_texts import file_texts
from deployments.pages.i18n import Texts

Message = dict[str, Any]
"""A message in gradio's format."""
_MARK = "\u2063"
"""Invisible separator. The chatbot takes only formulas with it for LaTeX, so dollars, code and questions stay text."""
_STORED = ("hit", "curated")
"""Values of X-Dray-Cache of answers that no engine made now."""
LATEX = [
    {"left": f"{_MARK}$$", "right": f"$${_MARK}", "display": True},
    {"left": f"{_MARK}\\[", "right": f"\\]{_MARK}", "display": True},
    {"left": f"{_MARK}\\(", "right": f"\\){_MARK}", "display": False},
]


def chat_messages(conversation: Conversation, texts: Texts) -> list[Message]:
    """All messages, in gradio's format. Those of an answer follow each other, and are one bubble."""
    shown: list[Message] = []
    for turn in conversation.turns:
        shown.append(_message(_question(turn), role="user"))
        if turn.answer is not None:
            shown.extend(answer_messages(turn.answer, texts, _version(turn, texts)))
            if turn is conversation.turns[-1] and turn.answer.ended:
                shown[-1]["options"] = _other_versions(turn, texts)
    return shown


def turn_of(conversation: Conversation, texts: Texts, index: int) -> int:
    """The index of the turn that the message at this index belongs to."""
    roles = [message["role"] for message in chat_messages(conversation, texts)]
    return max(0, roles[: index + 1].count("user") - 1)


def shown_ratings(conversation: Conversation) -> list[str | None]:
    """The ratings of all answers, in gradio's format."""
    words = {"up": "Like", "down": "Dislike"}
    return [words.get(turn.answer.rating) for turn in conversation.turns if turn.answer is not None]


def answer_messages(answer: Answer, texts: Texts, version: str = "") -> list[Message]:
    """An answer: thinking, which folds when it ends, the answer's text, what went wrong, and a line of statistics.

    version: which one of several answers it is; may be empty.
    """
    progress, shown = answer.progress, []
    if progress.thinking:
        metadata: dict[str, Any] = {"title": texts.thinking, "status": "pending"}
        if answer.ended or progress.text:
            metadata = {"title": texts.thought, "status": "done", "duration": round(progress.thought_s, 1)}
        shown.append(_message(_formulas(progress.thinking), metadata=metadata))
    if progress.text:
        shown.append(_message(_formulas(progress.text)))
    if answer.passages:
        shown.append(_message(_passages(answer, texts)))
    if answer.error:
        shown.append(_message(f'<div class="dray-error" role="alert">{_html(answer.error)}</div>'))
    elif progress.finish == "length":
        notice = (texts.cut_notice if progress.text else texts.cut_thinking).format(limit=progress.tokens)
        shown.append(_message(f'<div class="dray-notice" role="status">{_html(notice)}</div>'))
    line = " · ".join((*_statistics(answer, texts), *([version] if version else [])))
    if line or not shown:
        shown.append(_message(f"<small>{_html(line)}</small>"))
    return shown


def _question(turn: Turn) -> str:
    """A question as Markdown, below the name of its file."""
    name = f'<div class="dray-file">{_html(turn.file.name)}</div>\n\n' if turn.file else ""
    return name + _literal(turn.question)


def _passages(answer: Answer, texts: Texts) -> str:
    """The parts of a file that an answer quotes or rests on. A passage is one line, so all of it is HTML."""
    heading = file_texts(texts).quoted.format(name=answer.source)
    quotes = "".join(f"<blockquote>{_html(passage)}</blockquote>" for passage in answer.passages)
    return f'<div class="dray-passages"><p>{_html(heading)}</p>{quotes}</div>'


def _html(text: str) -> str:
    """Text within an element of HTML, on one line: after an empty one, Markdown would begin again."""
    return escape(" ".join(text.replace(_MARK, "").split()))


def _version(turn: Turn, texts: Texts) -> str:
    return texts.version.format(number=turn.shown + 1, all=len(turn.answers)) if len(turn.answers) > 1 else ""


def _other_versions(turn: Turn, texts: Texts) -> list[dict[str, str]]:
    """Buttons to the other answers."""
    options = []
    if turn.shown > 0:
        options.append({"value": "previous", "label": texts.previous})
    if turn.shown < len(turn.answers) - 1:
        options.append({"value": "next", "label": texts.next})
    return options


def _statistics(answer: Answer, texts: Texts) -> list[str]:
    progress = answer.progress
    parts = [answer.model] if answer.model else []
    if not progress.first_s:
        return [*parts, texts.stopped] if answer.stopped else [] if answer.error else [*parts, texts.waiting]
    if progress.tokens:
        counts = texts.one_token if progress.tokens == 1 else texts.tokens
        parts.append(counts.format(all=progress.tokens, thinking=progress.reasoning_tokens))
    if progress.tokens_per_s and progress.cache not in _STORED:
        parts.append(texts.rate.format(rate=progress.tokens_per_s))
    if answer.stopped:
        parts.append(texts.stopped)
    if progress.finish:
        parts.extend(_origin(progress, texts))
    return parts


def _origin(progress: Progress, texts: Texts) -> list[str]:
    """Where a whole answer came from, and how soon."""
    is_stored = progress.cache in _STORED
    parts = [texts.first.format(seconds=progress.first_s)]
    stored = {"hit": texts.similar if progress.similar else texts.hit, "curated": _curated(progress, texts)}
    parts.append((stored | {"join": texts.join}).get(progress.cache, texts.generated))
    if progress.replica and not is_stored:
        parts.append(texts.replica.format(name=progress.replica))
    if progress.finish == "length":
        parts.append(texts.cut)
    return parts


def _curated(progress: Progress, texts: Texts) -> str:
    """That people approved an answer, and who."""
    curated = texts.curated_similar if progress.similar else texts.curated
    return f"{curated} ({progress.author})" if progress.author else curated


def _message(text: str, role: str = "assistant", metadata: dict[str, Any] | None = None) -> Message:
    # As a part: gradio takes the indent off a bare text.
    content = [{"type": "text", "text": text}]
    return {"role": role, "content": content} | ({"metadata": metadata} if metadata else {})


def _literal(text: str) -> str:
    """A question for the chatbot: Markdown, with backslashes and invisible separators as they are."""
    return _outside_code(text, lambda prose: prose.replace("\\", "\\\\"))


def _formulas(text: str) -> str:
    """A model's text for the chatbot: its formulas are marked, unless they are in code."""
    return _outside_code(text, _marked)


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """The Markdown, changed where it is no code."""
    blocks = text.replace(_MARK, "").split("```")
    for number in range(0, len(blocks), 2):
        parts = blocks[number].split("`")
        blocks[number] = "`".join(part if index % 2 else change(part) for index, part in enumerate(parts))
    return "```".join(blocks)


def _marked(text: str) -> str:
    for left, right in (("\\[", "\\]"), ("\\(", "\\)")):
        text = text.replace(left, _MARK + left).replace(right, right + _MARK)
    pieces = text.split("$$")
    marked = pieces[0]
    for number, piece in enumerate(pieces[1:]):
        marked += (f"$${_MARK}" if number % 2 else f"{_MARK}$$") + piece
    return marked
