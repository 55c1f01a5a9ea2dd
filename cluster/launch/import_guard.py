"""Keeps pandas out of Dray's processes, where it is installed: Ray Serve imports it (ray 2.60) and nothing here needs
it, but it takes 25 MB and a third of a second of each process."""

import sys

WITHOUT_PANDAS = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "cluster.launch.import_guard.leave_out_pandas"}
"""Environment from which Ray's workers learn to call it first. A runtime environment with a
`worker_process_setup_hook` comes to the same, but then no worker can be started before it is needed (ray 2.60)."""


def leave_out_pandas() -> None:
    """Makes `import pandas` fail as if it were not installed."""
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # how Python marks what is not to be found


def allow_pandas() -> None:
    """Lets this process import it after all."""
    if sys.modules.get("pandas") is None:
        sys.modules.pop("pandas", None)
