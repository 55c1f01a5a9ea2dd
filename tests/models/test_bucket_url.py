"""Which addresses of object storage are accepted, and what they are called on a machine."""

import sys
from pathlib import Path

import pytest

from cluster.models.bucket_url import BucketUrl, BucketUrlError, is_bucket
from cluster.models.buckets import Bucket
from cluster.models.folder import UnknownModel, known_as, store_folder
from cluster.models.hubs import HubError


def test_addresses_have_folders_and_names_of_their_own(tmp_path: Path) -> None:
    sources = (
        "s3://models/a/Qwen",
        "s3://models/a/qwen",
        "s3://models/b/qwen",
        "gs://models/a/qwen",
        "s3://other/a/qwen",
    )
    folders = {store_folder(source, "int8", tmp_path) for source in sources}
    assert len(folders) == len(sources)
    assert all(folder.parent == tmp_path and folder.name.startswith("qwen-") for folder in folders)
    assert {known_as(source) for source in sources} == {"qwen"} == {known_as("s3://models/a/qwen/")}
    assert store_folder("s3://models/a/qwen/", "int8", tmp_path) in folders
    assert BucketUrl.parse("s3://models/模型/通义").path == "模型/通义"


@pytest.mark.parametrize(
    "source",
    [
        *("s3://", "s3://models", "s3://models/", "s3:///folder", "s3://models//folder", "s3://models/../folder"),
        *("s3://models/.", "s3://a/b/..", "s3://Models/a", "s3://models/a b", "s3://models/a%2e", "s3://models/a\nb"),
        *("s3://user:secret@models/a", "s3://models/a?x=secret", "s3://models/a#secret", "s3://models:80/a"),
        *("s3://169.254.169.254:80/a", "s3://models/" + "a" * 129, "s3://models/" + "a/" * 500, "s3://models/a.gguf"),
    ],
)
def test_other_addresses_are_refused(source: str, tmp_path: Path) -> None:
    assert is_bucket(source)
    with pytest.raises(BucketUrlError) as refused:
        BucketUrl.parse(source)
    assert "secret" not in str(refused.value)
    with pytest.raises(UnknownModel):
        store_folder(source, "int8", tmp_path)


@pytest.mark.parametrize("source", ["http://h/a", "https://h/a/b", "file:///etc", "S3://models/a", "s3:/m/a"])
def test_other_schemes_are_no_models(source: str, tmp_path: Path) -> None:
    assert not is_bucket(source)
    with pytest.raises(UnknownModel, match="s3://bucket/folder"):
        store_folder(source, "int8", tmp_path)


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(HubError, match=r"needs the extra `buckets`; install with: .*pip install"):
        Bucket(BucketUrl.parse("s3://models/a"))
