"""Paths at fsspec URLs, such as in a bucket, beside those of folders; see `store`.

A file appears there whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UnmaskError

if TYPE_CHECKING:
    from upath import UPath

# How often, in seconds, a claim is renewed, and when it counts as that of a process that died: the
# clocks of machines may be that far apart. Where they are not, work is done twice.
BEAT, DEAD = 10, 60


def is_url(root: Path | str) -> bool:
    return "://" in str(root) and not str(root).startswith("file://")


def at(url: str) -> UPath:
    """The path at a URL.
    Raises UnmaskError: its scheme is not known, or a package that it needs is not installed; or it
    names no place."""
    if not url.partition("://")[2].strip("/") and not url.startswith("memory:"):
        raise UnmaskError(f"store={url!r}: names no bucket or folder")
    with reaching("store", url, "used"):
        if find_spec("upath") is None:
            raise ImportError("pip install -e '.[remote]'")
        from upath import UPath

        path = UPath(url.rstrip("/"))
        _ = path.fs
        return path


@contextlib.contextmanager
def reaching(option: str, path: Path | UPath | str, done: str = "written") -> Iterator[None]:
    """Inside, files are written to, or read from, a path that a user chose by an option.
    Raises UnmaskError: they cannot be. But what goes wrong when a folder's file is read is about
    that file, as is that there is none at a URL."""
    local = isinstance(path, Path)
    kinds, own = (OSError, OSError) if local else (Exception, FileNotFoundError)
    try:
        yield
    except UnmaskError:
        raise
    except kinds as error:  # for a URL, those of its scheme's package
        if done == "read" and isinstance(error, own):
            raise
        said = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        said = f"cannot be {done}: {said or type(error).__name__}"
        raise UnmaskError(f"{option}={str(path)!r}: {said}") from error


def exists(path: Path | UPath) -> bool:
    """Is there a file, or a folder?"""
    if isinstance(path, Path):
        return os.path.exists(path)
    with contextlib.suppress(FileNotFoundError), reaching("store", path, "read"):
        return bool(path.stat())
    return False


def files(folder: UPath) -> list[str]:
    """All that are in it and in its folders, by their names in it."""
    with contextlib.suppress(FileNotFoundError), reaching("store", folder, "read"):
        found = folder.fs.find(folder.path)
        folder.fs.invalidate_cache()  # others write there as well
        names = (path.removeprefix(folder.path).lstrip("/") for path in found)
        return [name for name in names if name]  # s3fs may name the folder
    return []


def write(path: UPath, data: bytes, mode: str = "overwrite") -> None:
    path.fs.pipe_file(path.path, data, mode=mode)


def remove(path: Path | UPath) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink() if isinstance(path, Path) else path.fs.rm_file(path.path)


def prepare(root: UPath) -> None:
    """See that it can be written, after which it exists, and sweep claims of dead processes."""
    write(root / "writable", b"")
    for name in files(root / "claims"):
        if ".claims/" in name and _age(claim := root / "claims" / name) > 60 * DEAD:
            remove(claim)


@contextlib.contextmanager
def claim(path: UPath) -> Iterator[None]:
    """Inside, this process has a claim on what goes by that path, and renews it while it lives.

    To take over the claim of one that died is to make the next, named with an x more: of all who
    try, the store lets one.
    Raises Timeout: another process has it."""
    from filelock import Timeout

    folder = path.with_name(path.name + ".claims")
    known = files(folder)
    if known and _age(folder / max(known)) < DEAD:
        raise Timeout(str(path))
    mine, ended = folder / (max(known, default="") + "x"), threading.Event()
    try:
        write(mine, str(time.time()).encode(), "create")
    except Exception as error:  # S3: "pre-conditions did not hold", "conditional request conflict"
        if isinstance(error, FileExistsError) or "condition" in str(error):
            raise Timeout(str(path)) from error
        raise
    for name in known:
        remove(folder / name)

    def renew():
        while not ended.wait(BEAT):
            with contextlib.suppress(Exception):  # whoever needs the store will say so
                write(mine, str(time.time()).encode())

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # or it will count as dead
            remove(mine)


def _age(path: UPath) -> float:
    """For how many seconds a claim has not been renewed."""
    with contextlib.suppress(FileNotFoundError), reaching("store", path, "read"):
        return time.time() - float(path.read_bytes())
    return 0  # given up a moment ago
