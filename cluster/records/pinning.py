"""Makes a curated answer of a cached one."""

from cluster.records.cache import show
from cluster.records.client import BlockingRedis
from cluster.records.curated import CuratedAnswer, CuratedError, new_answer
from cluster.records.team_records import NotFound


def pinned(cache: BlockingRedis, key: str, author: str, valid_until: float = 0.0, corrected: str = "") -> CuratedAnswer:
    """The cached answer with this key, as a curated one of its namespace, for every model. It is not stored yet.

    cache: the answers' Redis. corrected: another text in its place. Raises NotFound, CuratedError.
    """
    shown = show(cache, key)
    if shown is None:
        raise NotFound("no answer is cached under this key")
    if not shown["question"]:
        raise CuratedError(
            "only an answer to the first question of a conversation can be pinned, and none that had to be JSON or a "
            "tool call: import its text instead"
        )
    namespace, question = shown["namespace"], shown["question"]
    if corrected.strip():
        return new_answer(namespace, question, corrected, author=author, valid_until=valid_until)
    [choice] = shown["choices"]
    if choice["finish"] != "stop" or not choice["text"].strip():
        raise CuratedError("this answer is not complete: import its text instead")
    return new_answer(namespace, question, choice["text"], author=author, valid_until=valid_until)
