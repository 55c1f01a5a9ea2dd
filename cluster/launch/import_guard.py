"""Keeps Ray Serve from importing pandas if it is installed (ray 2.60).

Nothing in Dray needs it, and it costs each process 25 MB and a third of a second.
"""

import sys


def leave_out_pandas() -> None:
    """Makes `import pandas` fail as if pandas were not installed."""
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # how Python marks a module as not importable


def allow_pandas() -> None:
    """Lets this process import pandas again."""
    if sys.modules.get("pandas") is None:
        sys.modules.pop("pandas", None)
