"""A client of batches: uploads a file, follows the batch, downloads what came out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from cluster.client import ServerError
from cluster.sse import refusal

_TIMEOUT = httpx.Timeout(30.0, read=600.0, write=600.0)
_NO_TEAM = "not_a_teams_key"
_PAGE = 100

Json = dict[str, Any]


class BatchClient:
    """Asks a server for its batches. With an admin key it sees those of all teams. Every call raises ServerError."""

    def __init__(self, url: str, key: str) -> None:
        """url: the base URL, ending in /v1. key: empty if the server needs none."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url
        self._http = httpx.Client(base_url=url.removesuffix("/v1"), headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, file: Path, endpoint: str, window: str) -> Json:
        """Uploads a file and creates its batch. Raises OSError too."""
        with file.open("rb") as content:
            form = {"files": {"file": (file.name, content)}, "data": {"purpose": "batch"}}
            uploaded = self._json("POST", "/v1/files", **form)
        body = {"input_file_id": uploaded["id"], "endpoint": endpoint, "completion_window": window}
        return self._json("POST", "/v1/batches", json=body)

    def batches(self) -> list[Json]:
        """All batches, the newest first; each with its `owner`, if the key is an admin's."""
        batches: list[Json] = []
        while True:
            after = {"after": batches[-1]["id"]} if batches else {}
            page = self._either("GET", "/batches", params={"limit": _PAGE, **after})
            batches += [_plain(batch) for batch in page["data"]]
            if not page.get("has_more"):
                return batches

    def show(self, batch_id: str) -> Json:
        """A batch."""
        return _plain(self._either("GET", f"/batches/{batch_id}"))

    def cancel(self, batch_id: str) -> Json:
        """Cancels a batch."""
        return _plain(self._either("POST", f"/batches/{batch_id}/cancel"))

    def content(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file."""
        with self._errors(), self._http.stream("GET", f"/v1/files/{file_id}/content") as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise ServerError(_reason(response))
            yield from response.iter_bytes()

    def _either(self, method: str, path: str, **content: Any) -> Json:
        """What the team's route answers, or the admin's."""
        response = self._send(method, f"/v1{path}", **content)
        if response.status_code == httpx.codes.FORBIDDEN and _NO_TEAM in response.text:
            content.pop("params", None)
            response = self._send(method, f"/admin{path}", **content)
        return _body(response)

    def _json(self, method: str, path: str, **content: Any) -> Json:
        return _body(self._send(method, path, **content))

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        with self._errors():
            return self._http.request(method, path, **content)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ServerError(f"{self._url} does not answer: {error}") from None


def _plain(listed: Json) -> Json:
    """A batch with its owner in it, where an admin's route names that beside it."""
    return {"owner": listed["owner"], **listed["batch"]} if "batch" in listed else listed


def _body(response: httpx.Response) -> Json:
    if response.status_code != httpx.codes.OK:
        raise ServerError(_reason(response))
    body: Json = response.json()
    return body


def _reason(response: httpx.Response) -> str:
    return refusal(response.content) or f"HTTP {response.status_code}"
