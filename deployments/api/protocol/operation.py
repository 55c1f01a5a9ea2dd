"""A route, as the OpenAPI document describes it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Operation:
    """A route in the document.

    answer: type or JSON Schema of the response's body. streams: whether the body may have `stream: true`. parameters:
    names in the path. verb: empty: POST if there is a body, else GET. content: the type of the response's body.
    form: whether the body is a form.
    """

    path: str
    summary: str
    body: type | None = None
    answer: type | dict[str, Any] | None = None
    streams: bool = False
    parameters: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    verb: str = ""
    status: int = 200
    content: str = "application/json"
    form: bool = False

    @property
    def method(self) -> str:
        """The HTTP method in lower case, as OpenAPI writes it."""
        return self.verb or ("post" if self.body else "get")
