"""Published results: the tables of an experiment with their provenance, in a folder that git keeps."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import time
from pathlib import Path

import pandas as pd

from . import measure
from .errors import UnmaskError
from .experiments import Experiment, experiment
from .store import Store, reading_csv

FOLDER = Path(__file__).resolve().parents[2] / "results"


def publish(chosen: Experiment, store: Store, jobs: int | None = None, folder: Path = FOLDER) -> Path:
    """Write every table of the experiment to `folder/PRESET`, with where it came from; what is missing is computed.

    Raises:
        UnmaskError: bad input, or a folder that cannot be written.
    """
    import torch

    tables = measure.all_tables(chosen, store, jobs)
    entries = [name for name in store.names() if name.startswith(chosen.recipe)]
    provenance = {
        "experiment": dataclasses.asdict(chosen), "identity": chosen.id, "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "processor": _processor(),
        "device": chosen.device if chosen.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu",
        "core_seconds": round(sum(store.provenance(name)["seconds"] for name in entries)),
        "versions": versions()}
    target = folder / chosen.preset
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_csv(target / f"{name}.csv", index=False, lineterminator="\n")
        (target / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    except OSError as error:
        raise UnmaskError(f"publish={str(folder)!r}: cannot write {error.filename}: {error.strerror}") from error
    return target


def published(preset: str, folder: Path = FOLDER) -> tuple[Experiment, dict[str, pd.DataFrame], dict]:
    """The experiment, tables and provenance that `publish` wrote for a preset.

    Raises:
        UnmaskError: nothing is published under that name.
    """
    source = folder / preset
    if not (source / "provenance.json").exists():
        raise UnmaskError(f"preset={preset!r}: nothing is published for it in {folder}")
    provenance = json.loads((source / "provenance.json").read_text())
    fields = {name: value for name, value in provenance["experiment"].items() if name != "preset"}
    tables = {path.stem: reading_csv(path) for path in sorted(source.glob("*.csv"))}
    return experiment(preset, **fields), tables, provenance


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import numpy
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def _commit() -> str:
    """The checkout's commit, marked if something in it was changed since."""
    result = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], cwd=FOLDER.parent,
                            capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
