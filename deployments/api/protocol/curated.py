"""Curated answers in the admin API."""

from typing import Annotated, Literal

import msgspec

from cluster.records.curated import ListedAnswer

UnixTime = Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
"""Up to the year 9999. 0: forever."""


class CuratedAnswerParam(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question and the answer to it. namespace: empty: `cache.namespace`; a team's is team.NAME. model: the only one
    that it answers for; empty: all. author: empty: the admin key."""

    question: str
    answer: str
    namespace: str = ""
    model: str = ""
    author: str = ""
    valid_until: UnixTime = 0.0


class ImportAnswersRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that adds curated answers, in place of those to the same questions."""

    answers: Annotated[tuple[CuratedAnswerParam, ...], msgspec.Meta(min_length=1, max_length=1000)]


class UpdateAnswerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that changes a curated answer. Fields that it does not have stay as they are; the author becomes the
    admin key. Another question, namespace or model gives the answer another id."""

    question: str | msgspec.UnsetType = msgspec.UNSET
    answer: str | msgspec.UnsetType = msgspec.UNSET
    namespace: str | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    author: str | msgspec.UnsetType = msgspec.UNSET
    valid_until: UnixTime | msgspec.UnsetType = msgspec.UNSET


class PinAnswerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that makes a cached answer a curated one. key: its X-Dray-Cache-Key. answer: a correction of its
    text; empty: none."""

    key: str
    answer: str = ""
    author: str = ""
    valid_until: UnixTime = 0.0


class CuratedAnswers(msgspec.Struct, frozen=True):
    """Curated answers. has_more: there are others after the last one."""

    data: list[ListedAnswer]
    has_more: bool = False
    object: Literal["list"] = "list"


class AnswerDeletedResponse(msgspec.Struct, frozen=True):
    """The id of a curated answer that was deleted."""

    deleted: str
