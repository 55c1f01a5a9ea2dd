"""Which rules of a routed model a request meets.

Only texts are looked at, so that a choice costs no tokenizer, and equal requests always meet the same rules.
"""

import json
import re
from dataclasses import dataclass
from typing import Literal

from cluster.settings import RouteRule
from deployments.common.types import GenerationRequest

_LOOKED_AT = 16_384
"""Characters of the user's last message in which keywords and the language are looked for: half of them at its start,
half at its end."""
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_OTHER_LETTER = re.compile(r"[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LETTERS_PER_HAN = 4
"""So many letters say about as much as one Chinese character."""
_HAN_PER_KANA = 10
"""Japanese has more kana than one for so many Chinese characters; Chinese has hardly any."""


@dataclass(frozen=True, slots=True)
class RequestTraits:
    """What rules look at. question: the part of the user's last message that is looked at, in lower case."""

    characters: int
    turns: int
    question: str
    language: Literal["chinese", "other"]
    tools: bool
    structured: bool
    thinking: bool


def traits_of(request: GenerationRequest, *, asks_thinking: bool) -> RequestTraits:
    """The traits of a request. asks_thinking: its API has a field that says so; template arguments count by
    themselves."""
    if request.messages:
        users = [message.content for message in request.messages if message.role == "user"]
        characters = sum(len(message.content) for message in request.messages if message.role != "system")
        turns, question = len(users), users[-1] if users else ""
    else:
        question = request.prompt if isinstance(request.prompt, str) else ""
        characters, turns = len(request.prompt), 1
    if len(question) > _LOOKED_AT:
        question = f"{question[: _LOOKED_AT // 2]}\n{question[-_LOOKED_AT // 2 :]}"
    return RequestTraits(
        characters,
        turns,
        question.casefold(),
        language_of(question),
        bool(request.tools) and request.tool_choice.mode != "none",
        bool(request.schema or request.constraint),
        asks_thinking or _thinks(request),
    )


def matches(rule: RouteRule, traits: RequestTraits) -> bool:
    """Whether all conditions of the rule hold."""
    return (
        (rule.max_chars is None or traits.characters <= rule.max_chars)
        and (rule.min_chars is None or traits.characters >= rule.min_chars)
        and (rule.max_turns is None or traits.turns <= rule.max_turns)
        and (rule.min_turns is None or traits.turns >= rule.min_turns)
        and (rule.language is None or traits.language == rule.language)
        and (rule.tools is None or traits.tools == rule.tools)
        and (rule.structured is None or traits.structured == rule.structured)
        and (rule.thinking is None or traits.thinking == rule.thinking)
        and (not rule.keywords or any(has_keyword(traits.question, keyword) for keyword in rule.keywords))
    )


def has_keyword(text: str, keyword: str) -> bool:
    """Whether the text, in lower case, has the keyword in any case. Words of alphabets count only as whole words:
    `prove` is not in `improve`. Takes time linear in the text."""
    keyword = keyword.casefold()
    start = text.find(keyword)
    while start >= 0:
        end = start + len(keyword)
        if not _continues(text[start - 1 : start], keyword[0]) and not _continues(text[end : end + 1], keyword[-1]):
            return True
        start = text.find(keyword, start + 1)
    return False


def _continues(neighbour: str, edge: str) -> bool:
    """Whether a character beside a keyword's first or last one makes a longer word of it."""
    return _in_word(neighbour) and _in_word(edge)


def _in_word(character: str) -> bool:
    """Whether spaces set off words with this character: a digit, or a letter that has a case, as in Latin and Greek."""
    return character.isdigit() or character.lower() != character.upper()


def language_of(text: str) -> Literal["chinese", "other"]:
    """The language of a text, by its script. One foreign word in either does not change it."""
    han = len(_HAN.findall(text))
    if not han or len(_KANA.findall(text)) * _HAN_PER_KANA > han:
        return "other"
    return "chinese" if han * _LETTERS_PER_HAN >= len(_OTHER_LETTER.findall(text)) else "other"


def _thinks(request: GenerationRequest) -> bool:
    """Whether the request sets how much the model thinks, and not to nothing."""
    if request.max_thinking_tokens:
        return True
    if request.template_args == "{}":
        return False
    arguments = json.loads(request.template_args)
    return arguments.get("enable_thinking") is True or arguments.get("reasoning_effort") not in (None, "none")
