"""Deletes what is kept of one user of a team: cached answers, stored responses, and feedback.

A request names its user (`safety_identifier`, `user`, or `metadata.user_id` of messages). What is kept for it has a tag
instead: a digest of the team and the user, from which nobody reads the user. Everything is looked through, which takes
seconds; in exchange no list of users is kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from cluster.records.cache import PREFIX, batches, unpack
from cluster.records.client import BlockingRedis
from cluster.records.feedback import RECORDS, all_feedback, remove_feedback
from cluster.records.responses import all_responses

GIVEN_PREFIX = "dray:given:"
"""Beginning of the keys of answers that can be voted on."""
_NEAR_PREFIX = "dray:near:"
_BATCH = 200
_DROP_ROWS = """
local removed = 0
for _, row in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
  for i = 1, #row[2], 2 do
    if row[2][i] == 'key' then
      for _, key in ipairs(ARGV) do
        if key == row[2][i + 1] then removed = removed + redis.call('XDEL', KEYS[1], row[1]) end
      end
    end
  end
end
return removed
"""
"""Of a stream of questions, removes those whose answer is at one of these keys."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How much was deleted."""

    answers: int
    responses: int
    feedback: int


def user_tag(owner: str, user: str) -> str:
    """What stands for a user of an owner: `team.NAME`, or the namespace of callers without a key."""
    return blake2b(msgspec.msgpack.encode((owner, user)), digest_size=16).hexdigest()


def forget(teams: BlockingRedis, answers: BlockingRedis | None, tag: str) -> Forgotten:
    """Deletes all that has this tag. answers: the answers' Redis; None where answers are not cached."""
    found = [number for number, record in _feedback(teams) if tag in record]
    for number in found:
        remove_feedback(teams, number)
    if answers is None:
        return Forgotten(0, 0, len(found))
    cached = _delete(answers, f"{PREFIX}*", _cached_tag, tag)
    _delete(answers, f"{GIVEN_PREFIX}*", _last_field, tag)
    responses = _delete(answers, all_responses(), _last_field, tag)
    for start in range(0, len(cached), _BATCH):
        keys = cached[start : start + _BATCH]
        for stream in list(answers.scan_iter(match=f"{_NEAR_PREFIX}*", count=_BATCH)):
            answers.eval(_DROP_ROWS, 1, stream.decode(), *keys)
    return Forgotten(len(cached), len(responses), len(found))


def _delete(client: BlockingRedis, pattern: str, tag_of: Callable[[list[Any]], object], tag: str) -> list[bytes]:
    """Deletes the values with this tag; returns their keys."""
    found: list[bytes] = []
    for keys in batches(client.scan_iter(match=pattern, count=_BATCH), _BATCH):
        # One command a key, in a pipeline: in a cluster the keys are on different nodes.
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.get(key.decode())
            stored = pipe.execute()
        tagged = [key for key, value in zip(keys, stored, strict=True) if value and _has_tag(value, key, tag_of, tag)]
        with client.pipeline(transaction=False) as pipe:
            for key in tagged:
                pipe.unlink(key)
            pipe.execute()
        found += tagged
    return found


def _has_tag(value: bytes, key: bytes, tag_of: Callable[[list[Any]], object], tag: str) -> bool:
    body = unpack(value, key.decode())
    try:
        return body is not None and tag_of(msgspec.msgpack.decode(body)) == tag
    except (msgspec.MsgspecError, TypeError, IndexError):
        return False


def _cached_tag(fields: list[Any]) -> object:
    """Of GenerationResult in deployments.common.types, which this package does not import."""
    return fields[5] if len(fields) > 5 else ""


def _last_field(fields: list[Any]) -> object:
    """Of StoredResponse and GivenAnswer in deployments.cache."""
    return fields[-1]


def _feedback(client: BlockingRedis) -> Iterator[tuple[str, tuple[str, ...]]]:
    with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(RECORDS)
        [records] = pipe.execute()
    for feedback in all_feedback(records):
        yield feedback.id, feedback.users
