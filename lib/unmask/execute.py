"""Executing notebooks with papermill, parameters checked first."""

from __future__ import annotations

import sys
from pathlib import Path

from .errors import UnmaskError
from .experiments import experiment


def targets(notebooks: list[Path], output: Path | None) -> list[tuple[Path, Path]]:
    """Each notebook with the file its executed copy goes to.

    Raises:
        UnmaskError: a notebook is missing, or one output file is named for several notebooks.
    """
    for notebook in notebooks:
        if not notebook.is_file():
            raise UnmaskError(f"notebook={str(notebook)!r}: no such file")
    output = output or Path("build/executed")
    if output.suffix != ".ipynb":
        return [(notebook, output / notebook.name) for notebook in notebooks]
    if len(notebooks) > 1:
        raise UnmaskError(f"output={str(output)!r}: must be a folder when there are several notebooks")
    return [(notebooks[0], output)]


def check(notebook: Path, parameters: dict) -> None:
    """Compare parameters with those the notebook has, and try them on its preset.

    Raises:
        UnmaskError: the notebook has no such parameter, or its experiment does not allow the value.
    """
    import papermill

    known = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise UnmaskError(f"unknown parameter {name!r}: {notebook.name} has {', '.join(known)}")
    if "preset" in known:
        given = {name: value for name, value in parameters.items() if name not in ("settings", "jobs")}
        settings = parameters.get("settings", {})
        if not isinstance(settings, dict):
            raise UnmaskError(f"settings={settings!r}: must be a dictionary of fields, such as {{'lr': 0.5}}")
        experiment(**(given | settings))


def execute(notebook: Path, target: Path, parameters: dict) -> None:
    """Execute `notebook` with `parameters` into `target`, which is written whole or not at all.

    The notebook's own messages, such as progress lines, are passed on to stderr.

    Raises:
        UnmaskError: bad parameters, found before anything runs; a cell that failed; a target that cannot be written.
    """
    import papermill

    check(notebook, parameters)
    partial = target.with_name(f".{target.name}.partial.ipynb")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            str(notebook), str(partial), parameters, kernel_name="python3", progress_bar=False, stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=ERROR"])  # else each kernel warns of its loopback connection
        partial.replace(target)
    except papermill.PapermillExecutionError as error:
        raise UnmaskError(f"{notebook.name}, cell {error.exec_count}: {error.ename}: {error.evalue}") from error
    except OSError as error:
        raise UnmaskError(f"output={str(target)!r}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
