"""Every notebook on the `smoke` preset: as a user would run it, and with parameters that are
wrong."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

import unmask
from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.execute import check, execute, targets

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("book/*.ipynb")])


@pytest.fixture(autouse=True)
def in_smoke_store(smoke_store, monkeypatch):
    monkeypatch.setenv("UNMASK_STORE", str(smoke_store.root))
    monkeypatch.chdir(ROOT)


# 01 to 06 run on a preset that is not published in test_images, and plainly below; 07 to 09 take
# none, and are executed for the book
@pytest.mark.parametrize("notebook", ["notebooks/your_network.ipynb", "book/claims.ipynb"])
def test_notebook_runs_on_smoke_and_shows_its_verdicts(notebook, tmp_path):
    arguments = [notebook, "-p", "preset", "smoke", "-p", "jobs", "1", "--output", str(tmp_path)]
    assert main(["execute", *arguments]) == 0
    cells = nbformat.read(tmp_path / Path(notebook).name, 4).cells
    assert 'class="statistic"' in cells[-1].outputs[0].data["text/html"]


def test_the_kernel_is_the_interpreter_that_runs_unmask(tmp_path, monkeypatch):
    """Whatever else a user calls python3."""
    other = tmp_path / "jupyter/kernels/python3/kernel.json"
    other.parent.mkdir(parents=True)
    other.write_text('{"argv": ["/bin/false"], "display_name": "Other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    notebook, copy = (
        written(tmp_path / "a.ipynb", "import sys; sys.executable"),
        tmp_path / "b.ipynb",
    )
    execute(notebook, copy, {})
    assert repr(sys.executable) in nbformat.read(copy, 4).cells[0].outputs[0].data["text/plain"]
    assert "JUPYTER_PATH" not in os.environ


def test_torchrun_executes_no_notebook(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert main(["execute", "notebooks/05_role_of_retraining.ipynb"]) == 2
    assert "error: execute: without torchrun" in capsys.readouterr().err


def test_a_page_of_published_tables_alone_computes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("unmask.tables.measure", lambda *_, **__: pytest.fail("computed"))
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path / "store"))
    notebook, output = "notebooks/05_role_of_retraining.ipynb", ["--output", str(tmp_path)]
    assert main(["execute", notebook, "-p", "compute", "False", *output]) == 0
    cells = nbformat.read(tmp_path / Path(notebook).name, 4).cells
    assert "Nothing was computed to build this page." in str(cells)
    assert not list((tmp_path / "store").rglob("*.json"))
    # what is not published cannot be shown without computing
    other = [notebook, "-p", "compute", "False", "-p", "preset", "smoke", *output]
    assert main(["execute", *other]) == 2
    said = "are not published"
    assert said in capsys.readouterr().err


def test_parameters_are_tried_on_the_notebook_s_own_preset(tmp_path):
    text = Path("notebooks/02_linear_connectivity.ipynb").read_text()
    assert text.count("miniature_short") == 1
    notebook = tmp_path / "mine.ipynb"
    notebook.write_text(text.replace("miniature_short", "cifar10_resnet20"))
    check(notebook, {"rewind_steps": [0, 2000], "settings": {"augmentation": "crop-flip"}})
    with pytest.raises(UnmaskError, match="width=0: must be"):
        check(notebook, {"settings": {"width": 0}})
    with pytest.raises(UnmaskError, match="compute='false': must be True or False"):
        check(notebook, {"compute": "false"})
    with pytest.raises(UnmaskError, match="compute='false': must be True or False"):
        unmask.shown(unmask.experiment("smoke"), ["levels"], compute="false")


@pytest.mark.xdist_group("ray")  # not while a cluster takes free ports: its kernel has one of TCP
def test_plain_papermill_works_too(tmp_path):
    out = tmp_path / "out.ipynb"
    notebook = "notebooks/02_linear_connectivity.ipynb"
    parameters = "-p preset smoke -p seeds 1 --no-progress-bar -k python3"
    command = [sys.executable, "-m", "papermill", notebook, str(out), *parameters.split()]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert out.exists()


def written(path, source):
    """A notebook of one cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cell = nbformat.v4.new_code_cell(source)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def test_a_failing_cell_is_one_line_and_leaves_no_output(tmp_path):
    source = "from unmask import UnmaskError\nraise UnmaskError('broken on purpose')"
    notebook = written(tmp_path / "bad.ipynb", source)
    with pytest.raises(UnmaskError, match="^bad.ipynb, cell 1: UnmaskError: broken on purpose$"):
        execute(notebook, tmp_path / "out" / "bad.ipynb", {})
    assert list((tmp_path / "out").iterdir()) == []


def test_kernels_do_not_compete_for_ports(tmp_path):
    source = "from ipykernel.connect import *\nassert get_connection_info(unpack=True)"
    notebook = written(tmp_path / "a.ipynb", f"{source}['transport'] == 'ipc'")
    execute(notebook, tmp_path / "out.ipynb", {})


def test_executed_copies_have_files_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, other = (written(tmp_path / name, "1 + 1") for name in ("a/one.ipynb", "a/other.ipynb"))
    same = written(tmp_path / "b/one.ipynb", "1 + 1")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "v1.2").mkdir()
    before = one.read_bytes()
    over = "the copy of {} would be written over it"
    for notebooks, output, said in (
        ([one], "a", over.format(one)),
        ([one], "a/one.ipynb", over.format(one)),
        ([other, one], "link", over.format(other)),
        ([one], "report.html", "must be a folder, or for one notebook a file .ipynb"),
        ([one, other], "out.ipynb", "must be a folder when there are several notebooks"),
    ):
        with pytest.raises(UnmaskError) as caught:
            targets(notebooks, Path(output), {})
        assert str(caught.value) == f"output={output!r}: {said}"
    with pytest.raises(UnmaskError, match="^two notebooks have the same name, and would be writ"):
        targets([one, same], None, {})
    assert main(["execute", str(one), "--output", "a"]) == 2
    assert over.format(one) in capsys.readouterr().err and one.read_bytes() == before

    default = Path("build/executed")
    assert targets([one, other], None, {}) == [
        (one, default / "one.ipynb"),
        (other, default / "other.ipynb"),
    ]
    for output, file in (
        ("new.ipynb", "new.ipynb"),
        ("b", "b/one.ipynb"),
        ("new", "new/one.ipynb"),
        ("v1.2", "v1.2/one.ipynb"),
    ):
        assert targets([one], Path(output), {}) == [(one, Path(file))]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_holds_calls_and_no_outputs(notebook):
    for cell in nbformat.read(notebook, 4).cells:
        if cell.cell_type != "code":
            continue
        assert not cell.outputs and cell.execution_count is None, cell.id
        assert "def " not in cell.source and len(cell.source.splitlines()) <= 18, cell.id


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_unmask_where_it_is_missing_and_only_there(notebook, monkeypatch):
    """The buttons of a page open it on machines that know nothing of this repository."""
    cell = next(cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code")
    asked, said = [], lambda name, line: asked.append(f"{name} {line}")
    shell = SimpleNamespace(system=asked.append, run_line_magic=said)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run():
        exec(TransformerManager().transform_cell(cell.source), {"get_ipython": lambda: shell})
        return asked

    assert run() == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    clone = Path(url).name
    assert run() == [f"git clone -q {url}", f"pip install -q -e {clone}"]
    assert (ROOT / Path(sys.path[-1]).relative_to(clone) / "unmask/__init__.py").is_file()
