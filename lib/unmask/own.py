"""What users bring: functions of their own, by a name that says where they are.

A name is `FILE.py:FUNCTION` or `MODULE:FUNCTION`; of networks also `torchvision:NAME` and
`timm:NAME`. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import UnmaskError

LIBRARIES = ("torchvision", "timm")


def is_own(name: str) -> bool:
    """Is it the name of something that is not built in?"""
    place, colon, what = name.rpartition(":")
    return bool(place and colon and what)


def name_of(function: Callable) -> str:
    """The name of a function, by its file.
    Raises UnmaskError: it is a lambda, stands within another function, or in no file."""
    what = getattr(function, "__qualname__", type(function).__qualname__)
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
    return [place, what] if place in LIBRARIES else [what, _digest(place, os.getcwd())]


@functools.cache  # for one process, an experiment stays what it was at first
def _digest(place: str, folder: str) -> str:
    return hashlib.sha256(_file(place).read_bytes()).hexdigest()[:16]


def _file(place: str) -> Path:
    if place.endswith(".py"):
        file = Path(place).expanduser()
    else:
        _from_here()
        try:
            found = importlib.util.find_spec(place)
        except (ImportError, ValueError):
            found = None
        file = Path((found and found.origin) or "")
    if not file.is_file():
        raise UnmaskError(f"{place!r}: there is no such file or module")
    return file.absolute()


def find(name: str) -> Callable:
    """The function of that name.
    Raises UnmaskError: its file cannot be imported, or has none of that name."""
    place, _, what = name.rpartition(":")
    file = _file(place)
    try:
        if place.endswith(".py"):
            known = f"_unmask_own_{_digest(place, os.getcwd())}"
            if known not in sys.modules:
                spec = importlib.util.spec_from_file_location(known, file)
                sys.modules[known] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(sys.modules[known])
            module = sys.modules[known]
        else:
            module = importlib.import_module(place)
    except Exception as error:  # whatever a user's file does
        sys.modules.pop(f"_unmask_own_{_digest(place, os.getcwd())}", None)
        raise UnmaskError(f"{name}: {file.name} cannot be imported: {one_line(error)}") from error
    function = getattr(module, what, None)
    if not callable(function):
        raise UnmaskError(f"{name}: {file.name} has no function {what!r}")
    return function


def one_line(error: Exception) -> str:
    """An error of somebody else's code, as the end of a line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _from_here() -> None:
    """As with `python -m`, modules are also looked for in the present folder."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
