"""A /sys to write a machine into."""

from pathlib import Path

import pytest

from tests.cluster.cores.machines import Sysfs


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "devices")
