"""Whether the keys of encryption fit what Redis holds, and how all lasting records change to other keys.

A known text, encrypted by the key in use, is kept beside the teams: from it a process sees at once that it lacks the
right key. Answers and responses expire; curated answers and feedback last, so they are encrypted anew (`dray privacy
reseal`) before an old key can go.
"""

from dataclasses import dataclass

from cluster.records.client import BlockingRedis
from cluster.records.curated import reseal_answers
from cluster.records.feedback import reseal_feedback
from cluster.records.sealing import Unreadable, seal, unseal_record, vault
from cluster.settings import PRIVACY_KEYS

CHECK = "dray:{teams}:privacy"
_TEXT = b"dray"


@dataclass(frozen=True, slots=True)
class Resealed:
    """How many records were written anew."""

    curated: int
    feedback: int


def fault_of(check: bytes | None) -> str:
    """Why this process could not read what others have encrypted; empty if it can. check: the value of CHECK.

    Raises SealingError.
    """
    if check is None or unseal_record(check, CHECK) == _TEXT:
        return ""
    if vault() is None:
        return f"what Redis keeps is encrypted, and {PRIVACY_KEYS} is not set: set it to read it"
    return f"what Redis keeps was encrypted with a key that is not in {PRIVACY_KEYS}: add that one too"


def renewed_check(check: bytes | None) -> bytes | None:
    """The value that CHECK should have instead; None where it is right. Raises SealingError."""
    own = vault()
    if own is None or (check is not None and own.is_current(check)):
        return None
    return seal(_TEXT, CHECK)


def check_keys(client: BlockingRedis, *, renew: bool = False) -> str:
    """Why this process could not read what the teams' Redis holds; empty if it can. renew: let the others check
    against the key that encrypts now. Raises SealingError."""
    stored = client.get(CHECK)
    if not (fault := fault_of(stored)) and renew and (value := renewed_check(stored)) is not None:
        with client.pipeline() as pipe:
            pipe.set(CHECK, value)
            pipe.execute()
    return fault


def reseal(client: BlockingRedis, *, plain: bool = False) -> Resealed:
    """Writes all curated answers and all feedback anew, encrypted with the first key; plain: not encrypted.

    client: of the teams. Raises Unreadable for the first record that no key fits; nothing of it is lost.
    """
    if fault := check_keys(client):
        raise Unreadable(fault)
    done = Resealed(reseal_answers(client, plain=plain), reseal_feedback(client, plain=plain))
    with client.pipeline() as pipe:
        if plain:
            pipe.delete(CHECK)
        else:
            pipe.set(CHECK, seal(_TEXT, CHECK))
        pipe.execute()
    return done
