"""The cache of scores: the same documents are not ranked for the same query twice.

Scores are stored as answers are (deployments.cache.answers), as a text with a list of numbers, so that their lifetime,
their limits and `dray cache` are the same.
"""

import time
from hashlib import blake2b

import msgspec

from cluster.records.cache import digest_of, key_of
from deployments.cache.answers import AnswerCache, CacheControl
from deployments.common.types import Choice, GenerationResult, Usage

_decode = msgspec.json.Decoder(list[float]).decode


class ScoreQuestion(msgspec.Struct, frozen=True, array_like=True):
    """What is to be scored.

    queries: one for all documents, or one for each. max_tokens: documents are cut to that.
    """

    queries: list[str]
    documents: list[str]
    max_tokens: int | None = None


class StoredScores(msgspec.Struct, frozen=True):
    """Scores and how many tokens were read for them. created: Unix time. key: where they are stored."""

    scores: list[float]
    tokens: int
    created: float
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """Of the response that returns them."""
        age = max(0, int(time.time() - self.created))
        return {"X-Dray-Cache": "hit", "X-Dray-Cache-Key": digest_of(self.key), "Age": str(age)}


class ScoreCache:
    """One router's access to stored scores."""

    def __init__(self, answers: AnswerCache) -> None:
        self._answers = answers

    def key(self, model: str, subject: str, namespace: str, question: ScoreQuestion) -> str:
        """The key of a question's scores. subject: all that they depend on beside the question."""
        covered = msgspec.msgpack.encode(("scores", subject, namespace, question))
        return key_of(model, namespace, blake2b(covered, digest_size=20).hexdigest())

    async def get(self, key: str, control: CacheControl) -> StoredScores | None:
        """The stored scores; None if there are none, they are too old, or Redis does not reply in time."""
        result = await self._answers.get(key)
        if result is None or not control.accepts(result):
            return None
        try:
            scores = _decode(result.choices[0].text)
        except msgspec.MsgspecError:
            return None
        return StoredScores(scores, result.usage.prompt_tokens, result.created, key)

    async def put(self, key: str, scores: list[float], tokens: int, control: CacheControl) -> None:
        """Stores scores, if Redis takes them."""
        choice = Choice("", msgspec.json.encode(scores).decode(), "stop")
        await self._answers.put(key, GenerationResult((choice,), Usage(tokens, 0, 0, 0), time.time()), control)
