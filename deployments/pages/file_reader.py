"""The program that turns a file into text: `python -I file_reader.py KIND < FILE`, in a process with limits.

A PDF or a Word file may be made to take all memory or to be read forever. So a process reads it that may use little of
both, has no secrets in its environment, and whose death is an answer too. Prints JSON: {"text": …} or {"refused": …}.
"""

import io
import json
import resource
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import Any
from unicodedata import category

MAX_BYTES = 5_000_000
"""Of the file."""
MAX_PAGES = 300
MAX_CHARACTERS = 60_000
"""Of the text: some twenty pages. A CPU reads for minutes at more, and the browser keeps it."""
MAX_CPU_S = 10
_MAX_MEMORY = 512 * 2**20
_MAX_UNPACKED = 50_000_000
_MAX_PARTS = 2_000
_DOCTYPES = tuple("<!DOCTYPE".encode(encoding) for encoding in ("ascii", "utf-16-le", "utf-16-be"))


class Refused(Exception):
    """The file is not read; its first argument says why, as a field of FileTexts."""


def text_of(kind: str, data: bytes) -> str:
    """The file's text. kind: a key of READERS. Raises Refused, and whatever a library raises for a broken file."""
    text = ""
    for piece in READERS[kind](data):
        text += piece
        if len(text) > MAX_CHARACTERS:
            raise Refused("long")
    # Control and format characters go: they are invisible, but a model reads them.
    text = "".join(sign for sign in text.replace("\r\n", "\n") if sign in "\n\t" or category(sign)[0] != "C").strip()
    if not text:
        raise Refused("empty")
    return text


def _plain(data: bytes) -> Iterator[str]:
    """UTF-8, or GB18030, in which older Chinese programs write."""
    if b"\0" in data:
        raise Refused("encoding")
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            yield data.decode(encoding)
            return
        except UnicodeDecodeError:
            continue
    raise Refused("encoding")


def _pdf(data: bytes) -> Iterator[str]:
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Refused("locked")
    if reader.get_num_pages() > MAX_PAGES:
        raise Refused("pages")
    for page in reader.pages:
        yield page.extract_text() + "\n\n"


def _docx(data: bytes) -> Iterator[str]:
    _check_archive(data)
    from docx import Document
    from docx.table import Table

    for block in Document(io.BytesIO(data)).iter_inner_content():
        if isinstance(block, Table):
            for row in block.rows:
                yield " | ".join(cell.text.replace("\n", " ") for cell in row.cells) + "\n"
        else:
            yield block.text + "\n\n"


def _check_archive(data: bytes) -> None:
    """Raises Refused for an archive that unpacks to too much, and for XML that declares entities: Word writes none."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
        # zipfile reads no more of a part than it declares.
        if len(parts) > _MAX_PARTS or sum(part.file_size for part in parts) > _MAX_UNPACKED:
            raise Refused("costly")
        for part in parts:
            content = archive.read(part)
            if any(doctype in content for doctype in _DOCTYPES):
                raise Refused("broken")


READERS: dict[str, Callable[[bytes], Iterator[str]]] = {"txt": _plain, "md": _plain, "pdf": _pdf, "docx": _docx}
"""By the end of the file's name."""


def main() -> None:
    """Reads the file from standard input."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    result: dict[str, Any]
    try:
        result = {"text": text_of(sys.argv[1], sys.stdin.buffer.read(MAX_BYTES + 1))}
    except Refused as refused:
        result = {"refused": refused.args[0]}
    except MemoryError:
        result = {"refused": "costly"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
