"""Reads an uploaded file: a form of several parts, whose size and lines are bounded."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from cluster.objects.scratch import scratch_file
from cluster.records.sealing import vault
from cluster.settings import BatchSettings
from deployments.common.errors import ApiError, invalid_request

_FORM = "multipart/form-data"
_OTHER_FIELDS_BYTES = 65_536
_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 4096
_MAX_NAME = 255
_BLOCK_BYTES = 1 << 20
_MIN_TTL_S, _MAX_TTL_S = 3600, 2_592_000


class _SealedParser(MultiPartParser):
    """Keeps the file of a form, while it arrives, where nobody can read it."""

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        # Starlette (1.10) has no other way to choose the temporary file.
        if (file := self._current_part.file) is not None:
            file.file.close()
            file.file = scratch_file()
            self._files_to_close_on_error.append(file.file)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file, in a temporary file without a name. filename: what its client calls it, which is only text."""

    file: BinaryIO
    filename: str
    size: int
    lines: int
    ttl_s: int

    def content(self) -> Iterator[bytes]:
        """All of it."""
        self.file.seek(0)
        while block := self.file.read(_BLOCK_BYTES):
            yield block

    def close(self) -> None:
        """Frees the temporary file."""
        self.file.close()


async def read_upload(http: HttpRequest, settings: BatchSettings, max_line_bytes: int) -> Upload:
    """The file of a request, which must be closed. max_line_bytes: more has no line of it.

    Raises ApiError 400, 408, 413, 415, and ClientDisconnect.
    """
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        message = f"Send the file as {_FORM}, with the fields purpose=batch and file."
        raise ApiError(415, message, code="unsupported_media_type")
    form = await _form(http, settings)
    try:
        file, ttl_s = _checked(form, settings)
        lines, size = await asyncio.to_thread(_count, file.file, settings, max_line_bytes)
    except BaseException:
        await form.close()
        raise
    return Upload(file.file, (file.filename or "")[:_MAX_NAME], size, lines, ttl_s)


async def _form(http: HttpRequest, settings: BatchSettings) -> FormData:
    stream = _bounded(http, settings.file_bytes)
    kind = MultiPartParser if vault() is None else _SealedParser
    parser = kind(http.headers, stream, max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    try:
        async with asyncio.timeout(settings.upload_timeout_s):
            return await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, f"The form cannot be read: {error.message}", code="invalid_form") from None
    except TimeoutError:
        message = f"The file did not arrive within {settings.upload_timeout_s:g} s."
        refusal = ApiError(408, message, code="request_timeout")
        refusal.headers["Connection"] = "close"
        raise refusal from None


async def _bounded(http: HttpRequest, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body, block by block. Raises ApiError 413 as soon as it is too large."""
    size, more = 0, True
    while more:
        message = await http.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        block, more = message.get("body", b""), message.get("more_body", False)
        size += len(block)
        if size > max_bytes + _OTHER_FIELDS_BYTES:
            raise _too_large(max_bytes)
        yield block


def _checked(form: FormData, settings: BatchSettings) -> tuple[UploadFile, int]:
    """The form's file, and its lifetime in seconds. Raises ApiError 400."""
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
    if purpose != "batch":
        raise invalid_request("purpose", "Invalid 'purpose': files are kept for batches only; send purpose=batch.")
    seconds, anchor = form.get("expires_after[seconds]"), form.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return file, settings.file_ttl_s
    if anchor != "created_at":
        raise invalid_request("expires_after[anchor]", "Invalid 'expires_after[anchor]': it must be created_at.")
    if not (isinstance(seconds, str) and seconds.isascii() and seconds.isdigit() and len(seconds) < 9):
        seconds = "0"
    if not _MIN_TTL_S <= int(seconds) <= _MAX_TTL_S:
        message = f"Invalid 'expires_after[seconds]': it must be a number from {_MIN_TTL_S} to {_MAX_TTL_S}."
        raise invalid_request("expires_after[seconds]", message)
    return file, int(seconds)


def _count(file: BinaryIO, settings: BatchSettings, max_line_bytes: int) -> tuple[int, int]:
    """The lines and the bytes of a file. Raises ApiError 400, 413."""
    lines, size = 0, 0
    file.seek(0)
    while line := file.readline(max_line_bytes + 1):
        lines, size = lines + 1, size + len(line)
        if len(line) > max_line_bytes:
            message = (
                f"Line {lines} is larger than {max_line_bytes} bytes, which a request may have (limits.body_bytes)."
            )
            raise ApiError(400, message, code="line_too_large", param="file")
        if lines > settings.file_lines:
            message = f"The file has more than {settings.file_lines} lines (batches.file_lines). Split it."
            raise ApiError(400, message, code="too_many_lines", param="file")
    if size > settings.file_bytes:
        raise _too_large(settings.file_bytes)
    if not size:
        raise invalid_request("file", "The file is empty.", code="empty_file")
    return lines, size


def _too_large(max_bytes: int) -> ApiError:
    message = f"The file is larger than {max_bytes} bytes (batches.file_bytes). Split it."
    return ApiError(413, message, code="request_too_large", param="file")
