"""Files made to take all memory, to be read forever, or to show another file: each is refused within its limits."""

import asyncio
import zlib

import psutil
import pytest

pytest.importorskip("docx", reason="the chat page needs the extra `page`")

from deployments.common.errors import ApiError
from deployments.pages import files
from deployments.pages.file_reader import MAX_BYTES
from deployments.pages.file_texts import ENGLISH_FILES
from deployments.pages.files import text_within_limits
from tests.deployments.pages.documents import docx, pdf, rewritten

DOCUMENT = "word/document.xml"
BODY = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{}</w:body></w:document>'
PARAGRAPH = "<w:p><w:r><w:t>{}</w:t></w:r></w:p>"
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


def refusal(name: str, data: bytes) -> str:
    """The field of the texts that says why the file is refused."""
    assert len(data) <= MAX_BYTES
    with pytest.raises(ApiError) as refused:
        asyncio.run(text_within_limits(name, data, ENGLISH_FILES))
    words = {field: getattr(ENGLISH_FILES, field) for field in ("broken", "costly", "empty", "pages")}
    [field] = [field for field, text in words.items() if text.format(name=name) == refused.value.message]
    return field


def word(document: str, encoding: str = "utf-8") -> bytes:
    """A Word file with this XML as its document."""
    declared = f'<?xml version="1.0" encoding="{encoding}"?>{document}'
    return rewritten(docx("x"), {DOCUMENT: declared.encode(encoding)})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "entity",
    [f'<!ENTITY l0 "laugh">{LAUGHS}', '<!ENTITY l9 SYSTEM "file:///etc/passwd">'],
    ids=["expanding", "of a file"],
)
def test_a_word_file_declares_no_entities(entity: str, encoding: str) -> None:
    document = f"<!DOCTYPE w [{entity}]>" + BODY.format(PARAGRAPH.format("&l9;"))
    assert refusal("a.docx", word(document, encoding)) == "broken"


def test_a_word_file_unpacks_to_no_more_than_it_may() -> None:
    bomb = rewritten(docx("x"), {"word/media/image1.png": b"\0" * 60_000_000})
    assert len(bomb) < 200_000 and refusal("a.docx", bomb) == "costly"
    # The directory at the archive's end says that the part is small.
    size = (60_000_000).to_bytes(4, "little")
    assert bomb.count(size) == 2
    assert refusal("a.docx", bomb.replace(size, (1000).to_bytes(4, "little"))) == "broken"
    parts = rewritten(docx("x"), {f"word/{number}.xml": b"<a/>" for number in range(2000)})
    assert refusal("a.docx", parts) == "costly"


def test_a_word_file_takes_no_more_memory_than_it_may() -> None:
    assert refusal("a.docx", word(BODY.format("<w:p/>" * 7_000_000))) in ("costly", "broken")
    deep = "<w:sdt><w:sdtContent>" * 100_000 + "</w:sdtContent></w:sdt>" * 100_000
    assert refusal("a.docx", word(BODY.format(deep))) == "broken"


def test_a_pdf_takes_no_more_memory_than_it_may() -> None:
    bomb = zlib.compress(b" " * 400_000_000)
    twice = zlib.compress(bomb)
    assert refusal("a.pdf", pdf(bomb, filters=b"/Filter /FlateDecode")) in ("costly", "broken")
    assert refusal("a.pdf", pdf(twice, filters=b"/Filter [/FlateDecode /FlateDecode]")) in ("costly", "broken")


@pytest.mark.parametrize("kids", [b"2 0 R", b"2 0 R 2 0 R", b"5 0 R " * 100_000], ids=["itself", "twice", "many"])
def test_a_pdf_whose_pages_never_end_is_given_up(kids: bytes) -> None:
    assert refusal("a.pdf", pdf(b"", kids=kids)) in ("costly", "broken", "empty", "pages")


def test_a_file_that_is_read_forever_is_given_up_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAX_TIME_S", 1.5)
    endless = pdf(b"BT /F1 12 Tf (a) Tj ET " * 200_000)
    assert refusal("a.pdf", endless) == "costly"
    assert [child for child in psutil.Process().children() if "file_reader" in " ".join(child.cmdline())] == []
