"""Deleting what is kept of a user, in the admin API."""

from typing import Annotated

import msgspec


class ForgetRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that deletes what is kept of a user. user: as requests name it. team: whose user; empty: of callers
    without a key."""

    user: Annotated[str, msgspec.Meta(min_length=1)]
    team: str = ""


class ForgetResponse(msgspec.Struct, frozen=True):
    """How many cached answers, stored responses, records of feedback and lines in files of batches were deleted."""

    answers: int
    responses: int
    feedback: int
    batch_lines: int
