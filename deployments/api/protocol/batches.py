"""OpenAI's types of /v1/files and /v1/batches."""

from typing import Annotated, Literal

import msgspec

MAX_METADATA = 16

_Key = Annotated[str, msgspec.Meta(max_length=64)]
_Value = Annotated[str, msgspec.Meta(max_length=512)]
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class FileUpload(msgspec.Struct, frozen=True):
    """The form of an upload. file: JSON Lines."""

    file: Annotated[str, msgspec.Meta(extra_json_schema={"format": "binary"})]
    purpose: Literal["batch"]


class FileObject(msgspec.Struct, frozen=True):
    """A file."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    object: Literal["file"] = "file"


class FileList(msgspec.Struct, frozen=True):
    """A page of files."""

    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class FileDeleted(msgspec.Struct, frozen=True):
    """A file that was deleted."""

    id: str
    deleted: bool = True
    object: Literal["file"] = "file"


class ExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the output files expire, in seconds after their creation."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=3600, le=2_592_000)]


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body that creates a batch. completion_window: OpenAI's `24h`, or another number of minutes, hours or days."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank"]
    completion_window: Annotated[str, msgspec.Meta(pattern="^[1-9][0-9]{0,4}[mhd]$")]
    metadata: dict[_Key, _Value] | None = None
    output_expires_after: ExpiresAfter | None = None


class RequestCounts(msgspec.Struct, frozen=True):
    """The lines of a batch. failed: those in the error file that were asked."""

    total: int
    completed: int
    failed: int


class BatchError(msgspec.Struct, frozen=True):
    """What is wrong with an input file. line: from 1; null: with the file as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, frozen=True):
    """What is wrong with an input file."""

    data: list[BatchError]
    object: Literal["list"] = "list"


class BatchObject(msgspec.Struct, frozen=True):
    """A batch."""

    id: str
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    object: Literal["batch"] = "batch"


class BatchList(msgspec.Struct, frozen=True):
    """A page of batches, the newest first."""

    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class AdminBatch(msgspec.Struct, frozen=True):
    """A batch of any team. owner: `team.NAME`, or the namespace of callers without a key."""

    owner: str
    batch: BatchObject


class AdminBatchList(msgspec.Struct, frozen=True):
    """The batches of all teams, the newest first."""

    data: list[AdminBatch]
    object: Literal["list"] = "list"
