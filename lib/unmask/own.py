"""What users bring: functions of their own, by a name that says where they are.

A name is `FILE.py:FUNCTION` or `MODULE:FUNCTION`; of networks also `torchvision:NAME` and
`timm:NAME`. Nothing here imports torch.
"""

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from .errors import UnmaskError


def is_own(name: str) -> bool:
    """Is it the name of something that is not built in?"""
    place, colon, what = name.rpartition(":")
    return bool(place and colon and what)


def name_of(function: Callable) -> str:
    """The name of a function: by its module if that is one of a package, or else by its file.
    Raises UnmaskError: it is a lambda, stands within another function, or in no file."""
    function = inspect.unwrap(function)
    what = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", "")
    known = getattr(sys.modules.get(module), what, None)
    if "." in module and inspect.unwrap(known) is function:
        return f"{module}:{what}"
    try:
        file = inspect.getsourcefile(function) or ""
    except TypeError:
        file = ""
    if not what.isidentifier() or not Path(file).is_file():
        said = "must be a function at the top of a file, so that every process finds it by name"
        raise UnmaskError(f"{what}: {said}")
    return f"{file}:{what}"


def identity(name: str) -> list[str]:
    """What tells it from others: its own name, and a digest of the file that it is in. What that
    file imports does not count.
    Raises UnmaskError: there is no such file or module."""
    place, _, what = name.rpartition(":")
    if place in ("torchvision", "timm"):
        return [place, what]
    return [what, hashlib.sha256(_source(place, os.getcwd())[1]).hexdigest()[:16]]


@functools.cache  # for one process, what a file says is what it said at first
def _source(place: str, folder: str) -> tuple[Path, bytes]:
    """The file of a place as seen from a folder, and what it says."""
    if place.endswith(".py"):
        file = Path(place).expanduser()
    else:
        if folder not in sys.path:  # as with `python -m`
            sys.path.insert(0, folder)
        found = None
        # a package is imported to look into it
        with foreign(f"{place!r} cannot be imported:"), contextlib.suppress(ModuleNotFoundError):
            found = importlib.util.find_spec(place)
        file = Path((found and found.origin) or "")
    try:
        return file.absolute(), file.read_bytes()
    except OSError as error:
        raise UnmaskError(f"{place!r}: there is no such file or module") from error


def find(name: str) -> Callable:
    """The function of that name.
    Raises UnmaskError: its file cannot be imported, or has none of that name."""
    place, _, what = name.rpartition(":")
    file, source = _source(place, os.getcwd())
    with foreign(f"{name}: {file.name} cannot be imported:"):
        is_file = place.endswith(".py")
        module = _executed(file, source) if is_file else importlib.import_module(place)
    function = getattr(module, what, None)
    if not callable(function):
        raise UnmaskError(f"{name}: {file.name} has no function {what!r}")
    return function


@functools.cache
def _executed(file: Path, source: bytes) -> ModuleType:
    """A module of its own, made of what the file said when it was read. As of a script, what stands
    beside it can be imported."""
    name = f"_own_{hashlib.sha256(bytes(file) + source).hexdigest()[:16]}"
    if name in sys.modules:  # it asks for itself, as this is cached
        said = "runs unmask while it is imported: put that under `if __name__ == '__main__':`"
        raise UnmaskError(f"{file.name} {said}")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(file)
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def foreign(said: str) -> Iterator[None]:
    """Inside runs somebody else's code, or what reads a file of theirs, which may raise anything.
    Raises UnmaskError: it did; in one line, after what is `said`."""
    try:
        yield
    except UnmaskError:
        raise
    except (Exception, SystemExit) as error:  # a script that reads its own options ends itself
        raise UnmaskError(f"{said} {one_line(error)}") from error


@contextlib.contextmanager
def global_draws() -> Iterator[None]:
    """Inside, Python's and numpy's global generators may be seeded and drawn from; afterwards they
    are as they were found."""
    import numpy as np

    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def one_line(error: BaseException) -> str:
    """An error of somebody else's code, as the end of a line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
