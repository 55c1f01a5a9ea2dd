"""Settings of a machine rather than of the service: the folders of its models, of its core locks and of its data.

Ray may start a replica on any node. The launcher of each node puts that node's folders into the environment, and the
replica reads them here.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.configuration import variable
from cluster.settings import Settings

_MODELS, _LOCKS, _DATA = variable("models_dir"), variable("lease_dir"), variable("data_dir")


@dataclass(frozen=True, slots=True)
class Node:
    """The folders of this machine."""

    models_dir: Path
    core_lock_dir: Path
    data_dir: Path

    @classmethod
    def here(cls) -> "Node":
        """The folders from the environment, with the defaults for unset variables."""
        defaults = Settings()
        models, locks, data = (os.environ.get(name) for name in (_MODELS, _LOCKS, _DATA))
        return cls(
            Path(models) if models else defaults.models_dir,
            Path(locks) if locks else defaults.core_lock_dir,
            Path(data) if data else defaults.data_dir,
        )


def environment(settings: Settings) -> dict[str, str]:
    """Environment variables that tell replicas on this machine its folders."""
    return {_MODELS: str(settings.models_dir), _LOCKS: str(settings.core_lock_dir), _DATA: str(settings.data_dir)}
