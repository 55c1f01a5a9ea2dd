"""Runs the agent that Ray's raylet needs beside it, as it is where Ray is installed without its extra `default`: it
reports to no dashboard, serves no HTTP and does not measure the machine (ray 2.60).

Dray starts no dashboard. The whole agent looks for its address every second, and logs a stack trace each time.
"""

import runpy
import sys

from ray.dashboard import modules


def main() -> None:
    """Becomes the agent, with the command line's arguments."""
    # By this module Ray tells whether the extra is installed.
    sys.modules["ray.dashboard.optional_deps"] = None  # type: ignore[assignment]  # how Python marks it as not importable
    # It would import all parts before it leaves them out, and the raylet waits for it.
    modules.__path__ = []
    runpy.run_module("ray.dashboard.agent", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
