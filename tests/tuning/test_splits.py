"""The same cores as one replica or as two."""

import json
import shutil
from pathlib import Path

import pytest

from cluster.cores import lease_cores, usable_cores
from cluster.models.folder import BUNDLED_FOLDER, ServedModel, open_model
from cluster.settings import ModelSettings
from cluster.tuning.splits import measure_split
from cluster.tuning.variants import GROUPS_32


@pytest.mark.skipif(usable_cores().count < 2, reason="needs two cores")
def test_two_replicas_share_the_cores_and_the_streams(bundled: ServedModel, tmp_path: Path) -> None:
    with lease_cores(2, tmp_path / "cores", owner="test") as lease:
        split = measure_split(bundled, tmp_path, lease, GROUPS_32, 2, seconds=0.2)
        assert split is not None
        assert (split.replicas, split.cores, split.streams) == (2, 1, 32)
        assert split.decoded_tokens_per_s > 0 and split.prompt_tokens_per_s > 0


@pytest.mark.skipif(usable_cores().count < 2, reason="needs two cores")
def test_a_split_that_fails_is_left_out(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": "many"}))
    model = open_model(ModelSettings(source=str(folder)), tmp_path)
    with lease_cores(2, tmp_path / "cores", owner="test") as lease:
        assert measure_split(model, tmp_path, lease, GROUPS_32, 2, seconds=0.2) is None
