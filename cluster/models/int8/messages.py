"""What the process that converts a model is asked, and what it prints."""

from hashlib import blake2b
from pathlib import Path

import msgspec

CALIBRATION_TEXT = Path(__file__).with_name("calibration.txt")


class ConvertRequest(msgspec.Struct, frozen=True):
    """source: folder of the model. target: existing folder that gets the graph and its weights."""

    source: str
    target: str


class Step(msgspec.Struct, frozen=True, tag="step"):
    """A part of the work is done: `done` of `total`."""

    name: str
    done: int
    total: int


class Converted(msgspec.Struct, frozen=True, tag="converted"):
    """Everything is written.

    matrices: converted ones. smoothed: inputs that were smoothed. tokens: of the calibration text.
    """

    matrices: int
    smoothed: int
    tokens: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The model cannot be converted."""

    reason: str


Event = Step | Converted | Refused


def calibration_digest() -> str:
    return blake2b(CALIBRATION_TEXT.read_bytes(), digest_size=16).hexdigest()
