"""A secret of this user, to sign what only this user's processes may have written."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
import sys
from pathlib import Path

SECRET_FILE = "secret"
SECRET_BYTES = 32


class UserSecret:
    """Signs text with HMAC-SHA256 (RFC 2104) under the secret that a folder keeps.

    Args:
        folder: where the secret is, or will be after the first call: a file that its user alone may
            read. Of processes that make it at the same time, one wins and all read its secret.

    Raises:
        OSError: if it cannot be kept there, or others may have read or written it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / SECRET_FILE
        try:
            self._key = _read(path)
        except FileNotFoundError:
            _make(path)
            self._key = _read(path)

    def sign(self, text: str) -> str:
        """The signature of a text, 64 hexadecimal digits."""
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def has_signed(self, text: str, signature: object) -> bool:
        """Whether a signature is that of the text."""
        return isinstance(signature, str) and hmac.compare_digest(
            self.sign(text).encode(), signature.encode(errors="replace")
        )


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | sum(getattr(os, f, 0) for f in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        private = sys.platform == "win32" or (
            status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
        )
        if not (stat.S_ISREG(status.st_mode) and private and status.st_size == SECRET_BYTES):
            raise OSError(f"{path} is no file of {SECRET_BYTES} bytes that its user alone may read")
        return os.read(descriptor, SECRET_BYTES)
    finally:
        os.close(descriptor)


def _make(path: Path) -> None:
    """Writes a new secret, whole from the moment that it has its name; an old one stays."""
    temporary = path.with_name(f".{SECRET_FILE}-{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(SECRET_BYTES))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
