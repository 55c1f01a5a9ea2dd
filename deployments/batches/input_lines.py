"""The lines of a batch's input file: each a request, as OpenAI's document has it."""

from collections.abc import Iterable, Sequence

import msgspec

from cluster.records.batch_lines import FORGOTTEN_METHOD, user_of_body
from cluster.records.batches import Checksum
from cluster.records.forget import user_tag
from deployments.api.protocol.batches import BatchError
from deployments.common.errors import shortened

CHUNK_LINES = 32
"""Lines that a router takes at a time. Those of a chunk whose router dies are asked again."""
_MAX_PROBLEMS = 100
_MAX_CUSTOM_ID = 512


class InputLine(msgspec.Struct, frozen=True):
    """A request of a batch."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw

    @property
    def forgotten(self) -> bool:
        """Whether its user was forgotten after the upload."""
        return self.method == FORGOTTEN_METHOD

    def tag(self, owner: str) -> str:
        """The tag of its user; empty: it names none. owner: of the batch."""
        user = user_of_body(self.body)
        return user_tag(owner, user) if user else ""


decode_line = msgspec.json.Decoder(InputLine).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


class LineChecksum(Checksum):
    """Of a chunk of lines, the blank ones included."""

    def add(self, part: bytes) -> None:
        """Takes the next line."""
        super().add(part)
        super().add(b"\n")


class Checked(msgspec.Struct, frozen=True):
    """An input file. places, checksums: as in Batch. problems: what is wrong; empty: nothing is."""

    places: Sequence[int]
    checksums: Sequence[str]
    lines: int
    problems: Sequence[BatchError]


def check_lines(lines: Iterable[tuple[int, bytes]], end: int, endpoint: str) -> Checked:
    """Checks every line of a file, and finds where the chunks begin and what to know them by.

    lines: with the place of their first bytes. end: the file's size. Raises what `lines` raises.
    """
    places, sums, count, problems, seen = list[int](), list[LineChecksum](), 0, list[BatchError](), set[str]()
    for number, (place, text) in enumerate(lines, 1):
        blank = not text.strip()
        if not blank and count % CHUNK_LINES == 0:
            places.append(place)
            sums.append(LineChecksum())
        if sums:
            sums[-1].add(text)
        if blank:
            continue
        count += 1
        problem = _problem(number, text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text, endpoint, seen)
        if problem is not None and len(problems) < _MAX_PROBLEMS:
            problems.append(problem)
    if not count:
        problems.append(BatchError("empty_file", "The batch input file is empty. It must have at least one request."))
    return Checked([*places, end], [each.text for each in sums], count, problems)


def _problem(number: int, text: bytes, endpoint: str, seen: set[str]) -> BatchError | None:
    """What is wrong with a line; None: nothing is. seen: custom ids of the lines before."""
    try:
        fields = _decode_fields(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return BatchError("invalid_json_line", "This line is not parseable as a JSON object.", number)
    for name in ("custom_id", "method", "url", "body"):
        if name not in fields:
            return BatchError("missing_required_parameter", f"Missing required parameter: '{name}'.", number, name)
    texts = {name: _text(fields[name]) for name in ("custom_id", "method", "url")}
    custom_id = texts["custom_id"]
    if custom_id is None or not 0 < len(custom_id) <= _MAX_CUSTOM_ID:
        message = f"Invalid 'custom_id': expected a string of 1 to {_MAX_CUSTOM_ID} characters."
        return BatchError("invalid_custom_id", message, number, "custom_id")
    if texts["method"] not in ("POST", FORGOTTEN_METHOD):
        return BatchError("invalid_method", "Invalid 'method': it must be POST.", number, "method")
    if texts["url"] != endpoint:
        message = (
            f"The URL '{shortened(texts['url'] or '')}' of this request is not the endpoint of the batch, {endpoint}."
        )
        return BatchError("invalid_url", message, number, "url")
    if not bytes(fields["body"]).lstrip().startswith(b"{"):
        return BatchError("invalid_type", "Invalid 'body': expected an object.", number, "body")
    if custom_id in seen:
        message = (
            f"The custom_id '{shortened(custom_id)}' for this request is a duplicate of another request. The custom_id "
            "parameter must be unique for each request in a batch."
        )
        return BatchError("duplicate_custom_id", message, number, "custom_id")
    seen.add(custom_id)
    return None


def _text(value: msgspec.Raw) -> str | None:
    try:
        return _decode_text(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
