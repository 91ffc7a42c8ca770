"""Tables of named things that users can add to."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from recognizers.errors import ConfigurationError, UnknownNameError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Named entries of one kind.

    Args:
        kind: what the entries are, for messages.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that registers what it decorates under ``name``.

        Raises:
            ConfigurationError: the name is taken.
        """

        def register(entry: Entry) -> Entry:
            if name in self._entries:
                raise ConfigurationError(f"{self._kind} {name!r} is registered already")
            self._entries[name] = entry
            return entry

        return register

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise UnknownNameError(self._kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
