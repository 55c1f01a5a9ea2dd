"""Foreign GGUF files: whatever the header claims, reading it ends at once, within limits, and with the reason."""

import struct
from pathlib import Path
from typing import Any

import pytest

from cluster.models.gguf import header as headers
from cluster.models.gguf.header import GgufError, read_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def foreign(body: bytes = b"", *, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    """A GGUF file with these counts in its header."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no GGUF file"),
    "another format": (b"PK\3\4" + bytes(100), "no GGUF file"),
    "only the magic": (b"GGUF", "incomplete"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version"),
    "version 1": (foreign(version=1), "version of the format is 1"),
    "endless keys": (foreign(keys=2**64 - 1), "keys of metadata"),
    "endless tensors": (foreign(tensors=2**64 - 1), "tensors"),
    "keys that are not there": (foreign(keys=4000), "incomplete"),
    "an endless name": (foreign(struct.pack("<Q", 2**64 - 1), keys=1), "bytes of a text"),
    "a name behind the end": (foreign(struct.pack("<Q", 1000), keys=1), "incomplete"),
    "an endless list": (foreign(text("a") + struct.pack("<IIQ", 9, 4, 2**64 - 1), keys=1), "items of lists"),
    "an endless list of texts": (foreign(text("a") + struct.pack("<IIQ", 9, 8, 2**62), keys=1), "items of lists"),
    "a list behind the end": (foreign(text("a") + struct.pack("<IIQ", 9, 12, 4_000_000), keys=1), "incomplete"),
    "a list of lists": (foreign(text("a") + struct.pack("<IIQ", 9, 9, 1) * 9, keys=1), "value of type 9"),
    "an unknown type": (foreign(text("a") + struct.pack("<I", 99), keys=1), "value of type 99"),
    "no UTF-8": (foreign(text("a") + struct.pack("<IQ", 8, 2) + b"\xff\xfe", keys=1), "not UTF-8"),
    "a key twice": (foreign((text("a") + struct.pack("<IB", 7, 1)) * 2, keys=2), "'a' twice"),
    "alignment 0": (foreign(text("general.alignment") + struct.pack("<II", 4, 0), keys=1), "general.alignment"),
    "a tensor behind the end": (
        foreign(text("t") + struct.pack("<IQIQ", 1, 64, 0, 2**63), tensors=1),
        "does not lie within",
    ),
    "a tensor larger than the file": (
        foreign(text("t") + struct.pack("<IQQQQIQ", 4, *[2**63] * 4, 0, 0), tensors=1),
        "does not lie within",
    ),
    "a tensor of nothing": (foreign(text("t") + struct.pack("<IQQIQ", 2, 64, 0, 0, 0), tensors=1), "cannot have the"),
    "half a block": (foreign(text("t") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(99), tensors=1), "cannot have the"),
    "endless dimensions": (foreign(text("t") + struct.pack("<I", 2**32 - 1), tensors=1), "dimensions"),
    "weights of an unknown type": (foreign(text("t") + struct.pack("<IQIQ", 1, 64, 77, 0), tensors=1), "type 77"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_at_once(case: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[case]
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(GgufError, match=reason):
        read_header(file)


def test_a_header_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(headers, "_MAX_HEADER_BYTES", 1000)
    (tmp_path / "x.gguf").write_bytes(foreign(text("a") + struct.pack("<IQ", 8, 2000) + bytes(2000), keys=1))
    with pytest.raises(GgufError, match="its header has more than"):
        read_header(tmp_path / "x.gguf")


def test_a_damaged_file_never_ends_in_another_error(tmp_path: Path) -> None:
    """Each byte changed, and the file cut at each."""
    file = tmp_path / "x.gguf"
    keys = text("a") + struct.pack("<IQ", 8, 2) + b"hi" + text("b") + struct.pack("<IIQ3I", 9, 4, 3, 1, 2, 3)
    keys += text("c") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("y") + text("d") + struct.pack("<If", 6, 0.5)
    content = foreign(keys + text("t") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0), keys=4, tensors=1)
    content += bytes(-len(content) % 32 + 68)
    file.write_bytes(content)
    header = read_header(file)
    assert dict(header.metadata) == {"a": "hi", "b": (1, 2, 3), "c": ("x", "y"), "d": 0.5}
    assert header.tensors["t"].shape == (32, 2) and header.tensors["t"].bytes == 68
    damaged = [
        content[:index] + bytes([content[index] ^ flip]) + content[index + 1 :]
        for index in range(len(content))
        for flip in (0x01, 0x80, 0xFF)
    ]
    for variant in [*damaged, *(content[:length] for length in range(len(content)))]:
        file.write_bytes(variant)
        try:
            read_header(file)
        except GgufError:
            continue
