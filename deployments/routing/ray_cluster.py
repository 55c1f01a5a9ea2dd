"""Which Ray cluster this process belongs to: several may use one Redis, in different zones or during an upgrade."""

from hashlib import blake2b

import ray


def cluster_id() -> str:
    """A name that the processes of one Ray cluster have in common, and no other cluster has; it survives a restart of
    the head. Empty outside of Ray's processes."""
    if not ray.is_initialized():
        return ""
    session: str = ray.get_runtime_context().get_session_name()
    return blake2b(session.encode(), digest_size=8).hexdigest()
