"""How sizes and counts are written for people."""


def format_bytes(size: int) -> str:
    """A number of bytes with its unit: 18.2 GiB, or 17 MiB for less than 0.1 GiB."""
    gib = size / 2**30
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{size / 2**20:.0f} MiB"


def plural(count: int, noun: str) -> str:
    """A count and its noun: 1 replica, 2 replicas."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
