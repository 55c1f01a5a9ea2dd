"""What is known of a request while it is served, in its ASGI scope."""

from dataclasses import dataclass, field

from deployments.common.progress import RequestProgress
from deployments.observability.tracing import Span

REQUEST_STATE = "dray.request"
"""Key of the RequestState in a request's ASGI scope."""


@dataclass(slots=True)
class RequestState:
    """started: on time.perf_counter's clock. route: the path's template, if the router's application did not match one.
    model, team: their metric labels; empty while unknown. authenticated: whether its key is valid, or none is needed.
    caller: the name of the team; empty where no key is needed. in_batch: whether it is a line of a batch.
    """

    started: float
    span: Span
    route: str = "unknown"
    model: str = ""
    team: str = ""
    authenticated: bool = False
    caller: str = ""
    in_batch: bool = False
    progress: RequestProgress = field(default_factory=RequestProgress)
