"""Curated answers as the teams' Redis holds them: what people have approved, for as long as they want it.

One hash has the records. A sorted set orders their ids by the number of their last change, so that a router reads only
what changed since it looked (`deployments.cache.curated`); ids of removed answers stay in it for a while. Another hash
counts answers and bytes of each namespace, so that every write is checked against the limits in the same step.
"""

import math
import time
from collections.abc import Iterable, Mapping
from hashlib import blake2b

import msgspec

from cluster.records.client import BlockingRedis
from cluster.records.sealing import Unreadable, seal, unseal_record
from cluster.records.team_records import AlreadyExists, NotFound, TeamsError

ANSWERS, CHANGES, VERSION = "dray:{teams}:curated", "dray:{teams}:curated-changes", "dray:{teams}:curated-version"
FLOOR = "dray:{teams}:curated-floor"
"""Changes up to this version are forgotten: a copy that is older is read again as a whole."""
_SIZES = "dray:{teams}:curated-sizes"
MODELS = "dray:{teams}:models"
"""A hash: for each served name the exact model (its fingerprint), and since when in place of another."""
MAX_ANSWERS, MAX_BYTES = 20_000, 16 * 2**20
"""Of one namespace."""
MAX_ALL_ANSWERS, MAX_ALL_BYTES = 50_000, 64 * 2**20
"""Of all namespaces together: every router holds them in memory."""
MAX_QUESTION, MAX_ANSWER, MAX_NAME = 2_000, 32_000, 200
"""Characters."""
_KEPT_REMOVALS = 10_000
_BATCH = 100
_ATTEMPTS = 20

# KEYS: answers, changes, version, floor, sizes. ARGV: limits of number and bytes, for a namespace and for all; removals
# to remember; then of each change the id, its namespace, its record or "", and the record that it replaces or "*".
_WRITE = """
local function limit(i) return tonumber(ARGV[i]) end
local function size(name) return tonumber(redis.call('HGET', KEYS[5], name) or '0') end
local more = {}
local function add(name, count)
  more[name] = (more[name] or 0) + count
end
for i = 6, #ARGV, 4 do
  local old = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  if ARGV[i + 3] ~= '*' and ARGV[i + 3] ~= old then return {'conflict', ARGV[i]} end
  local count = (ARGV[i + 2] ~= '' and 1 or 0) - (old ~= '' and 1 or 0)
  for _, owner in ipairs({':' .. ARGV[i + 1], ''}) do
    add('n' .. owner, count)
    add('b' .. owner, #ARGV[i + 2] - #old)
  end
end
for name, count in pairs(more) do
  local largest = limit((name:sub(1, 1) == 'n' and 1 or 2) + (#name > 1 and 0 or 2))
  if count > 0 and size(name) + count > largest then return {'full', name} end
end
for name, count in pairs(more) do
  if size(name) + count > 0 then redis.call('HINCRBY', KEYS[5], name, count) else redis.call('HDEL', KEYS[5], name) end
end
for i = 6, #ARGV, 4 do
  if ARGV[i + 2] == '' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
  redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[i])
end
if redis.call('ZCARD', KEYS[2]) > redis.call('HLEN', KEYS[1]) + limit(5) then
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[4], redis.call('GET', KEYS[3]))
end
return {'ok', ''}
"""

# KEYS: models. ARGV: the time; then of each served model its name and fingerprint.
PUBLISH_MODELS = """
local old = redis.call('HGETALL', KEYS[1])
local known = {}
for i = 1, #old, 2 do known[old[i]] = old[i + 1] end
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do
  local before = known[ARGV[i]] or ''
  local same = before:sub(1, #ARGV[i + 1] + 1) == ARGV[i + 1] .. ' '
  local since = #old == 0 and '0' or ARGV[1]
  redis.call('HSET', KEYS[1], ARGV[i], same and before or ARGV[i + 1] .. ' ' .. since)
end
return 1
"""


class CuratedError(TeamsError):
    """The change is not possible; the message says why."""


class CuratedAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer that people have approved.

    id: of this question in this namespace, for this model. model: the only one that it answers for; empty: all.
    changed, valid_until: Unix times; valid_until 0: forever.
    """

    id: str
    namespace: str
    question: str
    answer: str
    changed: float
    model: str = ""
    author: str = ""
    valid_until: float = 0.0

    def is_valid(self, now: float) -> bool:
        """Whether it may be given at this Unix time."""
        return not self.valid_until or now < self.valid_until

    def is_outdated(self, served: Mapping[str, float]) -> bool:
        """Whether nobody has changed it since its model was replaced, or all were. served: as `served_models` returns
        it."""
        if not self.model:
            return bool(served) and self.changed < min(served.values())
        return bool(served) and self.changed < served.get(self.model, math.inf)


class ListedAnswer(msgspec.Struct, frozen=True):
    """A curated answer as people see it. outdated: made for an older model than the one that is served. expired: its
    valid_until is over, so it is not given."""

    id: str
    namespace: str
    question: str
    answer: str
    model: str
    author: str
    changed: float
    valid_until: float
    outdated: bool
    expired: bool

    @classmethod
    def of(cls, answer: CuratedAnswer, served: Mapping[str, float]) -> "ListedAnswer":
        fields = {name: getattr(answer, name) for name in cls.__struct_fields__[:-2]}
        return cls(**fields, outdated=answer.is_outdated(served), expired=not answer.is_valid(time.time()))


_encode = msgspec.json.Encoder().encode
_encode_names = msgspec.msgpack.Encoder().encode
_decode = msgspec.json.Decoder(CuratedAnswer).decode


def encode_answer(answer: CuratedAnswer) -> bytes:
    """The record of an answer, encrypted if that is on."""
    return seal(_encode(answer), _place(answer.id))


def decode_answer(record: bytes, number: str) -> CuratedAnswer | None:
    """The answer in the record with this id; None if it cannot be decrypted. Raises msgspec.MsgspecError."""
    body = unseal_record(record, _place(number))
    return _decode(body) if body is not None else None


def _place(number: str) -> str:
    return f"{ANSWERS} {number}"


def new_answer(
    namespace: str, question: str, answer: str, *, model: str = "", author: str = "", valid_until: float = 0.0
) -> CuratedAnswer:
    """An answer, changed now. Raises CuratedError."""
    question, answer = question.strip(), answer.strip()
    for name, text, max_characters in (
        ("question", question, MAX_QUESTION),
        ("answer", answer, MAX_ANSWER),
        ("namespace", namespace, MAX_NAME),
    ):
        if not 0 < len(text) <= max_characters:
            raise CuratedError(f"{name} must have 1 to {max_characters:,} characters")
    for name, text in (("model", model), ("author", author)):
        if len(text) > MAX_NAME:
            raise CuratedError(f"{name} must have at most {MAX_NAME} characters")
    number = blake2b(_encode_names((namespace, model, question)), digest_size=20).hexdigest()
    return CuratedAnswer(number, namespace, question, answer, time.time(), model, author, valid_until)


def put_answers(client: BlockingRedis, answers: Iterable[CuratedAnswer]) -> int:
    """Adds answers, in place of those to the same questions. Returns their number. Raises CuratedError."""
    newest = list({answer.id: answer for answer in answers}.values())
    for start in range(0, len(newest), _BATCH):
        changes: list[str | bytes] = []
        for answer in newest[start : start + _BATCH]:
            changes += [answer.id, answer.namespace, encode_answer(answer), "*"]
        _write(client, changes)
    return len(newest)


def read_answer(client: BlockingRedis, number: str) -> CuratedAnswer:
    """The answer with this id. Raises NotFound, Unreadable."""
    return _readable(_record(client, number), number)


def list_answers(client: BlockingRedis, namespace: str = "", search: str = "") -> list[CuratedAnswer]:
    """The answers of a namespace, or of all, whose question or answer contains the text; by namespace and question."""
    with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(ANSWERS)
        [records] = pipe.execute()
    wanted = search.casefold()
    answers = [
        answer
        for number, record in records.items()
        if (answer := decode_answer(record, number.decode()))
        and namespace in ("", answer.namespace)
        and (wanted in answer.question.casefold() or wanted in answer.answer.casefold())
    ]
    return sorted(answers, key=lambda answer: (answer.namespace, answer.question, answer.model))


def edit_answer(client: BlockingRedis, number: str, changes: Mapping[str, str | float]) -> CuratedAnswer:
    """Changes fields of an answer and returns it; another question, namespace or model gives it another id.

    Raises NotFound, Unreadable, AlreadyExists where the other question has an answer, CuratedError.
    """
    for _ in range(_ATTEMPTS):
        record = _record(client, number)
        old = _readable(record, number)
        fields = {name: getattr(old, name) for name in ("namespace", "question", "answer", "model", "author")}
        merged = {**fields, "valid_until": old.valid_until, **changes}
        new = new_answer(**merged)
        write: list[str | bytes] = [new.id, new.namespace, encode_answer(new), record if new.id == number else ""]
        if new.id != number:
            write += [number, old.namespace, "", record]
        if (conflict := _try_to_write(client, write)) is None:
            return new
        if conflict != number:
            raise AlreadyExists(f"this question has a curated answer already: {conflict}")
    raise CuratedError("others keep changing this answer: try again")


def remove_answer(client: BlockingRedis, number: str) -> CuratedAnswer:
    """Removes an answer and returns it. Raises NotFound, Unreadable."""
    answer = read_answer(client, number)
    _write(client, [number, answer.namespace, "", "*"])
    return answer


def reseal_answers(client: BlockingRedis, *, plain: bool) -> int:
    """Writes all answers anew, encrypted if that is on; plain: not encrypted. Returns their number.

    Raises Unreadable, CuratedError.
    """
    written = 0
    for number in [name.decode() for name in client.hgetall(ANSWERS)]:
        for _ in range(_ATTEMPTS):
            if (record := client.hget(ANSWERS, number)) is None:
                break  # removed meanwhile
            answer = _readable(record, number)
            new = _encode(answer) if plain else encode_answer(answer)
            if _try_to_write(client, [number, answer.namespace, new, record]) is None:
                written += 1
                break
    return written


def served_models(client: BlockingRedis) -> dict[str, float]:
    """The names of the models that routers serve, each with the Unix time since when in place of another; 0: always.

    Empty until there is a curated answer.
    """
    return {name.decode(): float(value.split()[-1]) for name, value in client.hgetall(MODELS).items()}


def _readable(record: bytes, number: str) -> CuratedAnswer:
    if answer := decode_answer(record, number):
        return answer
    raise Unreadable.record(f"curated answer {number}")


def _record(client: BlockingRedis, number: str) -> bytes:
    if (record := client.hget(ANSWERS, number)) is not None:
        return record
    raise NotFound(f"no curated answer has the id {number[:64]}")


def _write(client: BlockingRedis, changes: list[str | bytes]) -> None:
    if _try_to_write(client, changes) is not None:
        raise CuratedError("somebody else changed this answer at the same time: try again")


def _try_to_write(client: BlockingRedis, changes: list[str | bytes]) -> str | None:
    """Writes all changes or none. Returns the id of an answer that is not as expected. Raises CuratedError."""
    limits = map(str, (MAX_ANSWERS, MAX_BYTES, MAX_ALL_ANSWERS, MAX_ALL_BYTES, _KEPT_REMOVALS))
    reply = client.eval(_WRITE, 5, ANSWERS, CHANGES, VERSION, FLOOR, _SIZES, *limits, *changes)
    assert isinstance(reply, list)
    if (outcome := reply[0].decode()) == "full":
        raise CuratedError(_full(reply[1].decode()))
    return reply[1].decode() if outcome == "conflict" else None


def _full(name: str) -> str:
    kind, _, namespace = name.partition(":")
    number, size = (MAX_ANSWERS, MAX_BYTES) if namespace else (MAX_ALL_ANSWERS, MAX_ALL_BYTES)
    limit = f"{number:,}" if kind == "n" else f"{size // 2**20} MiB of"
    whose = f"namespace {namespace}" if namespace else "all namespaces together"
    return f"{whose} can have at most {limit} curated answers: remove some first"
