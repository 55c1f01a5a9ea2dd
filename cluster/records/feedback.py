"""What people say of answers, as the teams' Redis holds it: a record for each question and answer of a team.

One hash has the records, another the counters of votes and of how often the answer was asked for. For each team a
sorted set orders its records by their last vote, so that the oldest go when there are too many.
"""

import base64
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from cluster.records.client import BlockingRedis
from cluster.records.curated import CuratedAnswer, CuratedError, new_answer, put_answers
from cluster.records.sealing import Unreadable, seal, unseal_record
from cluster.records.team_records import NotFound

RECORDS, COUNTS, KEYS = "dray:{teams}:feedback", "dray:{teams}:feedback-counts", "dray:{teams}:feedback-keys"
"""KEYS: the ids of records by the key of their answer in the cache."""
_BYTES = "dray:{teams}:feedback-bytes"
MAX_PER_TEAM, MAX_TEAM_BYTES = 5_000, 8 * 2**20
MAX_REASON, MAX_REASONS = 500, 5
_MAX_USERS = 200
_VOTE_KEPT_S = 86_400
"""As long as an answer is known by the id of its response."""

Rating = Literal["up", "down"]

ADD = """
local old = redis.call('HGET', KEYS[1], ARGV[1]) or ''
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] ~= '' then
  local before = KEYS[6] and redis.call('SET', KEYS[6], ARGV[3], 'GET', 'EX', ARGV[8])
  local counter = before and ARGV[1] .. '|' .. before
  if before and tonumber(redis.call('HGET', KEYS[2], counter) or '0') > 0 then
    redis.call('HINCRBY', KEYS[2], counter, -1)
  end
  redis.call('HINCRBY', KEYS[2], ARGV[1] .. '|' .. ARGV[3], 1)
end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[3], ARGV[4], ARGV[1]) end
redis.call('ZADD', KEYS[4], ARGV[5], ARGV[1])
local bytes = redis.call('HINCRBY', KEYS[5], KEYS[4], #ARGV[2] - #old)
while redis.call('ZCARD', KEYS[4]) > tonumber(ARGV[6]) or bytes > tonumber(ARGV[7]) do
  local id = redis.call('ZRANGE', KEYS[4], 0, 0)[1]
  local record = redis.call('HGET', KEYS[1], id) or '{}'
  redis.call('HDEL', KEYS[3], cjson.decode(record)['key'] or '')
  redis.call('HDEL', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id .. '|up', id .. '|down', id .. '|asked')
  redis.call('ZREM', KEYS[4], id)
  bytes = redis.call('HINCRBY', KEYS[5], KEYS[4], -#record)
  if redis.call('ZCARD', KEYS[4]) == 0 then break end
end
return 1
"""
"""KEYS: as `keys_of` has them. ARGV: as `arguments_of` has them."""
_REMOVE = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1] .. '|up', ARGV[1] .. '|down', ARGV[1] .. '|asked')
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[1])
return redis.call('HINCRBY', KEYS[5], KEYS[4], -ARGV[3])
"""
"""KEYS: as `keys_of` has them. ARGV: id, the answer's key in the cache, bytes of the record."""
_REPLACE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('HINCRBY', KEYS[5], KEYS[4], #ARGV[3] - #ARGV[2])
return 1
"""
"""KEYS: as `keys_of` has them. ARGV: id, the record as it was read, and the one in its place."""
COUNT_ASKED = """
for i = 1, #ARGV, 2 do
  local id = redis.call('HGET', KEYS[2], ARGV[i])
  if id then redis.call('HINCRBY', KEYS[1], id .. '|asked', ARGV[i + 1]) end
end
return 1
"""
"""KEYS: counts, ids by key. ARGV: keys of answers in the cache, and how often each was asked for."""


class Feedback(msgspec.Struct, frozen=True):
    """What people said of one answer to one question.

    key: of the answer in the cache; empty: it is not there. question: the last message of the conversation. single: it
    was the only one, so that a curated answer can be made of it. correction: the last one that somebody wrote.
    accepted: the id of the curated answer that was made of it; empty: none yet. users: the tags of who asked and who
    voted (cluster.records.forget).
    """

    id: str
    team: str
    namespace: str
    model: str
    question: str
    answer: str
    changed: float
    key: str = ""
    single: bool = True
    reasons: tuple[str, ...] = ()
    correction: str = ""
    accepted: str = ""
    users: tuple[str, ...] = ()


class ListedFeedback(msgspec.Struct, frozen=True):
    """Feedback with its counters. asked: how often the answer was given since the first vote."""

    id: str
    team: str
    namespace: str
    model: str
    question: str
    answer: str
    up: int
    down: int
    asked: int
    reasons: tuple[str, ...]
    correction: str
    accepted: str
    changed: float


class _SealedFeedback(msgspec.Struct, frozen=True):
    """Encrypted feedback. The script reads its key, to remove the oldest records."""

    key: str
    sealed: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Feedback).decode
_decode_sealed = msgspec.json.Decoder(_SealedFeedback).decode
_SEALED = b'{"key":"'
"""How the record of encrypted feedback begins; that of other feedback begins with its id."""


def encode_feedback(record: Feedback) -> bytes:
    """The record as it is stored, encrypted if that is on."""
    plain = _encode(record)
    stored = seal(plain, _place(record.id))
    return plain if stored is plain else _encode(_SealedFeedback(record.key, base64.b64encode(stored).decode()))


def decode_feedback(stored: bytes, number: str) -> Feedback:
    """The record with this id. Raises Unreadable."""
    if not stored.startswith(_SEALED):
        return _decode(stored)
    body = unseal_record(base64.b64decode(_decode_sealed(stored).sealed), _place(number))
    if body is None:
        raise Unreadable.record(f"feedback {number}")
    return _decode(body)


def all_feedback(records: Mapping[bytes, bytes]) -> Iterator[Feedback]:
    """The records of the whole hash that can be decrypted."""
    for number, stored in records.items():
        with suppress(Unreadable):
            yield decode_feedback(stored, number.decode())


def _place(number: str) -> str:
    return f"{RECORDS} {number}"


def keys_of(team: str, response_id: str = "") -> list[str]:
    """The keys of the script that adds to a team's records: records, counts, ids by key, the team's order, bytes, and
    the vote on this response, if it is given: another vote on it replaces that one."""
    voted = [f"dray:{{teams}}:voted:{team}:{response_id}"] if response_id else []
    return [RECORDS, COUNTS, KEYS, f"dray:{{teams}}:feedback-of:{team}", _BYTES, *voted]


def arguments_of(record: Feedback, rating: Rating | None) -> list[str | bytes]:
    """Its arguments: id, record, rating, the answer's key in the cache, time, the limits of number and bytes,
    seconds for which it is known what was voted on a response.

    rating: of the vote; None: nobody has voted.
    """
    limits = (str(MAX_PER_TEAM), str(MAX_TEAM_BYTES), str(_VOTE_KEPT_S))
    return [record.id, encode_feedback(record), rating or "", record.key, f"{record.changed:.3f}", *limits]


def feedback_id(team: str, question: str, answer: str) -> str:
    """The id of the feedback on an answer: all votes on it have the same one."""
    return blake2b(msgspec.msgpack.encode((team, question, answer)), digest_size=20).hexdigest()


def list_feedback(client: BlockingRedis, team: str | None = None) -> list[ListedFeedback]:
    """The feedback of a team, or of all; what was voted down most first, then what was asked most."""
    with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(RECORDS)
        pipe.hgetall(COUNTS)
        records, counts = pipe.execute()
    listed = [_listed(record, counts) for record in all_feedback(records) if team in (None, record.team)]
    return sorted(listed, key=lambda one: (bool(one.accepted), -one.down, -one.asked, -one.up, one.id))


def accept(client: BlockingRedis, number: str, author: str, text: str = "") -> CuratedAnswer:
    """Makes a curated answer of the correction, or of this text, and returns it.

    Raises NotFound, Unreadable, CuratedError.
    """
    record = client.hget(RECORDS, number)
    if record is None:
        raise NotFound(f"no feedback has the id {number[:64]}")
    feedback = decode_feedback(record, number)
    if not (text := text.strip() or feedback.correction):
        raise CuratedError("nobody has written a correction: give the right answer")
    if not feedback.single or not feedback.question:
        raise CuratedError("its question belongs to a conversation, so no curated answer would be found for it")
    answer = new_answer(feedback.namespace, feedback.question, text, author=author)
    put_answers(client, [answer])
    accepted = msgspec.structs.replace(feedback, accepted=answer.id, correction=text)
    keys = keys_of(feedback.team)
    client.eval(ADD, len(keys), *keys, *arguments_of(accepted, None))
    return answer


def with_vote(
    old: Feedback | None, new: Feedback, rating: Rating, reason: str | None, correction: str | None
) -> Feedback:
    """The record after a vote."""
    known = old or new
    reasons = known.reasons if not reason else (f"{rating}: {reason}", *known.reasons)[:MAX_REASONS]
    return msgspec.structs.replace(
        known,
        reasons=reasons,
        correction=correction or known.correction,
        key=new.key or known.key,
        users=tuple(dict.fromkeys((*new.users, *known.users)))[:_MAX_USERS],
        changed=time.time(),
    )


def remove_feedback(client: BlockingRedis, number: str) -> None:
    """Deletes a record with its votes, if it is there."""
    record = client.hget(RECORDS, number)
    if record is not None:
        feedback = decode_feedback(record, number)
        keys = keys_of(feedback.team)
        client.eval(_REMOVE, len(keys), *keys, number, feedback.key, str(len(record)))


def reseal_feedback(client: BlockingRedis, *, plain: bool) -> int:
    """Writes all records anew, encrypted if that is on; plain: not encrypted. Returns their number.

    Raises Unreadable.
    """
    written = 0
    for name, stored in client.hgetall(RECORDS).items():
        number = name.decode()
        record = decode_feedback(stored, number)
        new = _encode(record) if plain else encode_feedback(record)
        keys = keys_of(record.team)
        written += int(str(client.eval(_REPLACE, len(keys), *keys, number, stored, new)))
    return written


def training_lines(listed: Iterable[ListedFeedback]) -> str:
    """The right answers as JSON Lines in OpenAI's format for fine-tuning; a corrected one also has what was wrong."""
    lines = []
    for one in listed:
        right = one.correction or (one.answer if one.up > one.down else "")
        if not right or not one.question:
            continue
        row: dict[str, Any] = {
            "messages": [{"role": "user", "content": one.question}, {"role": "assistant", "content": right}]
        }
        if one.correction and one.correction != one.answer:
            row["rejected"] = one.answer
        lines.append(msgspec.json.encode(row).decode() + "\n")
    return "".join(lines)


def _listed(record: Feedback, counts: Mapping[bytes, bytes]) -> ListedFeedback:
    fields = {name: getattr(record, name) for name in ListedFeedback.__struct_fields__ if hasattr(record, name)}
    fields |= {name: int(counts.get(f"{record.id}|{name}".encode(), 0)) for name in ("up", "down", "asked")}
    return ListedFeedback(**fields)
