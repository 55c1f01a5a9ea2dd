"""Sizes as people read them."""


def gib(size_bytes: int) -> str:
    """A size in GiB with one decimal: `0.7 GiB`."""
    return f"{size_bytes / 2**30:.1f} GiB"
