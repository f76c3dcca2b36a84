"""Compute everything, execute the notebooks, build the book: what `make book` runs.

The book is built from a staged copy (`build/src`), so the sources stay untouched while the links
of its pages still match the repository. With `--publish` the pages about published results are
composed anew, and the README gets its figure.
"""

import argparse
import copy
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import joblib
import nbformat
import papermill
import vl_convert
import yaml
from pages import PUBLISHED

from unmask import UnmaskError, experiment, findings, plots
from unmask.execute import execute
from unmask.findings.connectivity import VEGA_LITE
from unmask.results import evidence, published_names

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path("build/src")
PRESET = "miniature_short"  # what the notebooks compute, unless told otherwise
INDEX = Path("build/_build/html/index.html")
IMAGES = Path("book/images")
README_FIGURE = IMAGES / "02_linear_connectivity.svg"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    said = "refresh the pages on published results and the README figure"
    parser.add_argument("--publish", action="store_true", help=said)
    said = "published: compute nothing, show the published tables alone"
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--from", dest="source", choices=("store", "published"), help=said)
    which.add_argument("--preset", default=PRESET, help="compute this (default: %(default)s)")
    options = parser.parse_args()
    publish, compute = options.publish, options.source != "published"
    asked = {"preset": options.preset} if compute else {"compute": False}
    os.chdir(ROOT)

    times = {"compute": timed(run, "unmask", "run", options.preset) if compute else 0.0}
    if publish:
        for preset, about in PUBLISHED.items():
            nbformat.write(compose(preset), f"notebooks/{about['page']}.ipynb")
    stage()
    notebooks = [page for page in toc_files() if page.suffix == ".ipynb"]
    times["notebooks"] = timed(execute_all, notebooks, asked)
    quietly = "--path-output", "build", "-W", "--keep-going", "-q"
    times["pages"] = timed(run, "jupyter-book", "build", SOURCE, *quietly)
    # In a function: other scripts of a page use some of its names.
    library = f"(() => {{{vl_convert.javascript_bundle()}}})()"
    (INDEX.parent / "_static/vega.js").write_text(library)
    if publish:
        shutil.copy(SOURCE / README_FIGURE, README_FIGURE)

    print("\nTime taken")
    for part, seconds in {**times, "total": sum(times.values())}.items():
        print(f"  {part:<40}{seconds:7.1f} s")
    print(f"\nThe book: {ROOT / INDEX}")


def compose(preset):
    """The page about a published preset: its prose, where `[[name]]` stands for the template's cell
    of that name.

    What a figure shows of this preset may be said in the lines below that: `title: ...` takes the
    place of the bold words of its caption, `alt: ...` of its description.
    """
    page = nbformat.read(ROOT / "book/published.ipynb", 4)
    template = {cell.metadata.get("name"): cell for cell in page.cells}
    parameters = template["parameters"]
    parameters.source = re.sub('".*?"', f'"{preset}"', parameters.source, count=1)
    page.cells = []
    blocks = (ROOT / f"book/published/{preset}.md").read_text().strip().split("\n\n")
    for is_cell, some in groupby(blocks, lambda block: block.startswith("[[")):
        if is_cell:
            figures = PUBLISHED[preset]["figures"]
            page.cells += [filled_in(template, figures, block) for block in some]
        else:
            name = f"words-{len(page.cells)}"
            page.cells.append(nbformat.v4.new_markdown_cell("\n\n".join(some), id=name))
    return page


def filled_in(template, prefix, block):
    first, *changes = block.splitlines()
    cell = copy.deepcopy(template[first.strip("[]")])
    if "mystnb" in cell.metadata:
        changes = dict(line.split(": ", 1) for line in changes)
        figure, image = cell.metadata.mystnb.figure, cell.metadata.mystnb.image
        figure.name = figure.name.replace("fig", prefix)
        image.alt = changes.get("alt", image.alt)
        _, title, caption = figure.caption.split("**", 2)
        figure.caption = f"**{changes.get('title', title)}**{caption}"
    return cell


def run(program, *arguments):
    """Run a program of this virtual environment, to its end or this one's; if it fails, so does the
    build."""
    sys.stdout.flush()
    command = [program, *map(str, arguments)]
    ending = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    child = subprocess.Popen([Path(sys.executable).with_name(program), *command[1:]])
    try:
        code = child.wait()
    except KeyboardInterrupt:  # which the program has got as well
        sys.exit(child.wait())
    finally:
        child.terminate()
        signal.signal(signal.SIGTERM, ending)
    if code:
        sys.exit(f"book/build.py: failed with exit status {code}: {' '.join(command)}")


def execute_all(notebooks, asked):
    """Side by side, with the parameter `asked` where they may compute: their tables are in the
    store, or published."""

    def one(page):
        execute(page, SOURCE / page, asked if "compute" in papermill.inspect_notebook(page) else {})
        print(f"unmask: wrote {SOURCE / page}", flush=True)

    try:
        threads = joblib.Parallel(min(4, joblib.cpu_count()), prefer="threads")
        threads(map(joblib.delayed(one), notebooks))
    except UnmaskError as error:
        sys.exit(f"book/build.py: {error}")
    for page in notebooks:
        fold(page)
        save_main_figure(page)


def fold(page):
    """How code stands on the page: a cell that shows nothing is one with the cell it leads to, and
    the bar of folded code names what it calls. A caption leads to the source of its figure, and to
    the published tables that it is drawn from."""
    notebook, cells = nbformat.read(SOURCE / page, 4), []
    default = papermill.inspect_notebook(page).get("preset", {}).get("default", PRESET)
    preset = notebook.metadata.papermill.parameters.get("preset", default.strip('"'))
    name = preset if preset in published_names() else evidence(experiment(preset), ["levels"])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            while cells and is_silent(cells[-1]):
                before = cells.pop()
                cell.source = f"{before.source}\n\n{cell.source}"
                cell.outputs = before.outputs + cell.outputs
            if calls := re.findall(r"^(?:\w+ = )?(?!glue)([\w.]+)\(", cell.source, re.M):
                about = cell.metadata.setdefault("mystnb", {})
                hidden = "hide-cell" in cell.metadata.get("tags", [])
                folded = "Table and code" if hidden else "Code"
                about["code_prompt_show"] = about["code_prompt_hide"] = f"{folded}: {calls[-1]}"
                module, _, function = calls[-1].partition(".")
                if "figure" in about and (module := getattr(findings, module, None)):
                    source = f" {{py:func}}`Source <unmask.findings.{calls[-1]}>`"
                    about["figure"]["caption"] += source + csv(getattr(module, function), name)
        cells += [cell, *live(cell)]
    notebook.cells = cells
    nbformat.write(notebook, SOURCE / page)


def csv(function, name):
    """Links to the tables published as `name` that a figure is drawn from: those that its function,
    or one that it calls, asks for by name."""
    seen, waiting, asked = set(), [function], set()
    while waiting:
        seen.add(one := waiting.pop())
        source = inspect.getsource(one)
        asked |= set(re.findall(r'(?:tables|found)\["(\w+)"\]', source))
        names = one.__globals__ | vars(plots)
        called = [names.get(word) for word in re.findall(r"(\w+)\(", source)]
        waiting += [f for f in called if inspect.isfunction(f) and f not in seen]
    files = [f"results/{name}/{table}.csv" for table in sorted(asked)]
    links = [f'<a href="../_static/{f}">{Path(f).name}</a>' for f in files if Path(f).exists()]
    return f' · <span class="picture">{", ".join(links)}</span>' if links else ""


def live(cell):
    """For a chart with controls: a cell that puts it in the place of its picture, where scripts
    run. Its library is one file of the book; a phone gets the panels below each other."""
    for output in cell.get("outputs", ()):
        if spec := output.get("data", {}).pop(VEGA_LITE, None):
            html = f"""<script src="../_static/vega.js"></script>
<script>{{
    const picture = document.querySelector("#{cell.metadata.mystnb.figure.name} img");
    const chart = document.createElement("div"), spec = {json.dumps(spec)};
    if (innerWidth < 700) spec.columns = 1;
    vegaEmbed(chart, spec).then(() => picture.replaceWith(chart));
}}</script>"""
            yield nbformat.v4.new_raw_cell(html, id="live", metadata={"format": "text/html"})


def is_silent(cell):
    """Does the page have code, but nothing that it shows? Glued numbers are for the prose."""
    if cell.cell_type != "code" or "remove-cell" in cell.metadata.get("tags", []):
        return False
    kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
    return all(kind.startswith("application/papermill.record/") for kind in kinds)


def timed(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def stage():
    """Copy prose and configuration; what an earlier build left would show up in the search."""
    for folder in (SOURCE, INDEX.parents[1]):
        shutil.rmtree(folder, ignore_errors=True)
    left_out = shutil.ignore_patterns("build.py", "pages.*", "*.ipynb", "published", "__*", ".*")
    shutil.copytree("book", SOURCE / "book", ignore=left_out)
    (SOURCE / "book/_static").rename(SOURCE / "_static")  # where style sheets are looked for
    shutil.copytree("results", SOURCE / "_static/results")
    for name in ("_config.yml", "_toc.yml", "lib/unmask/fields.toml"):
        shutil.copy(name, SOURCE)
    (SOURCE / "notebooks").mkdir()


def toc_files():
    """The pages of the book, as paths of this repository in reading order."""
    toc = yaml.safe_load(Path("_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    files = [Path(f"{name}{end}") for name in [toc["root"], *chapters] for end in (".ipynb", ".md")]
    return [file for file in files if file.exists()]


def save_main_figure(page):
    """The introduction shows the figure of each page, that of the cell tagged `main-figure`."""
    for cell in nbformat.read(SOURCE / page, 4).cells:
        if "main-figure" in cell.metadata.get("tags", []):
            kind = "image/svg+xml"
            (svg,) = [out.data[kind] for out in cell.outputs if kind in out.get("data", ())]
            (SOURCE / IMAGES / f"{page.stem}.svg").write_text(svg)


if __name__ == "__main__":
    main()
