"""Executing notebooks with papermill, parameters checked first."""

import contextlib
import sys
import tempfile
from pathlib import Path

from .errors import UnmaskError
from .experiments import bad, experiment, literal
from .lab import Lab
from .own import foreign
from .parallel import check_backend, check_jobs
from .remote import reaching
from .store import Store


def targets(
    notebooks: list[Path], output: Path | None, parameters: dict
) -> list[tuple[Path, Path]]:
    """Each notebook with the file its executed copy goes to, after checking all of them.
    Raises UnmaskError: a notebook is missing or does not take the parameters; two would be written
    to one file, or one over its source."""
    for notebook in notebooks:
        check(notebook, parameters)
    output = output or Path("build/executed")
    shown = f"output={str(output)!r}"
    one = output.suffix == ".ipynb"
    if one and len(notebooks) > 1:
        raise UnmaskError(f"{shown}: must be a folder when there are several notebooks")
    if not one and output.suffix and not output.is_dir():
        raise UnmaskError(f"{shown}: must be a folder, or for one notebook a file .ipynb")
    files = [output if one else output / notebook.name for notebook in notebooks]
    if len(set(files)) < len(files):
        raise UnmaskError("two notebooks have the same name, and would be written to one file")
    for notebook, file in zip(notebooks, files):
        if file.exists() and file.samefile(notebook):
            raise UnmaskError(f"{shown}: the copy of {notebook} would be written over it")
    return list(zip(notebooks, files))


def check(notebook: Path, parameters: dict) -> None:
    """Compare parameters with those the notebook has, and try them on its preset.
    Raises UnmaskError: no such notebook or parameter, or an experiment, `jobs` or device that
    cannot be."""
    import papermill

    if not notebook.is_file():
        raise UnmaskError(f"notebook={str(notebook)!r}: no such file")
    with foreign(f"notebook={str(notebook)!r}: is not a notebook:"):
        known = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise UnmaskError(f"unknown parameter {name!r}: {notebook.name} has {', '.join(known)}")
    if "settings" not in known:  # a page about published results, which says itself what there is
        return
    others = "jobs", "backend", "minutes", "compute"  # than the experiment's
    given = {"preset": literal(known["preset"]["default"])} if "preset" in known else {}
    given |= {name: value for name, value in parameters.items() if name not in others}
    settings = given.get("settings") or {}
    if twice := [name for name in known if isinstance(settings, dict) and name in settings]:
        said = f"{twice[0]} is a parameter of the notebook; set it there"
        raise UnmaskError(f"settings={settings!r}: {said}")
    if not isinstance(parameters.get("compute", True), bool):
        raise bad("compute", parameters["compute"], "True or False")
    check_jobs(parameters.get("jobs"))
    check_backend(parameters.get("backend", "local"))
    Lab(experiment(**given), Store())


def execute(notebook: Path, target: Path, parameters: dict) -> None:
    """Execute `notebook` with `parameters` into `target`, which is written whole or not at all.

    The notebook's own messages, such as progress lines, are passed on to stderr.
    Raises UnmaskError: a cell failed, the kernel died, or the target cannot be written."""
    import papermill
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient.exceptions import DeadKernelError
    from traitlets import default
    from traitlets.config import Config

    class ThisPython(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _none_but_the_interpreter_that_runs_this(self):
            # in a folder, a user's own specification of what is called python3 would go first
            return KernelSpecManager(kernel_dirs=[])

    partial = target.with_name(f".{target.name}.partial.ipynb")
    try:
        with reaching("output", target), tempfile.TemporaryDirectory() as folder:
            target.parent.mkdir(parents=True, exist_ok=True)
            papermill.execute_notebook(
                str(notebook),
                str(partial),
                parameters,
                kernel_name="python3",
                kernel_manager_class=ThisPython,
                progress_bar=False,
                stderr_file=sys.stderr,
                # a TCP port that is free now may be taken when the kernel comes to bind it
                config=Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"}),
                # else a kernel warns of its connection and of its end
                extra_arguments=[
                    "--IPKernelApp.log_level=CRITICAL",
                    "--InlineBackend.figure_formats=svg",
                ],
            )
            partial.replace(target)
    except papermill.PapermillExecutionError as error:
        said = str(error.evalue).partition("\n")[0]
        said = f"{notebook.name}, cell {error.exec_count}: {error.ename}: {said}"
        raise UnmaskError(said) from error
    except DeadKernelError as error:
        said = f"{notebook.name}: its kernel was killed, perhaps for want of memory"
        raise UnmaskError(said) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
