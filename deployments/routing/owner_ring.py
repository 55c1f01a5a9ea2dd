"""Consistent hashing (Karger et al., 1997): all routers name the same replica for a key, without asking each other."""

from bisect import bisect
from collections.abc import Iterator
from hashlib import blake2b

_POINTS = 64
"""Points of each replica on the ring: its share of the keys differs from another's by about an eighth."""
_NUMBER_BITS = 24
_NUMBER = (1 << _NUMBER_BITS) - 1


class OwnerRing:
    """Replicas around a ring. A key belongs to the replica whose point comes next; a replica that joins or leaves
    changes only the owners of its own keys."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._joined = 0
        self._points: list[int] = []
        """In order: a hash, and in the lowest bits the number of the replica."""
        self._new: list[int] = []

    def add(self, name: str) -> None:
        """Adds a replica."""
        number = self._joined = (self._joined + 1) & _NUMBER
        self._names[number], self._numbers[name] = name, number
        for start in range(0, _POINTS, 8):
            digest = blake2b(name.encode(), salt=start.to_bytes(2, "big"), digest_size=64).digest()
            hashes = (int.from_bytes(digest[at : at + 8], "big") for at in range(0, 64, 8))
            self._new += [point & ~_NUMBER | number for point in hashes]

    def remove(self, name: str) -> None:
        """Removes a replica."""
        del self._names[self._numbers.pop(name)]

    def owners(self, key: bytes) -> Iterator[str]:
        """The owner of a key of at least 8 bytes, then who would own it without the first, and so on."""
        self._settle()
        points = self._points
        start = bisect(points, int.from_bytes(key[:8], "big"))
        passed: set[int] = set()
        for index in range(len(points)):
            number = points[(start + index) % len(points)] & _NUMBER
            if number not in passed and number in self._names:
                passed.add(number)
                yield self._names[number]

    def _settle(self) -> None:
        """Sorts new points in, and drops those of replicas that left: at once, since replicas come in groups."""
        if self._new or len(self._points) > _POINTS * len(self._names):
            # Mostly sorted already, which makes it fast.
            self._points = sorted(
                [point for points in (self._points, self._new) for point in points if point & _NUMBER in self._names]
            )
            self._new = []
