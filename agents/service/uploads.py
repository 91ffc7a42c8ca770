"""Weights that clients upload: received into a file, looked at, and recorded."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import safetensors

from agents.service.errors import NotFoundError, ServiceError, TooLargeError
from agents.service.store import Store, Upload
from recognizers.files import atomic_path


class Uploads:
    """Files of uploaded weights, each with its row in the record.

    Args:
        directory: of the files. What lies there without a row, left by a kill, is removed.
        store: the record.
        most: files per owner.
        most_bytes: of a file.
    """

    def __init__(self, directory: Path, store: Store, *, most: int, most_bytes: int) -> None:
        self._directory, self._store = directory, store
        self._most, self._most_bytes = most, most_bytes
        directory.mkdir(parents=True, exist_ok=True)
        known = {self._path(id_) for id_ in store.uploads()}
        for path in directory.iterdir():
            if path not in known:
                path.unlink()

    async def receive(self, owner: str, chunks: AsyncIterator[bytes]) -> Upload:
        """Receive a file; whatever goes wrong, nothing of it stays.

        Raises:
            TooLargeError: it has more bytes than it may.
            TooManyError: the owner has as many files as it may.
            ServiceError: it is not safetensors.
        """
        id_ = secrets.token_hex(16)
        path, digest, size = self._path(id_), hashlib.sha256(), 0
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._most_bytes:
                        raise TooLargeError(f"weights may have {self._most_bytes:,} bytes")
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(_check, temporary)
        try:
            return self._store.add_upload(id_, owner, size=size, sha256=digest.hexdigest(), most=self._most)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def path(self, id_: str, owner: str) -> Path:
        """The file of an owner's weights.

        Raises:
            NotFoundError: there is none.
        """
        self._store.upload(id_, owner)
        path = self._path(id_)
        if not path.is_file():
            raise NotFoundError(f"no such weights: {id_}")
        return path

    def remove(self, id_: str, owner: str) -> None:
        """Delete weights; a pruning that has opened them goes on.

        Raises:
            NotFoundError: there are none.
        """
        self._store.remove_upload(id_, owner)
        self._path(id_).unlink(missing_ok=True)

    def _path(self, id_: str) -> Path:
        return self._directory / f"{id_}.safetensors"


def _check(path: Path) -> None:
    """Refuse what is not safetensors; only its header is read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            if not list(file.keys()):
                raise ServiceError("the upload holds no tensors")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ServiceError("the upload is not a readable safetensors file (truncated or corrupt)") from error
