"""Finds the answer that somebody votes on, and keeps the vote.

The id of a response from the cache ends in the answer's key there. What was generated, or joined another request, is
kept under the id of its response for a day, in the answers' Redis, for its own team only; so are the answers of the
responses API, whose ids are secrets of a fixed length.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from cluster.records.cache import digest_of, key_of, pack, unpack
from cluster.records.feedback import (
    ADD,
    COUNT_ASKED,
    COUNTS,
    KEYS,
    RECORDS,
    Feedback,
    Rating,
    arguments_of,
    decode_feedback,
    feedback_id,
    keys_of,
    with_vote,
)
from cluster.records.forget import GIVEN_PREFIX
from cluster.records.sealing import Unreadable
from deployments.cache.answers import AnswerCache
from deployments.cache.curated import CuratedAnswers
from deployments.cache.questions import MAX_QUESTION, last_text, question_of
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import GenerationRequest, GenerationResult

_CACHED = re.compile(r"(?:chatcmpl-|cmpl-|msg_)[0-9a-f]{32}([0-9a-f]{40})")
_ID = re.compile(r"(?:chatcmpl-|cmpl-|msg_)[0-9a-f]{32}|resp_[0-9a-f]{48}")
_DIGEST = re.compile(r"[0-9a-f]{40}")
_KEPT_S = 86_400
_MAX_ANSWER = 32_000
_FLUSH_S = 5.0
_MAX_ASKED = 10_000


class GivenAnswer(msgspec.Struct, frozen=True, array_like=True):
    """An answer that a client got. single: the question was the only message of its user. key: in the cache. user: the
    tag of who asked."""

    namespace: str
    model: str
    question: str
    answer: str
    single: bool
    key: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Vote:
    """What somebody says of an answer. correction: what it should have been. user: the tag of who says it."""

    rating: Rating
    reason: str | None = None
    correction: str | None = None
    user: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """A complete answer to a request. key: in the cache; empty: it was not looked up there. user: the tag of who
    asked."""

    namespace: str
    model: str
    request: GenerationRequest
    result: GenerationResult
    key: str
    user: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(GivenAnswer).decode


def cached_id(response_id: str, key: str) -> str:
    """The id of a response with the answer at this key."""
    return response_id + digest_of(key)


class FeedbackStore:
    """One router's access to feedback."""

    def __init__(
        self, teams: RedisStore, answers: RedisStore | None, cache: AnswerCache | None, curated: CuratedAnswers
    ) -> None:
        """answers, cache: None where answers are not cached."""
        self._teams = teams
        self._answers = answers
        self._cache = cache
        self._curated = curated
        self._add = teams.script(ADD)
        self._count_asked = teams.script(COUNT_ASKED)
        self._asked: Counter[str] = Counter()

    def asked(self, key: str) -> None:
        """Counts that the answer at this key was given once more."""
        if len(self._asked) < _MAX_ASKED:
            self._asked[digest_of(key)] += 1

    async def flush_forever(self) -> None:
        """Writes what was counted every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Writes what was counted. While Redis is away it is lost: it only orders a list."""
        asked, self._asked = self._asked, Counter()
        if asked:
            with suppress(RedisUnavailable):
                await self._count_asked([COUNTS, KEYS], *(part for count in asked.items() for part in count))

    async def remember(self, owner: str, response_id: str, given: Given) -> None:
        """Keeps an answer that was generated, for a vote on it."""
        if self._answers is None:
            return
        single = question_of(given.request)
        question = single or last_text(given.request)[:MAX_QUESTION]
        text, key = given.result.choices[0].text[:_MAX_ANSWER], digest_of(given.key) if given.key else ""
        answer = GivenAnswer(given.namespace, given.model, question, text, bool(single), key, given.user)
        with suppress(RedisUnavailable):
            place = _given_key(owner, response_id)
            await self._answers.execute("SET", place, pack(_encode(answer), place), "EX", _KEPT_S)

    async def find_by_id(self, owner: str, namespace: str, models: Collection[str], number: str) -> GivenAnswer | None:
        """The answer in the response with this id, if this owner got it. Raises RedisUnavailable."""
        if (cached := _CACHED.fullmatch(number)) is not None:
            return await self.find_by_key(namespace, models, cached[1])
        if self._answers is None or not _ID.fullmatch(number):
            return None
        place = _given_key(owner, number)
        stored = await self._answers.get(place)
        body = unpack(stored, place) if stored else None
        try:
            return _decode(body) if body is not None else None
        except msgspec.MsgspecError:
            return None

    async def find_by_key(self, namespace: str, models: Collection[str], digest: str) -> GivenAnswer | None:
        """The cached or curated answer of the namespace with this key. Raises RedisUnavailable."""
        if not _DIGEST.fullmatch(digest):
            return None
        if (curated := self._curated.get(namespace, digest)) is not None:
            return GivenAnswer(namespace, curated.model, curated.question, curated.answer, single=True, key=digest)
        for model in models if self._cache is not None else ():
            assert self._cache is not None
            if (stored := await self._cache.read(key_of(model, namespace, digest))) is not None:
                text = stored.choices[0].text[:_MAX_ANSWER]
                return GivenAnswer(namespace, model, stored.question, text, bool(stored.question), digest, stored.user)
        return None

    async def vote(self, team: str, given: GivenAnswer, vote: Vote, response_id: str = "") -> Feedback:
        """Keeps a vote. response_id: of the response with the answer, if known: another vote on it replaces the first,
        as a person thinks again, or says why. Raises RedisUnavailable."""
        number = feedback_id(team, given.question, given.answer)
        stored = await self._teams.execute("HGET", RECORDS, number)
        said = (given.namespace, given.model, given.question, given.answer, time.time(), given.key, given.single)
        new = Feedback(number, team, *said, users=tuple(user for user in (vote.user, given.user) if user))
        try:
            old = decode_feedback(stored, number) if stored else None
        except Unreadable as error:
            raise RedisUnavailable(str(error)) from None
        record = with_vote(old, new, vote.rating, vote.reason, vote.correction)
        await self._add(keys_of(team, response_id), *arguments_of(record, vote.rating))
        return record

    async def withhold(self, given: GivenAnswer) -> bool:
        """Takes an answer out of the cache; whether it was one of those. Raises RedisUnavailable."""
        if self._cache is None or not given.key or self._curated.get(given.namespace, given.key) is not None:
            return False
        await self._cache.withhold(key_of(given.model, given.namespace, given.key))
        return True


def _given_key(owner: str, response_id: str) -> str:
    return f"{GIVEN_PREFIX}{owner}:{response_id}"
