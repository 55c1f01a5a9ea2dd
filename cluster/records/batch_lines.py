"""Lines of batches: requests in an uploaded file, what comes out of them, and which user's they are.

A line is that of the user whom its body names. What comes out of it does not name the user: half of its id is random,
and the other half is a digest of that and of the user's tag (cluster.records.forget). Who has the tag recognizes the
line; for anybody else, all of the id is random.
"""

import random
from hashlib import blake2b

import msgspec

_PREFIX = "batch_req_"
_HALF = 16
FORGOTTEN_METHOD = "GONE"
"""Method of a line whose user was forgotten; as long as POST, as the lines behind it must keep their places."""
_BOM = b"\xef\xbb\xbf"


class LineResponse(msgspec.Struct, frozen=True):
    """The response to a line, as the output file has it."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True):
    """Why a line has no response."""

    code: str
    message: str


class OutputLine(msgspec.Struct, frozen=True):
    """A line of the output file, or of the error file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None

    @property
    def succeeded(self) -> bool:
        """Whether it belongs into the output file."""
        return self.response is not None and self.response.status_code < 300


FORGOTTEN = LineError("forgotten", "This request was removed because what is kept of its user was deleted.")


class _Named(msgspec.Struct):
    id: str = ""
    custom_id: str = ""


class _Line(msgspec.Struct):
    body: msgspec.Raw


class _Request(msgspec.Struct):
    custom_id: msgspec.Raw
    method: msgspec.Raw
    url: msgspec.Raw
    body: msgspec.Raw


class _Body(msgspec.Struct):
    safety_identifier: object = None
    user: object = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_request = msgspec.json.Decoder(_Request).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_named = msgspec.json.Decoder(_Named).decode
encode_output = msgspec.json.Encoder().encode
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoders raise for a text that is not what it should be."""


def user_of_body(body: bytes) -> str:
    """The user whom the body of a request names; empty: none."""
    try:
        fields = _decode_body(body)
    except UNREADABLE:
        return ""
    users = (user for user in (fields.safety_identifier, fields.user) if isinstance(user, str) and user)
    return next(users, "")


def user_of_line(line: bytes) -> str:
    """The user of a line of an uploaded file; empty: none."""
    try:
        return user_of_body(_decode_line(line.removeprefix(_BOM)).body)
    except UNREADABLE:
        return ""


def output_id(tag: str) -> str:
    """A new id for what comes out of a line. tag: of its user; empty: it has none."""
    number = f"{random.getrandbits(64):016x}"
    return f"{_PREFIX}{number}{_mark(number, tag) if tag else f'{random.getrandbits(64):016x}'}"


def is_output_of(line: bytes, tag: str) -> bool:
    """Whether a line of an output file or an error file comes from a line of the user with this tag."""
    try:
        name = _decode_named(line).id.removeprefix(_PREFIX)
    except UNREADABLE:
        return False
    return _mark(name[:_HALF], tag) == name[_HALF:]


def forgotten_input(line: bytes) -> bytes:
    """What stands in place of a line whose user was forgotten, while a batch reads the file: as long, without the body.

    A line that no batch can have becomes blank.
    """
    try:
        fields = _decode_request(line.removeprefix(_BOM))
    except UNREADABLE:
        return b" " * len(line)
    parts = (fields.custom_id, FORGOTTEN_METHOD.encode(), fields.url)
    return (b'{"custom_id":%b,"method":"%b","url":%b,"body":{}}' % tuple(map(bytes, parts))).ljust(len(line))


def forgotten_output(line: bytes) -> bytes:
    """What the error file has in place of a line of the output, while the batch has not ended."""
    return encode_output(forgotten(_decode_named(line).custom_id)) + b"\n"


def forgotten(custom_id: str) -> OutputLine:
    """The output of a line whose user was forgotten. It is no longer that user's."""
    return OutputLine(output_id(""), custom_id, None, FORGOTTEN)


def _mark(number: str, tag: str) -> str:
    return blake2b(number.encode(), key=tag.encode(), digest_size=_HALF // 2).hexdigest()
