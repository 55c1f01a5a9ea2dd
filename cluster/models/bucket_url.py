"""Addresses of model folders in object storage: s3://bucket/folder, gs:// and oss://.

They come from settings and commands, never from a request. Credentials are not part of them.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, cast, get_args

Scheme = Literal["s3", "gs", "oss"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_PART = re.compile(r"[\w.+=-]{1,128}")
_MAX_PATH = 900
"""S3 allows 1,024 bytes for a key, of which the files' own names need some."""


class BucketUrlError(ValueError):
    """An address that no model folder can have; the message shows neither credentials nor a query."""


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """A folder in a bucket. path: without slashes at its ends."""

    scheme: Scheme
    bucket: str
    path: str

    @classmethod
    def parse(cls, source: str) -> "BucketUrl":
        """The address that a source names. Raises BucketUrlError."""
        scheme, _, rest = source.partition("://")
        bucket, _, path = rest.partition("/")
        path = path.rstrip("/")
        parts = path.split("/")
        well_formed = _BUCKET.fullmatch(bucket) and len(path.encode()) <= _MAX_PATH
        if not is_bucket(source) or not well_formed or not all(map(_is_part, parts)):
            # Neither what is before an @ nor a query: both may hold secrets.
            shown = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
            raise BucketUrlError(
                f"{scheme}://{shown} is not the address of a model's folder: write s3://bucket/folder, "
                "gs://bucket/folder or oss://bucket/folder, and put credentials into the environment"
            )
        if path.lower().endswith(".gguf"):
            raise BucketUrlError(f"{source} is a GGUF file: download it, and give the file as the model")
        return cls(cast(Scheme, scheme), bucket, path)

    @property
    def folder_name(self) -> str:
        """The name of its folder on a machine: readable, and different for each address."""
        name = self.path.rpartition("/")[2].lower().lstrip(".")
        return f"{name}-{blake2b(str(self).encode(), digest_size=4).hexdigest()}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}"


def is_bucket(source: str) -> bool:
    """Whether a source is meant as an address in object storage, well-formed or not."""
    return source.startswith(tuple(f"{scheme}://" for scheme in get_args(Scheme)))


def _is_part(name: str) -> bool:
    return bool(_PART.fullmatch(name)) and name not in (".", "..")
