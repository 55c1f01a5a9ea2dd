"""The routes of files and batches in the OpenAPI document."""

from deployments.api.protocol.batches import (
    AdminBatch,
    AdminBatchList,
    BatchList,
    BatchObject,
    BatchRequest,
    FileDeleted,
    FileList,
    FileObject,
    FileUpload,
)
from deployments.api.protocol.operation import Operation

_LINES = "application/jsonl"

BATCH_OPERATIONS = (
    Operation("/v1/files", "Upload a file for a batch", FileUpload, FileObject, form=True),
    Operation("/v1/files", "List your team's files", answer=FileList, query=("after", "limit", "order", "purpose")),
    Operation("/v1/files/{id}", "Describe a file", answer=FileObject, parameters=("id",)),
    Operation("/v1/files/{id}", "Delete a file", answer=FileDeleted, parameters=("id",), verb="delete"),
    Operation("/v1/files/{id}/content", "Read a file", parameters=("id",), content=_LINES),
    Operation("/v1/batches", "Create a batch", BatchRequest, BatchObject),
    Operation("/v1/batches", "List your team's batches", answer=BatchList, query=("after", "limit")),
    Operation("/v1/batches/{id}", "Describe a batch", answer=BatchObject, parameters=("id",)),
    Operation("/v1/batches/{id}/cancel", "Cancel a batch", answer=BatchObject, parameters=("id",), verb="post"),
    Operation("/admin/batches", "List the batches of all teams", answer=AdminBatchList, query=("limit",)),
    Operation("/admin/batches/{id}", "Describe a batch of any team", answer=AdminBatch, parameters=("id",)),
    Operation(
        "/admin/batches/{id}/cancel", "Cancel a batch of any team", answer=AdminBatch, parameters=("id",), verb="post"
    ),
)
