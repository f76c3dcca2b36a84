"""Compute everything, execute the notebooks, build the book: what `make book` runs.

The book is built from a staged copy (`build/src`), so the sources stay untouched while the links
of its pages still match the repository. With `--publish` the committed notebooks get the outputs
of the cells that nbval compares, and the README its figure.
"""

import argparse
import base64
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import nbformat
import yaml

from unmask.results import versions
from unmask.store import processor

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path("build/src")
INDEX = Path("build/_build/html/index.html")
BIN = Path(sys.executable).parent
IMAGES = Path("book/images")
README_FIGURE = IMAGES / "02_linear_connectivity.png"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--publish", action="store_true", help="refresh the committed outputs and the README figure")
    publish = parser.parse_args().publish
    os.chdir(ROOT)

    times = {"compute": timed(run, "unmask", "run", "miniature")}
    stage()
    notebooks = [page for page in toc_files() if page.suffix == ".ipynb"]
    times["notebooks"] = timed(execute, notebooks)
    times["pages"] = timed(run, "jupyter-book", "build", SOURCE, "--path-output", "build", "-W", "--keep-going", "-q")
    if publish:
        IMAGES.mkdir(exist_ok=True)
        shutil.copy(SOURCE / README_FIGURE, README_FIGURE)
        for page in notebooks:
            commit_outputs(page)

    print("\nTime taken")
    for part, seconds in {**times, "total": sum(times.values())}.items():
        print(f"  {part:<40}{seconds:7.1f} s")
    print(f"\nThe book: {ROOT / INDEX}")


def run(command, *arguments):
    """Run a program of this virtual environment; if it fails, so does the build."""
    sys.stdout.flush()
    arguments = [str(argument) for argument in arguments]
    code = subprocess.run([BIN / command, *arguments]).returncode
    if code:
        sys.exit(f"book/build.py: failed with exit status {code}: {command} {' '.join(arguments)}")


def execute(notebooks):
    """Execute them side by side: their tables are in the store."""
    with ThreadPoolExecutor(min(4, joblib.cpu_count())) as pool:
        list(pool.map(lambda page: run("unmask", "execute", page, "--output", SOURCE / page), notebooks))
    for page in notebooks:
        save_main_figure(page)


def timed(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def stage():
    """Copy the prose and the configuration; what an earlier build left would show up in the search."""
    for folder in (SOURCE, INDEX.parents[1]):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("book", SOURCE / "book", ignore=shutil.ignore_patterns("*.py", "*.ipynb", "__pycache__", ".*"))
    (SOURCE / "book/_static").rename(SOURCE / "_static")  # where Jupyter Book looks for style sheets
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(name, SOURCE / name)
    (SOURCE / "notebooks").mkdir()
    (SOURCE / IMAGES).mkdir(exist_ok=True)


def toc_files():
    """The pages of the book, as paths of this repository in reading order."""
    toc = yaml.safe_load(Path("_toc.yml").read_text())
    names = [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [path for name in names for path in (Path(f"{name}.ipynb"), Path(f"{name}.md")) if path.exists()]


def save_main_figure(page):
    """The introduction shows the figure of each finding, that of the cell tagged `main-figure`."""
    for cell in nbformat.read(SOURCE / page, 4).cells:
        if "main-figure" in cell.metadata.get("tags", []):
            png = next(output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
            (SOURCE / IMAGES / f"{page.stem}.png").write_bytes(base64.b64decode(png))


def commit_outputs(page):
    """Give the committed notebook the outputs that nbval compares, and no others."""
    notebook, executed = nbformat.read(page, 4), nbformat.read(SOURCE / page, 4)
    fresh = {cell.id: cell for cell in executed.cells}
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    if any("nbval-check-output" in cell.metadata.get("tags", []) for cell in notebook.cells):
        notebook.metadata["unmask"] = {"processor": processor(), "versions": versions()}  # of what is compared
    for cell in notebook.cells:
        for noise in ("papermill", "execution", "ExecuteTime", "collapsed"):
            cell.metadata.pop(noise, None)
        if cell.cell_type == "code":
            checked = "nbval-check-output" in cell.metadata.get("tags", [])
            cell.outputs = fresh[cell.id].outputs if checked else []
            cell.execution_count = fresh[cell.id].execution_count if checked else None
    nbformat.write(notebook, page)


if __name__ == "__main__":
    main()
