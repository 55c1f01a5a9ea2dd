"""The blocks of the KV cache: which are free, which are in use, and which hold the computed start of a prompt."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence


class BlockPool:
    """Hands out KV blocks by number, and finds computed ones again by their key.

    A block has a key once all its tokens are computed; the key identifies all tokens up to the block's end. Blocks with
    a key that nobody uses stay cached, and the least recently used one is handed out when no other is free.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.time) -> None:
        """capacity: number of blocks. clock: Unix time."""
        self.capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))
        self._users = [0] * capacity
        self._keys: list[bytes | None] = [None] * capacity
        self._cached: dict[bytes, int] = {}
        self._idle: OrderedDict[int, float] = OrderedDict()
        """Cached blocks without a user and when each was last used, the least recently used one first."""
        self._clock = clock
        self.evicted_before = 0.0
        """Until when the blocks were last used that were evicted; 0: none."""

    @property
    def available(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that sequences use."""
        return self.capacity - self.available

    def cached(self, key: bytes) -> bool:
        """Whether a computed block has this key."""
        return key in self._cached

    def shared(self, keys: Iterable[bytes]) -> int:
        """How many of a prompt's first blocks are cached and in use, so that one more user takes nothing from
        `available`. keys: of its blocks, in order."""
        count = 0
        for key in keys:
            block = self._cached.get(key)
            if block is None:
                break
            count += self._users[block] > 0
        return count

    def share(self, key: bytes) -> int:
        """Takes the cached block with this key for one more user. Raises KeyError if there is none."""
        block = self._cached[key]
        self._users[block] += 1
        self._idle.pop(block, None)
        return block

    def allocate(self, count: int) -> list[int]:
        """Takes this many blocks to write to. Raises NoBlocks, and takes none, if fewer are available."""
        if count > self.available:
            raise NoBlocks
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._users[block] = 1
            blocks.append(block)
        return blocks

    def register(self, block: int, key: bytes) -> None:
        """Records that all tokens of a block are computed. The first block with a key keeps it."""
        if key not in self._cached:
            self._cached[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Gives up the blocks of one user, in the order of its tokens."""
        # The last block first, so that it is also evicted first: without the blocks before it nothing finds it.
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if self._keys[block] is None:
                self._free.append(block)
            else:
                self._idle[block] = self._clock()

    def _evict(self) -> int:
        block, self.evicted_before = self._idle.popitem(last=False)
        key = self._keys[block]
        assert key is not None
        self._keys[block] = None
        del self._cached[key]
        return block


class NoBlocks(Exception):
    """Fewer KV blocks are available than were asked for."""
