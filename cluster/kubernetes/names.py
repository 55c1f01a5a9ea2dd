"""Names that an API server accepts."""

import re
from collections.abc import Iterable
from hashlib import blake2b

_MAX_LABEL = 63


def dns_label(text: str) -> str:
    """The text as the name of a container or the value of a label: RFC 1123, at most 63 characters.

    A longer one is cut and gets a digest of the whole.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if name and len(name) <= _MAX_LABEL else _with_digest(name, text)


def distinct_labels(texts: Iterable[str]) -> dict[str, str]:
    """A name for each text, as `dns_label` makes them, and a digest where two would be the same."""
    names: dict[str, str] = {}
    for text in texts:
        name = dns_label(text)
        names[text] = _with_digest(name, text) if name in names.values() else name
    return names


def _with_digest(name: str, text: str) -> str:
    digest = blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{name[: _MAX_LABEL - len(digest) - 1].rstrip('-')}-{digest}".lstrip("-")
