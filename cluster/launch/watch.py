"""Kills processes of this machine that hang. In a thread, because the launcher's other work waits for Ray, which may
hang too."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from cluster.launch.duty import Duty
from cluster.launch.hung_servers import HungServers
from cluster.liveness import INTERVAL_S, HungProcesses


@contextmanager
def killing_hung_processes(folder: Path) -> Iterator[None]:
    """Kills, while the block runs, replicas that no longer show life, and servers that stand still.

    folder: where replicas show that they live.
    """
    over = Event()
    duties = (
        Duty("replicas that hang are not noticed", HungProcesses(folder).kill),
        Duty("a Redis or a process of Ray's that hangs is not noticed", HungServers().kill),
    )

    def watch() -> None:
        while not over.wait(INTERVAL_S):
            for duty in duties:
                duty.run()

    thread = Thread(target=watch, name="hung processes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
