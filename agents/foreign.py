"""Policies of others: a class in a file or a module, named ``path/to/file.py:Class`` or ``module:Class``."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from recognizers.errors import ConfigurationError, FileError


def is_foreign(name: str) -> bool:
    """Whether a policy's name is that of a class in a file, or in a module that can be found from here."""
    head, _, attribute = name.rpartition(":")
    if not head or not attribute.isidentifier():
        return False
    return head.endswith(".py") or _is_module(head)


def foreign_file(name: str) -> Path | None:
    """The file that a foreign policy's name begins with; None for a module."""
    head = name.rpartition(":")[0]
    return Path(head).expanduser().absolute() if head.endswith(".py") else None


def class_name(name: str) -> str:
    """The class that a foreign policy's name ends with."""
    return name.rpartition(":")[2]


def import_policy(name: str) -> type:
    """Import the class. Modules are looked for in the working directory, too; a file may import others beside it.

    Raises:
        FileError: no such file.
        ConfigurationError: importing fails, there is no such class, or it lacks ``reset`` or ``act``.
    """
    head, _, attribute = name.rpartition(":")
    try:
        path = foreign_file(name)
        module = _import_module(head) if path is None else _import_file(path)
    except FileError:
        raise
    except Exception as error:  # whatever the user's file does
        raise ConfigurationError(f"policy {name!r}: importing {head} failed: {error!r}") from error
    found = getattr(module, attribute, None)
    if not isinstance(found, type):
        raise ConfigurationError(f"policy {name!r}: {head} has no class {attribute}")
    for method in ("reset", "act"):
        if not callable(getattr(found, method, None)):
            raise ConfigurationError(f"policy {name!r}: {attribute} has no method {method}; see agents.policy.Policy")
    return found


def _is_module(head: str) -> bool:
    if not all(part.isidentifier() for part in head.split(".")):
        return False
    _look_here(Path.cwd())
    try:
        return importlib.util.find_spec(head) is not None
    except (ImportError, ValueError):
        return False


def _import_module(head: str) -> ModuleType:
    _look_here(Path.cwd())
    return importlib.import_module(head)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileError(f"no such file: {path}")
    _look_here(path.parent)
    digest = hashlib.sha256(f"{path} ".encode() + path.read_bytes()).hexdigest()[:12]
    name = f"zeroout_policy_{digest}"  # another one as soon as the file changes
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _look_here(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
