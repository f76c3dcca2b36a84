"""The store: everything computed, once, in a folder or at an fsspec URL.

An entry is a data file (`.safetensors` for tensors, `.csv` for tables) and, written after it, a
`.json` beside it with the data's SHA-256 and provenance. Both are written to a temporary name and
renamed, or put at once, so an entry is either whole or absent and several processes may share one
store. Reading checks the checksum; a damaged entry is reported and counts as absent, so it is
computed again. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import platform
import re
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from . import processes, remote
from .errors import UnmaskError
from .remote import reaching

if TYPE_CHECKING:
    import pandas

TENSORS, TABLE = ".safetensors", ".csv"
# A file that is written for a day is that of a process that died. On whichever machine, as those
# that share a folder do not see each other's processes.
_DAY = 86_400  # seconds


def default_root() -> Path:
    """`$UNMASK_STORE`, if it is a folder; else `store/` of the checkout this runs from; else the
    user's cache folder."""
    if (chosen := os.environ.get("UNMASK_STORE")) and not remote.is_url(chosen):
        return expanded(chosen)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / "store"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "unmask"


def expanded(path: Path | str) -> Path:
    """The absolute path, `~` expanded; also of `file://PATH`.
    Raises UnmaskError: there is no such user, or it is a URL that lacks a slash."""
    if re.match(r"\w{2,}:/(?!/)", str(path)):
        raise UnmaskError(f"path={str(path)!r}: a URL has two slashes after its colon")
    try:
        return Path(str(path).removeprefix("file://")).expanduser().absolute()
    except RuntimeError as error:
        raise UnmaskError(f"path={str(path)!r}: there is no such user") from error


class Store:
    """Entries by name, a relative path such as `RECIPE/seed0/rewind0050/imp/level03.safetensors`.
    `root`: its folder or URL; by default `$UNMASK_STORE`, or else `default_root`.
    Raises UnmaskError: it cannot be made or written, or the disk is full; as `remote.at`; a URL
    cannot be reached."""

    def __init__(self, root: Path | str | None = None):
        root = root if root is not None else os.environ.get("UNMASK_STORE") or default_root()
        self.root = remote.at(root) if remote.is_url(root) else expanded(root)
        self.unfinished: set[str] = set()  # trainings kept until what comes of them is stored

    def prepare(self) -> None:
        """Make the folder, see that it can be written, and sweep what writers that are dead by now
        have left; before anything is computed.
        Raises UnmaskError: it cannot be written."""
        with reaching("store", self.root):
            if not isinstance(self.root, Path):
                return remote.prepare(self.root)
            self.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()
        # trainings that nobody resumed for a month were done in another way
        for pattern, days in (("**/.unmask-*.partial", 1), ("*/unfinished/*", 30)):
            for path in self.root.glob(pattern):
                with contextlib.suppress(OSError):  # gone, or somebody else's to remove
                    if path.stat().st_mtime < time.time() - days * _DAY:
                        path.unlink()

    def __contains__(self, name: str) -> bool:
        return remote.exists(self.root / (name + ".json"))

    def tensors(self, name: str, fits: Callable[[dict], bool] = lambda _: True) -> dict | None:
        """The stored dict of tensors, in order of their names, or None if it is not there whole, or
        not as it should be by `fits`."""
        import safetensors.torch

        data = self._read_whole(name + TENSORS)
        if data is None:
            return None
        try:
            found = dict(sorted(safetensors.torch.load(data).items()))  # they come in any order
        except Exception as error:  # safetensors raises several kinds
            return self._discard(name + TENSORS, f"no tensors: {type(error).__name__}")
        return found if fits(found) else self._discard(name + TENSORS, "other names or shapes")

    def put_tensors(self, name: str, tensors: dict, seconds: float = 0.0, wait: bool = True):
        """Store a dict of tensors, and how long it took to compute. Processes that train together
        `wait` for it."""
        import safetensors.torch

        self._put(name + TENSORS, safetensors.torch.save(tensors), seconds, wait)

    def finish(self) -> None:
        """Remove unfinished trainings that were resumed or kept: what came of them is stored."""
        for name in self.unfinished:
            with reaching("store", self.root / name):
                for ending in (TENSORS + ".json", TENSORS):
                    remote.remove(self.root / (name + ending))
        self.unfinished.clear()

    def table(self, name: str, compute: Callable[[], pandas.DataFrame]) -> pandas.DataFrame:
        """The stored table; computed and stored first if it is not there whole. Numbers survive
        the round trip to the bit: they are written with as many digits as they need."""
        data = self._read_whole(name + TABLE)
        if data is not None:
            try:
                return reading_csv(io.BytesIO(data))
            except ValueError as error:  # pandas' own are of that kind
                self._discard(name + TABLE, f"no table: {type(error).__name__}")
        start = time.perf_counter()
        data = csv_of(compute())
        self._put(name + TABLE, data, time.perf_counter() - start)
        return reading_csv(io.BytesIO(data))  # what a later run will read, to the bit

    @contextlib.contextmanager
    def claimed(self, names: Iterable[str]) -> Iterator[set[str]]:
        """Inside, this process alone has a claim on the names that it gets: those that no other
        process has. The claims of one that dies end with it."""
        from filelock import FileLock, Timeout

        held = set(names) if processes.count() > 1 else set()  # which work together anyway
        with contextlib.ExitStack() as stack:
            for name in sorted(set(names) - held):
                path = self.root / "claims" / name
                with reaching("store", path), contextlib.suppress(Timeout):
                    if local := isinstance(path, Path):
                        path.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(path, timeout=0) if local else remote.claim(path))
                    held.add(name)
            yield held

    def names(self, unreadable: Callable[[OSError], None] = lambda _: None) -> list[str]:
        """All entries, in order of their names; `unreadable` is told of folders that cannot be
        read."""
        if isinstance(self.root, Path):
            tree = os.walk(self.root, onerror=unreadable, followlinks=True)
            paths = (os.path.join(here, n) for here, *there in tree for n in chain(*there))
            files = (path.removeprefix(str(self.root)).lstrip("/") for path in paths)
        else:
            files = remote.files(self.root)
        names = (file.removesuffix(".json") for file in files if file.endswith(".json"))
        return sorted(name for name in names if name.endswith((TENSORS, TABLE)))

    def provenance(self, name: str) -> dict:
        """What is known of an entry: checksum, size, date, wall time, versions, host.
        Raises ValueError: it is no such record."""
        try:
            about = json.loads(_read_file(self.root / (name + ".json"), 1_000_000))
        except UnmaskError:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError("its .json cannot be read") from error
        kinds = {"bytes": int, "seconds": (int, float), "sha256": str, "date": str}
        known = about if isinstance(about, dict) else {}
        odd = [key for key, kind in kinds.items() if not isinstance(known.get(key), kind)]
        odd = odd or [key for key in ("bytes", "seconds") if not 0 <= known[key] < 1e15]
        if odd:
            raise ValueError(f"its .json is not a record: no {odd[0]}")
        return about

    def damage(self, name: str) -> str | None:
        """What is wrong with an entry, or None if its bytes are those that were stored."""
        return self._read(name)[1]

    def whole(self, name: str) -> bool:
        """Is the entry there, and undamaged? A damaged one is reported and removed."""
        return self._read_whole(name) is not None

    def _read_whole(self, name):
        if name not in self:
            return None
        data, damage = self._read(name)
        return data if damage is None else self._discard(name, damage)

    def _discard(self, name: str, damage: str) -> None:
        """Say what is wrong with an entry, and let it count as absent."""
        said = f"unmask: {self.root / name} is damaged ({damage}); computing it again"
        print(said, file=sys.stderr)
        with reaching("store", self.root / name):
            for path in (self.root / (name + ".json"), self.root / name):
                if path.is_dir() and not path.is_symlink():  # whoever put it there may want it
                    path.rename(path.with_name(f"{path.name}.damaged-{os.getpid()}"))
            remote.remove(self.root / (name + ".json"))

    def _read(self, name):
        try:
            expected = self.provenance(name)
            data = _read_file(self.root / name, expected["bytes"])
        except FileNotFoundError as error:
            return b"", f"{Path(error.filename or name).suffix} file missing"
        except OSError as error:
            return b"", f"cannot be read: {error.strerror}"
        except UnmaskError:
            raise
        except ValueError as error:
            return b"", str(error)
        if len(data) != expected["bytes"]:
            return b"", f"{len(data)} bytes, stored were {expected['bytes']}"
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            return b"", "its content was altered"
        # entries of before there were names have none
        if expected.get("name", name) != name:
            return b"", f"it is that of {expected['name']}"
        return data, None

    def _put(self, name, data, seconds, wait=True):
        if wait:
            processes.wait()  # until all have seen that it is not there yet
        if processes.rank() == 0:
            record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "name": name}
            record |= {"seconds": round(seconds, 3)} | _provenance()
            path = self.root / name
            with reaching("store", path):
                write_atomically(path, data)
                about = json.dumps(record, indent=1).encode()
                write_atomically(path.with_name(path.name + ".json"), about)
        if wait:
            processes.wait()


def _provenance() -> dict[str, str]:
    """When and where something is computed, and by what."""
    import torch

    about = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    about |= versions() | {"processor": processor(), "commit": commit()}
    if torch.cuda.is_initialized():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import numpy
    import torch

    python = platform.python_version()
    return {"python": python, "torch": torch.__version__, "numpy": numpy.__version__}


@functools.cache
def processor() -> str:
    """The processor's name, and where it can be told its model: many kinds share a name."""
    about = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    name = about.get("model name") or platform.processor() or platform.machine()
    keys = [key for key in ("cpu family", "model", "stepping") if key in about]
    numbers = ", ".join(f"{key.removeprefix('cpu ')} {about[key]}" for key in keys)
    return f"{name} ({numbers})" if numbers else name


@functools.cache
def commit() -> str:
    """The commit of the checkout this runs from, marked if something in it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        here = Path(__file__).parent
        result = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:  # no git here
        return "unknown"
    return result.stdout.strip() or "unknown"


def csv_of(table: pandas.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def reading_csv(source) -> pandas.DataFrame:
    """A table whose numbers are, to the bit, those that were written."""
    import pandas as pd

    exact = {} if pd.__version__ >= "3.1" else {"float_precision": "round_trip"}  # its default
    return pd.read_csv(source, **exact)


def _read_file(path: Path, most: int) -> bytes:
    """A regular file of at most so many bytes: no pipe is waited for, and no large file read that
    was put in a small one's place."""
    with reaching("store", path, "read"):
        about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    if about.st_size > most:
        raise ValueError(f"{about.st_size} bytes, stored were {most}")
    with reaching("store", path, "read"):
        return path.read_bytes()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, and its folder: under a temporary name, to rename it, so that it is there whole
    or not at all, as is what is put at a URL."""
    if not isinstance(path, Path):
        return remote.write(path, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not by `tempfile`, whose files are their owner's alone: stores are shared
    temporary = path.with_name(f".unmask-{uuid.uuid4()}.partial")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
