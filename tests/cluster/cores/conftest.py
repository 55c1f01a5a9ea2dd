"""A fixture for tests that describe a machine: an empty /sys/devices."""

from pathlib import Path

import pytest

from tests.cluster.cores.machines import Sysfs


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "devices")
