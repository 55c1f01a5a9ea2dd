"""What belongs to a machine and not to the service: where its models lie, and the locks of its cores.

Ray starts replicas on any node. Each reads here what the launcher of its own node has put into the environment.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.configuration import variable
from cluster.settings import Settings

_MODELS, _LOCKS = variable("models_dir"), variable("lease_dir")


@dataclass(frozen=True, slots=True)
class Node:
    """The folders of this machine."""

    models_dir: Path
    core_lock_dir: Path

    @classmethod
    def here(cls) -> "Node":
        """As the environment says; the defaults where it says nothing."""
        usual = Settings()
        models, locks = os.environ.get(_MODELS), os.environ.get(_LOCKS)
        return cls(Path(models) if models else usual.models_dir, Path(locks) if locks else usual.core_lock_dir)


def environment(settings: Settings) -> dict[str, str]:
    """The variables by which replicas on this machine find its folders."""
    return {_MODELS: str(settings.models_dir), _LOCKS: str(settings.core_lock_dir)}
