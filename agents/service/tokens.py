"""Bearer tokens: who may use the service. The file holds hashes only."""

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from recognizers.errors import ConfigurationError
from recognizers.files import read_json, write_json
from recognizers.settings import validate


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: str


class _Entries(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: tuple[_Entry, ...] = ()


class Tokens:
    """The tokens in a file. One that is added or deleted there counts from the next request on.

    A token is 256 random bits, so its plain SHA-256 cannot be turned back, and a slow hash would only slow requests.

    Args:
        path: of the file; there are no tokens where there is no file.

    Raises:
        FileError: it cannot be read.
        ConfigurationError: it is malformed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._entries = _Entries()
        self._refresh()

    def __len__(self) -> int:
        self._refresh()
        return len(self._entries.tokens)

    def owner(self, token: str) -> str | None:
        """The name of a token; None for a wrong one. Takes as long whichever entry it is compared with."""
        self._refresh()
        digest = _digest(token)
        owner = None
        for entry in self._entries.tokens:
            if hmac.compare_digest(entry.sha256, digest):
                owner = entry.name
        return owner

    def create(self, name: str) -> str:
        """A new token, which is shown this once and never again.

        Raises:
            ConfigurationError: the name is taken, or not usable.
        """
        self._refresh()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            raise ConfigurationError(f"a token's name has up to 64 letters, digits, '_', '.' and '-', not {name!r}")
        if any(entry.name == name for entry in self._entries.tokens):
            raise ConfigurationError(f"there is a token {name!r} already: choose another name, or delete that one")
        token = secrets.token_urlsafe(32)
        entry = _Entry(name=name, sha256=_digest(token), created=datetime.now(UTC).isoformat(timespec="seconds"))
        write_json(self._path, _Entries(tokens=(*self._entries.tokens, entry)).model_dump())
        self._path.chmod(0o600)
        return token

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._entries = None, _Entries()
            return
        stamp = status.st_mtime_ns, status.st_ino
        if stamp != self._stamp:
            self._entries = validate(_Entries, read_json(self._path), str(self._path))
            self._stamp = stamp


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
