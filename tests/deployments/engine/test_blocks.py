"""The pool of KV blocks says until when the blocks were last used that it has evicted."""

from deployments.engine.blocks import BlockPool


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_pool_knows_until_when_evicted_blocks_were_used() -> None:
    clock = _Clock()
    pool = BlockPool(4, clock)

    def run(keys: list[bytes]) -> None:
        """A sequence that computes these blocks, or shares them, and ends."""
        blocks = [pool.share(key) if pool.cached(key) else pool.allocate(1)[0] for key in keys]
        for block, key in zip(blocks, keys, strict=True):
            pool.register(block, key)
        clock.now += 1
        pool.release(blocks)

    run([b"a", b"b"])  # until 101
    run([b"c", b"d"])  # until 102
    assert pool.evicted_before == 0.0
    run([b"a"])  # until 103
    run([b"e"])
    assert pool.evicted_before == 101.0 and pool.cached(b"a") and not pool.cached(b"b")
    run([b"f", b"g"])
    assert pool.evicted_before == 102.0 and pool.cached(b"a")
    run([b"h"])
    assert pool.evicted_before == 103.0 and not pool.cached(b"a")
