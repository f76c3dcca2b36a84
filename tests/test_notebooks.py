"""Every notebook on the `smoke` preset: as a user would run it, and with parameters that are wrong."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.execute import execute

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("book/*.ipynb")])


@pytest.fixture(autouse=True)
def in_smoke_store(smoke_store, monkeypatch):
    monkeypatch.setenv("UNMASK_STORE", str(smoke_store.root))
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("notebook", [path for path in NOTEBOOKS if path.stem != "scale"], ids=lambda path: path.stem)
def test_notebook_runs_on_smoke_and_ends_in_its_verdicts(notebook, tmp_path):
    preset = [] if notebook.stem[:2] in ("07", "08") else ["-p", "preset", "smoke"]  # those show what is published
    assert main(["execute", str(notebook), *preset, "--output", str(tmp_path)]) == 0
    cells = nbformat.read(tmp_path / notebook.name, 4).cells
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked[-1] is cells[-1]
    assert all('class="statistic"' in cell.outputs[0].data["text/html"] for cell in checked)
    stderr = [o.text for cell in cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
    assert not any("Warning" in text for text in stderr), stderr


def test_plain_papermill_works_too(tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "notebooks/02_linear_connectivity.ipynb", str(out), "-p", "preset",
               "smoke", "-p", "seeds", "1", "--no-progress-bar", "-k", "python3"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert out.exists()


def test_a_failing_cell_is_one_line_and_leaves_no_output(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("from unmask import UnmaskError\n"
                                                                         "raise UnmaskError('broken on purpose')")])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    with pytest.raises(UnmaskError, match="^bad.ipynb, cell 1: UnmaskError: broken on purpose$"):
        execute(tmp_path / "bad.ipynb", tmp_path / "out" / "bad.ipynb", {})
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_holds_calls_and_no_outputs_but_its_verdicts(notebook):
    for cell in nbformat.read(notebook, 4).cells:
        if cell.cell_type != "code":
            continue
        assert "nbval-check-output" in cell.metadata.get("tags", []) or not cell.outputs, cell.id
        assert "def " not in cell.source and len(cell.source.splitlines()) <= 16, cell.id
