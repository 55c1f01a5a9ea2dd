"""Encryption of what Redis and the files of batches keep with text in it: of every value, or of none.

The variable DRAY_PRIVACY_KEYS turns it on. It has one key or more, as 32 random bytes in base64, separated by commas:
the first encrypts, all decrypt, so that keys are replaced without a loss. A value is bound to its place, such as its
key in Redis: moved elsewhere, it is not readable. Files are rows of such values (cluster.objects.sealed).

A sealed value: the mark; four bytes that say which key; a salt; a nonce; what AES-256-GCM makes of the value. Each
process encrypts with a key of its own, which HKDF-SHA256 derives from the key and a random salt: random nonces of 96
bits may not be used for more than 2**32 values with one key (NIST SP 800-38D, 8.3).
"""

import base64
import binascii
import hashlib
import os
from functools import lru_cache
from typing import TYPE_CHECKING

from cluster.records.team_records import TeamsError
from cluster.settings import PRIVACY_KEYS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MARK = b"\x04e:dray1:"
"""At the start of every sealed value. Its first byte is that of a packed answer, its second no kind of those."""
_KEY_BYTES, _ID_BYTES, _SALT_BYTES, _NONCE_BYTES = 32, 4, 16, 12
_HEAD_BYTES = _ID_BYTES + _SALT_BYTES + _NONCE_BYTES
_MAX_VALUES = 2**31
"""Encrypted with one salt; half of what is allowed, as several threads may count."""
OVERHEAD = len(MARK) + _HEAD_BYTES + 16
"""Bytes that a sealed value has more than the value; the last 16 are AES-GCM's tag."""
_TEXT_MARK = "\x04e:"
"""At the start of a sealed text."""


class SealingError(ValueError):
    """The keys cannot be used; the message says why."""


class Unreadable(TeamsError):
    """A record cannot be decrypted."""

    @classmethod
    def record(cls, name: str) -> "Unreadable":
        """name: of the record, for the message."""
        return cls(f"{name} cannot be decrypted with the keys in {PRIVACY_KEYS}: add the key that encrypted it")


class Vault:
    """Keys that encrypt and decrypt."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        """keys: of 32 bytes each; the first one encrypts."""
        self._keys = {_id_of(key): key for key in keys}
        self._first = keys[0]
        self._left = 0
        self._cipher = lru_cache(1024)(self._derived)

    def seal(self, value: bytes, place: str) -> bytes:
        """The value, encrypted for this place."""
        if self._left <= 0:
            self._salt, self._left = os.urandom(_SALT_BYTES), _MAX_VALUES
        self._left -= 1
        key, salt, nonce = _id_of(self._first), self._salt, os.urandom(_NONCE_BYTES)
        return MARK + key + salt + nonce + self._cipher(key, salt).encrypt(nonce, value, place.encode())

    def unseal(self, sealed: bytes, place: str) -> bytes | None:
        """The value; None where no key fits, or the value was made for another place, or changed."""
        from cryptography.exceptions import InvalidTag

        head = sealed[len(MARK) : len(MARK) + _HEAD_BYTES]
        key, salt, nonce = head[:_ID_BYTES], head[_ID_BYTES:-_NONCE_BYTES], head[-_NONCE_BYTES:]
        if len(head) < _HEAD_BYTES or key not in self._keys:
            return None
        try:
            return self._cipher(key, salt).decrypt(nonce, sealed[len(MARK) + _HEAD_BYTES :], place.encode())
        except InvalidTag:
            return None

    def has_key_of(self, sealed: bytes) -> bool:
        """Whether one of the keys has encrypted the value, unless somebody changed it."""
        return sealed.startswith(MARK) and sealed[len(MARK) : len(MARK) + _ID_BYTES] in self._keys

    def is_current(self, sealed: bytes) -> bool:
        """Whether the key that encrypts now has encrypted the value."""
        return sealed.startswith(MARK + _id_of(self._first))

    def _derived(self, key: bytes, salt: bytes) -> "AESGCM":
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), _KEY_BYTES, salt, b"dray: values in Redis").derive(self._keys[key]))


def vault() -> Vault | None:
    """The vault of this process; None while encryption is off. Raises SealingError."""
    text = os.environ.get(PRIVACY_KEYS, "")
    return _vault_of(text) if text else None


def seal(value: bytes, place: str) -> bytes:
    """The value as it is stored at this place: encrypted if encryption is on."""
    own = vault()
    return own.seal(value, place) if own is not None else value


def unseal(stored: bytes, place: str) -> bytes | None:
    """The value that is stored at this place; None if it cannot be decrypted. While encryption is on, also for one that
    is not encrypted: whoever can write into Redis could have put it there."""
    own = vault()
    if not stored.startswith(MARK):
        return stored if own is None else None
    return own.unseal(stored, place) if own is not None else None


def unseal_record(stored: bytes, place: str) -> bytes | None:
    """The same for records that people made, which must outlive the day when encryption is turned on: it also returns
    one that is not encrypted yet."""
    return unseal(stored, place) if stored.startswith(MARK) else stored


def seal_text(text: str, place: str) -> str:
    """The text as it is stored in JSON or among other texts: encrypted if encryption is on."""
    own = vault()
    return _TEXT_MARK + base64.b64encode(own.seal(text.encode(), place)).decode() if own and text else text


def unseal_text(stored: str, place: str) -> str | None:
    """The text that is stored at this place; None if it cannot be decrypted. Also one that is not encrypted yet."""
    if not stored.startswith(_TEXT_MARK):
        return stored
    try:
        text = unseal(base64.b64decode(stored.removeprefix(_TEXT_MARK), validate=True), place)
        return text.decode() if text is not None else None
    except ValueError:  # not base64, or not UTF-8
        return None


@lru_cache(8)
def _vault_of(text: str) -> Vault:
    keys = []
    for number, part in enumerate(text.split(","), 1):
        try:
            key = base64.b64decode(part.strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != _KEY_BYTES:
            what_to_do = "make one: openssl rand -base64 32"
            raise SealingError(f"key {number} in {PRIVACY_KEYS} is not {_KEY_BYTES} bytes in base64; {what_to_do}")
        keys.append(key)
    return Vault(tuple(keys))


def _id_of(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=_ID_BYTES, person=b"dray key").digest()
