"""Bodies that a client has compressed."""

import io
import zlib

import zstandard

from deployments.common.errors import ApiError, shortened

ENCODINGS = ("gzip", "deflate", "zstd")
_ZSTD_WINDOW = 8 * 2**20
"""The largest window that RFC 9659 lets senders use. A decoder allocates it whatever the body's size."""


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body as it was before its Content-Encoding.

    Raises ApiError 415 for an encoding that is not among ENCODINGS, 413 as soon as more than max_bytes come out, and
    400 for a body that is damaged or ends early.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ENCODINGS:
        message = f"Content-Encoding {shortened(name)} is not supported; use one of {', '.join(ENCODINGS)}, or none."
        error = ApiError(415, message, code="unsupported_content_encoding")
        error.headers["Accept-Encoding"] = ", ".join(ENCODINGS)
        raise error
    try:
        text = _zstd(body, max_bytes + 1) if name == "zstd" else _zlib(body, name, max_bytes + 1)
    except (zlib.error, zstandard.ZstdError, EOFError) as reason:
        message = f"The body is not valid {name}: {shortened(str(reason))}."
        raise ApiError(400, message, code="invalid_content_encoding") from None
    if len(text) > max_bytes:
        raise ApiError(413, f"The decompressed body is larger than {max_bytes} bytes.", code="request_too_large")
    return text


def _zlib(body: bytes, name: str, most: int) -> bytes:
    # Of "deflate" two kinds are sent: with zlib's header, as RFC 9110 says, and without it.
    bits = 31 if name == "gzip" else 15 if body[:1] and body[0] & 15 == zlib.DEFLATED else -15
    decoder = zlib.decompressobj(bits)
    text = decoder.decompress(body, most)
    if len(text) < most and not decoder.eof:
        raise EOFError("it ends early")
    return text


def _zstd(body: bytes, most: int) -> bytes:
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with decoder.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
        text = reader.read(most)
    if body and not text:
        raise EOFError("it ends early")
    return text
