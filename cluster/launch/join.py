"""Joins this machine to another's Dray: checks it first, then runs a Ray node there until it leaves."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.cores import sweep, usable_cores
from cluster.launch.membership import check_models, check_versions, read_terms
from cluster.launch.preflight import port_block
from cluster.launch.ray_node import clear, further_node, interrupt_on_sigterm, prepared
from cluster.launch.state import Record, hold, write_record
from cluster.settings import Settings


@contextmanager
def joined_cluster(
    settings: Settings, head: str, token: str, on_stage: Callable[[str], None]
) -> Iterator[Callable[[], bool]]:
    """Makes this machine part of another's Dray while the block runs; what runs here is drained at the end.

    head: that machine's HOST:PORT. on_stage: called with what is being done. Yields what `further_node` yields.
    Raises JoinError, LaunchError, AlreadyRunning.
    """
    folder = settings.state_dir
    interrupt_on_sigterm()
    with hold(folder), port_block() as ports:

        def stage(name: str) -> None:
            write_record(folder, Record(os.getpid(), name, head=head))
            on_stage(name)

        clear(folder)
        try:
            usable = usable_cores().count
            with prepared(settings, ports, token, alone=False):
                stage("comparing versions and models")
                terms = read_terms(head)
                check_versions(terms)
                check_models(terms, settings.models_dir)
                os.environ.update(terms.urls)
                stage("joining")
                with further_node(settings, usable, head) as revive:
                    stage("ready")
                    yield revive
        finally:
            sweep(settings.core_lock_dir)
