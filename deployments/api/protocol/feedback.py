"""POST /v1/feedback, and feedback in the admin API."""

from typing import Annotated, Literal

import msgspec

from cluster.records.feedback import MAX_REASON, ListedFeedback

_Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON)]
_Text = Annotated[str, msgspec.Meta(max_length=32_000)]


class FeedbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a vote. id: of the response; or else cache_key: its X-Dray-Cache-Key. correction: the right
    answer. user: who votes, for `dray forget`."""

    rating: Literal["up", "down"]
    id: str | None = None
    cache_key: str | None = None
    reason: _Reason | None = None
    correction: _Text | None = None
    user: str | None = None


class FeedbackResponse(msgspec.Struct, frozen=True):
    """A vote that was kept. id: of the feedback on this answer. withheld: the answer is no longer in the cache."""

    id: str
    rating: Literal["up", "down"]
    withheld: bool
    object: Literal["feedback"] = "feedback"


class FeedbackList(msgspec.Struct, frozen=True):
    """Feedback: what was voted down most first, then what was asked most."""

    data: list[ListedFeedback]
    has_more: bool = False
    object: Literal["list"] = "list"


class AcceptRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that makes a curated answer of feedback. answer: empty: the correction that somebody wrote."""

    answer: _Text = ""
    author: str = ""
