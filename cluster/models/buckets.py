"""Model folders in object storage: S3 and what speaks its protocol, Google Cloud Storage, Alibaba Cloud's OSS.

Addresses of servers and credentials come from the environment, from the variables that each provider's own tools read,
or from the machine that this runs on (instance roles, workload identity).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.extras import install_command
from cluster.models.bucket_url import BucketUrl
from cluster.models.hubs import HubError, Listing, NotOnHub, OnBytes, RemoteFile
from cluster.models.paths import owned_child

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHECKSUMS = "SHA256SUMS"
"""What `sha256sum` writes about a folder. Uploaded last, it also shows that the folder is complete."""
_CHECKSUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?([^\n]{1,1024})")
_MAX_CHECKSUM_BYTES = 1 << 20
_MAX_FILES = 1000
_WORKERS = 4
_CHUNK_BYTES = 16 << 20
_STATE = ".cache"
_TIMES: dict[str, Any] = {
    "connect_timeout": timedelta(seconds=10),
    # Without a byte; and of a whole request, none of which is for more than a chunk.
    "read_timeout": timedelta(seconds=60),
    "timeout": timedelta(seconds=300),
}
# Of one request; obstore also goes on where a connection broke in the middle of an answer.
_RETRY: dict[str, Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "oss": "OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET, OSS_REGION, OSS_ENDPOINT",
}


class Bucket:
    """A model's folder in object storage."""

    def __init__(self, url: BucketUrl, environment: Mapping[str, str] = os.environ) -> None:
        """Raises HubError where the extra `buckets` is not installed or a variable is missing."""
        self.url = url
        self.endpoint = str(url)
        options = _client_options(environment)
        with self._errors():
            self.store = _open(url, environment, options)
        self._tags: dict[str, str | None] = {}

    def listing(self) -> Listing:
        """The folder's files, with the checksums that it lists itself. Raises NotOnHub, HubError."""
        import obstore

        found: dict[str, int] = {}
        with self._errors():
            for batch in obstore.list(self.store):
                for entry in batch:
                    found[entry["path"]] = entry["size"]
                    self._tags[entry["path"]] = entry["e_tag"]
                if len(found) > _MAX_FILES:
                    raise HubError(f"{self.url} holds more than {_MAX_FILES} files; give the folder of one model")
        if not found:
            raise NotOnHub(f"{self.url} does not exist, or is empty")
        checksums = self._checksums(found.get(CHECKSUMS, 0))
        if absent := sorted(checksums.keys() - found.keys()):
            raise HubError(f"{self.url} lacks {absent[0]}, which its {CHECKSUMS} lists; is it being uploaded?")
        files = tuple(RemoteFile(path, size, checksums.get(path, "")) for path, size in found.items())
        return Listing(str(self.url), "", files)

    def download(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        """Downloads the files into the folder, resuming what is there already. Raises HubError, OSError."""
        with ThreadPoolExecutor(_WORKERS) as workers:
            futures = [workers.submit(self._fetch, file, folder, on_bytes) for file in files]
            try:
                for future in futures:
                    future.result()
            finally:
                workers.shutdown(cancel_futures=True)

    def _fetch(self, file: RemoteFile, folder: Path, on_bytes: OnBytes) -> None:
        target, tag = folder / file.path, self._tags.get(file.path)
        # Which version of the object the bytes on disk are of.
        state = owned_child(folder, _STATE) / f"{file.path.replace('/', '--')}.tag"
        for path in (target, state):
            path.parent.mkdir(parents=True, exist_ok=True)
        resumable = tag is not None and target.is_file() and state.is_file() and state.read_text() == tag
        done = min(target.stat().st_size, file.size) if resumable else 0
        on_bytes(file.path, done)
        with target.open("r+b" if resumable else "wb") as output:
            state.write_text(tag or "")
            output.truncate(done)
            output.seek(done)
            while done < file.size:
                chunk = self._read(file.path, done, min(done + _CHUNK_BYTES, file.size))
                output.write(chunk)
                done += len(chunk)
                on_bytes(file.path, len(chunk))

    def _read(self, path: str, start: int, end: int) -> bytes:
        """These bytes of the object, of the version that was listed. Raises HubError."""
        import obstore

        options: dict[str, Any] = {"range": (start, end)}
        if tag := self._tags.get(path):
            options["if_match"] = tag
        with self._errors():
            content = bytes(obstore.get(self.store, path, options=options).bytes())
        if len(content) != end - start:
            raise HubError(f"{self.url}/{path} has another size than was listed; try again")
        return content

    def _checksums(self, size: int) -> dict[str, str]:
        """SHA-256 by file, as far as the folder lists them."""
        if not size:
            return {}
        if size > _MAX_CHECKSUM_BYTES:
            raise HubError(f"{self.url}/{CHECKSUMS} has {size} bytes, more than a list of checksums has")
        lines = self._read(CHECKSUMS, 0, size).decode(errors="replace").splitlines()
        matches = [_CHECKSUM_LINE.fullmatch(line) for line in lines if line]
        if not all(matches):
            raise HubError(f"{self.url}/{CHECKSUMS} is not what `sha256sum` writes")
        return {match[2]: match[1] for match in matches if match and match[2] != CHECKSUMS}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            from obstore import exceptions
        except ImportError:
            raise HubError(
                f"{self.url} needs the extra `buckets`; install with: {install_command('buckets')}"
            ) from None
        credentials = f"credentials come from the environment: {_VARIABLES[self.url.scheme]}"
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            raise NotOnHub(f"{self.url} does not let you read it; {credentials}") from None
        except exceptions.PreconditionError:
            raise HubError(f"{self.url} was changed while it was read; try again") from None
        except FileNotFoundError:
            raise NotOnHub(f"{self.url} does not exist, or a file of it was removed") from None
        except exceptions.BaseError as error:
            raise HubError(f"cannot read {self.url}: {_reason(error)}; {credentials}") from None


def _reason(error: Exception) -> str:
    """The first line of obstore's message, without the answer's body."""
    return str(error).partition("\n")[0].partition(": <?xml")[0][:300]


def open_bucket(url: BucketUrl, environment: Mapping[str, str] = os.environ) -> "ObjectStore":
    """The library's store of a folder in a bucket, for what is no model.

    Raises HubError where the extra `buckets` is not installed or a variable is missing.
    """
    return Bucket(url, environment).store


def _client_options(environment: Mapping[str, str]) -> dict[str, Any]:
    if not (authorities := environment.get("SSL_CERT_FILE", "")):
        return dict(_TIMES)
    try:
        # obstore adds these to the public ones.
        return _TIMES | {"root_certificate": Path(authorities).read_bytes()}
    except OSError as error:
        raise HubError(f"cannot read the certificates in SSL_CERT_FILE: {error}") from None


def _open(url: BucketUrl, environment: Mapping[str, str], options: dict[str, Any]) -> "ObjectStore":
    from obstore.store import GCSStore, S3Store

    # obstore refuses http:// unless it is allowed; who names such a server means it.
    if url.scheme == "gs":
        options["allow_http"] = environment.get("GOOGLE_BASE_URL", "").startswith("http://")
        return GCSStore(url.bucket, prefix=url.path, client_options=options, retry_config=_RETRY)
    config = _oss(url, environment) if url.scheme == "oss" else {}
    endpoint = config.get("endpoint") or environment.get("AWS_ENDPOINT_URL", "")
    options["allow_http"] = endpoint.startswith("http://")
    return S3Store(url.bucket, prefix=url.path, config=config, client_options=options, retry_config=_RETRY)


def _oss(url: BucketUrl, environment: Mapping[str, str]) -> dict[str, Any]:
    """OSS by its S3 protocol, in which the bucket is part of the server's name.

    https://www.alibabacloud.com/help/en/oss/developer-reference/use-amazon-s3-sdks-to-access-oss
    """
    region, endpoint = environment.get("OSS_REGION", ""), environment.get("OSS_ENDPOINT", "")
    if not region and not endpoint:
        raise HubError(f"{url} needs OSS_REGION in the environment (cn-hangzhou), or OSS_ENDPOINT")
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint or f's3.oss-{region}.aliyuncs.com'}")
    named = not _is_address(parts.hostname or "")
    names = {
        "access_key_id": "OSS_ACCESS_KEY_ID",
        "secret_access_key": "OSS_ACCESS_KEY_SECRET",
        "session_token": "OSS_SESSION_TOKEN",
    }
    return {
        "endpoint": f"{parts.scheme}://{url.bucket}.{parts.netloc}" if named else f"{parts.scheme}://{parts.netloc}",
        "virtual_hosted_style_request": named,
        "region": region or "oss",
        **{option: environment[name] for option, name in names.items() if environment.get(name)},
    }


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
