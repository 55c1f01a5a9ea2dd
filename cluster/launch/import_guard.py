"""Keeps Ray Serve from importing pandas if it is installed (ray 2.60).

Nothing in Dray needs it, and it costs each process 25 MB and a third of a second.
"""

import sys

WITHOUT_PANDAS = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "cluster.launch.import_guard.leave_out_pandas"}
"""Environment that makes Ray's workers call it first. A runtime environment with a `worker_process_setup_hook` has the
same effect, but prevents Ray from starting workers ahead of need (ray 2.60)."""


def leave_out_pandas() -> None:
    """Makes `import pandas` fail as if pandas were not installed."""
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # how Python marks a module as not importable


def allow_pandas() -> None:
    """Lets this process import pandas again."""
    if sys.modules.get("pandas") is None:
        sys.modules.pop("pandas", None)
