"""GPT-2's way to write bytes as characters, which tokenizers with byte-level BPE use for their tokens."""


def _byte_of() -> dict[str, int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(shifted)}


BYTE_OF = _byte_of()
"""The byte that each character stands for."""
