"""The changes that the autoscaling policy has made, for as long as they are of interest.

The policy runs in Serve's controller, which reaches neither the routers' files nor their Redis on Kubernetes. So they
are in Ray's own key-value store: the controller writes there when the number of a model's replicas changes, and routers
read it every few seconds.
"""

import logging
import threading
import time
from collections.abc import Iterable
from functools import cache

import msgspec

from cluster.records.activity import ScalingChange
from cluster.scaling_metrics import Decision

log = logging.getLogger("dray.scaling")

MAX_CHANGES = 100
"""Of one model."""
_NAMESPACE = b"dray"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[ScalingChange]).decode


class ScalingHistory:
    """Finds the changes in the decisions of one process."""

    def __init__(self) -> None:
        self._last: dict[str, Decision] = {}

    def change(self, decision: Decision, now: float) -> ScalingChange | None:
        """What has changed between the decision before and this one; None if the number of replicas has not. now: Unix
        time."""
        before, self._last[decision.model] = self._last.get(decision.model), decision
        if before is None or before.replicas == decision.replicas:
            return None
        return ScalingChange(
            now,
            decision.model,
            before.replicas,
            decision.replicas,
            before.reason,
            before.waiting_tokens,
            before.predicted_wait_s,
            before.target_wait_s,
            before.min_replicas,
            before.max_replicas,
        )

    def note(self, decision: Decision) -> None:
        """Stores what has changed, in a thread: the controller must not wait for it."""
        if (change := self.change(decision, time.time())) is not None:
            threading.Thread(target=_store, args=[change], daemon=True).start()


@cache
def history() -> ScalingHistory:
    """The one of this process. Serve creates the policy anew with each deployment, which loses what it has noted."""
    return ScalingHistory()


def read_changes(models: Iterable[str]) -> list[ScalingChange]:
    """The last changes of these models, the oldest first. Empty outside of Ray's processes."""
    from ray.experimental import internal_kv

    if not internal_kv._internal_kv_initialized():
        return []
    changes: list[ScalingChange] = []
    for model in models:
        changes += _parsed(internal_kv._internal_kv_get(_key(model), namespace=_NAMESPACE))
    return changes


def _store(change: ScalingChange) -> None:
    from ray.experimental import internal_kv

    if not internal_kv._internal_kv_initialized():
        return
    try:
        known = _parsed(internal_kv._internal_kv_get(_key(change.model), namespace=_NAMESPACE))
        stored = _encode([*known, change][-MAX_CHANGES:])
        internal_kv._internal_kv_put(_key(change.model), stored, namespace=_NAMESPACE)
    except Exception:  # Ray's errors share no type
        log.exception("a change of a model's replicas is missing in their history")


def _parsed(stored: bytes | None) -> list[ScalingChange]:
    try:
        return _decode(stored) if stored else []
    except msgspec.MsgspecError:
        return []


def _key(model: str) -> bytes:
    return f"dray:scaling:{model}".encode()
