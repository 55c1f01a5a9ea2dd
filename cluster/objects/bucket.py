"""Objects in object storage: S3 and what speaks its protocol, Google Cloud Storage, Alibaba Cloud's OSS."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile

from cluster.models.bucket_url import BucketUrl
from cluster.models.buckets import open_bucket

_IN_MEMORY_BYTES = 8 << 20


class BucketStore:
    """Objects in one folder of a bucket. Credentials come from the environment, as those for models do."""

    shared = True
    """As ObjectStore says."""

    def __init__(self, url: str) -> None:
        """Raises BucketUrlError for an address that is none, HubError where the extra `buckets` is not installed."""
        self._url = BucketUrl.parse(url)
        self._store = open_bucket(self._url)

    def write(self, name: str, content: Iterable[bytes]) -> int:
        """As ObjectStore says: object storage shows an object when it is complete."""
        import obstore

        # The library takes the content within its own runtime, where nothing can be read from a bucket (obstore 0.12):
        # what is made of other objects has to be complete before.
        with SpooledTemporaryFile(_IN_MEMORY_BYTES) as file:
            size = sum(map(file.write, content))
            file.seek(0)
            with _errors(self._url):
                obstore.put(self._store, name, file)
        return size

    def read(self, name: str, start: int, end: int) -> bytes:
        """As ObjectStore says."""
        import obstore
        from obstore import exceptions

        if end <= start:
            return b""
        with _errors(self._url):
            try:
                return bytes(obstore.get_range(self._store, name, start=start, end=end))
            except exceptions.BaseError:
                # Object storage refuses bytes behind an object's end, each kind in its own words.
                if obstore.head(self._store, name)["size"] > start:
                    raise
                return b""

    def remove(self, name: str) -> None:
        """As ObjectStore says."""
        import obstore

        try:
            with _errors(self._url):
                obstore.delete(self._store, name)
        except FileNotFoundError:
            return

    def names(self, prefix: str) -> list[str]:
        """As ObjectStore says."""
        import obstore

        with _errors(self._url):
            return [entry["path"] for batch in obstore.list(self._store, prefix=f"{prefix}/") for entry in batch]


@contextmanager
def _errors(url: BucketUrl) -> Iterator[None]:
    """Turns the library's errors into those of files."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError:
        raise
    except exceptions.BaseError as error:
        raise OSError(f"{url}: {str(error).partition(chr(10))[0][:300]}") from None
