"""The files around the library: they agree with each other, name nothing of the machine they were
written on, and the walls that CONTRIBUTING.md speaks of stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import unmask
from unmask.experiments import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "lib/unmask"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def python(*arguments, cwd=ROOT, **variables):
    """A fresh interpreter: its exit status, and all it said."""
    said = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    environment = os.environ | {"MPLBACKEND": "agg"} | variables
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, **said)
    return result.returncode, result.stdout


def workflow(name):
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())["jobs"]


# What is installed, and where


def test_conda_environment_is_that_of_pyproject():
    """environment.yml asks pip for this project, its test extra and the pinned versions: nothing to
    drift apart."""
    *packages, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[test]"]}
    (version,) = [name.removeprefix("python") for name in packages if name.startswith("python")]
    assert SpecifierSet(version) == SpecifierSet(PROJECT["requires-python"])


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_are_names_versions_and_markers():
    form = r"[a-z0-9.-]+==[\w.]+( ; [\w .'\"<>=!()*]+)?"
    assert not [line for line in constraints() if not re.fullmatch(form, line)]


@pytest.mark.parametrize("version", PYTHONS)
def test_constraints_pin_every_dependency_within_its_range(version):
    environment = {"python_version": version, "python_full_version": f"{version}.9"}

    def asked(lines):
        requirements = map(Requirement, lines)
        return [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]

    pinned = {}
    for requirement in asked(constraints()):
        assert requirement.name not in pinned, f"{requirement.name} is pinned twice"
        pinned[requirement.name] = next(iter(requirement.specifier)).version
    for requirement in asked(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]):
        assert requirement.name in pinned
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.mark.parametrize(
    "schema, name",
    [
        ("github-workflows", ".github/workflows/test.yml"),
        ("github-workflows", ".github/workflows/book.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_file_is_valid_by_its_schema(schema, name):
    options = "--builtin-schema", f"vendor.{schema}", ROOT / name
    status, said = python("-m", "check_jsonschema", *options)
    assert status == 0, said


def test_workflows_run_what_a_reader_runs():
    for name, command in (("test.yml", "make test"), ("book.yml", "make book")):
        steps = [step for job in workflow(name).values() for step in job["steps"]]
        assert command in [step.get("run") for step in steps]
    versions = workflow("test.yml")["test"]["strategy"]["matrix"]["python-version"]
    assert tuple(versions) == PYTHONS


def test_ci_runs_make_test_and_nothing_after_it():
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


# How it is run on a cluster


def options_of(command):
    """Those that a command of a script takes."""
    status, said = python("-m", *command, "--help")
    assert status == 0, said
    return set(re.findall(r"--[a-z-]+", said))


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_array.sh"])
def test_scripts_for_slurm_are_shell_and_their_commands_take_their_options(name):
    script = ROOT / "deploy" / name
    assert script.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().replace("\\\n", " ").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    # Slurm reads none after the first command
    assert max(directives) < lines.index("set -euo pipefail")
    for line in (line for line in lines if not line.startswith("#")):
        for command in ("ray start", "ray health-check", "unmask run"):
            if command in line:
                module = ["unmask"] if command.startswith("unmask") else ["ray.scripts.scripts"]
                used = re.findall(r"--[a-z-]+", line.partition(command)[2])
                known = options_of(module + command.split()[1:])
                assert set(used) <= known, (command, used)


def test_the_manifest_for_kubernetes_is_a_ray_job_whose_pods_all_see_the_store():
    job = yaml.safe_load((ROOT / "deploy/kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    pinned = dict(line.split("==") for line in constraints() if ";" not in line)
    assert spec["rayVersion"] == pinned["ray"]
    _, command, preset, *options = job["spec"]["entrypoint"].split()
    assert command == "run" and preset in PRESETS and options == ["--backend", "ray"]
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (spec["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        variables = {each["name"]: each["value"] for each in container["env"]}
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert variables["UNMASK_STORE"] == mount["mountPath"]
        assert mount["name"] == volume["name"] and volume["persistentVolumeClaim"]["claimName"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


# What is written


def test_pages_of_the_table_of_contents_exist():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]

    def exists(page):
        return any((ROOT / f"{page}.{end}").exists() for end in ("md", "ipynb"))

    assert not [page for page in (toc["root"], *chapters) if not exists(page)]


def test_readme_names_both_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make book" in readme and "make test" in readme


def test_repository_is_at_one_address():
    address = PROJECT["urls"]["Repository"]
    config, citation = (
        yaml.safe_load((ROOT / name).read_text()) for name in ("_config.yml", "CITATION.cff")
    )
    assert config["repository"]["url"] == citation["repository-code"] == address


def test_no_file_names_a_machine_or_a_package_index():
    forbidden = re.compile(
        r"/(home|root|work|Users)/\w|--(extra-)?index-url|--find-links|--trusted-host"
        r"|(https?://)?(files\.)?py(pi|thonhosted)\.org"
    )
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = []
    for name in listing.stdout.splitlines():
        path = ROOT / name
        text = path.suffix not in (".png", ".safetensors") and path.is_file()
        if text and path != Path(__file__).resolve():
            found += [f"{name}: {match[0]}" for match in forbidden.finditer(path.read_text())]
    assert not found


@pytest.mark.xdist_group("alone")
def test_tests_of_a_group_are_run_by_one_worker(request):
    """Which pytest-xdist tells by the test's name, and some versions of pytest hide from it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@alone")


def test_nbval_leaves_to_the_built_book_what_chance_may_change_and_no_more():
    from nbval.plugin import get_sanitize_patterns

    patterns = get_sanitize_patterns((ROOT / "tests/nbval_sanitize.cfg").read_text())

    def seen(claim, statistic, verdict):
        row = (
            f'<td><a href="#fig-x">{claim}</a></td><td class="statistic">{statistic}</td>'
            f'<td class="verdict"><strong>{verdict}</strong></td>'
        )
        for pattern, replacement in patterns:
            row = re.sub(pattern, replacement, row)
        return row

    assert seen("it works", "90.1%", "holds") == seen("it works", "89.9%", "fails")
    assert seen("it works", "90.1%", "holds") != seen("it does not", "90.1%", "holds")
    assert seen("it works", "90.1%", "holds") != seen("it works", "90.1%", "is good")


def test_no_page_has_a_place_left_open():
    pages = "*.md", "book/*.md", "book/*.ipynb", "notebooks/*.ipynb"
    for page in (page for pattern in pages for page in ROOT.glob(pattern)):
        assert not re.search(r"TODO|COSTS|FIXME|XXX", page.read_text()), page


def marked_blocks(text):
    """The Python blocks that follow a line `<!-- test: NAME -->`, as one module: all other lines
    are empty, so that errors name the line of the page."""
    lines, state = [], "page"
    for line in text.splitlines():
        code = state == "code" and line != "```"
        lines.append(line if code else "")
        if re.fullmatch("<!-- test: .+ -->", line):
            assert state == "page", f"{line}: the test before it has no block"
            state = "marked"
        elif state == "marked" and line:
            assert line == "```python", f"{line}: is not the start of a block to test"
            state = "code"
        elif line == "```":
            state = "page"
    assert state == "page", "the last test has no block, or no end of it"
    return "\n".join(lines)


def test_blocks_to_test_are_found_where_they_are_marked():
    page = "# A\n\n<!-- test: a -->\n```python\nx = 1\n```\n\n```python\nx = 2\n```\n"
    more = "<!-- test: b -->\n\n```python\ny = x\n\ny += 1\n```\n```sh\nrm\n```\n"
    module = marked_blocks(page + more)
    assert module.split() == ["x", "=", "1", "y", "=", "x", "y", "+=", "1"]
    assert module.splitlines()[4] == "x = 1"
    for wrong in ("<!-- test: c -->\n```sh\n```\n", "<!-- test: c -->\n", page + more[:-30]):
        with pytest.raises(AssertionError):
            marked_blocks(wrong)


def test_the_worked_example_of_contributing_works(tmp_path):
    """All its blocks are one module, which a fresh interpreter imports."""
    module = marked_blocks((ROOT / "CONTRIBUTING.md").read_text())
    assert module.strip()
    (tmp_path / "contributing.py").write_text(module)
    variables = dict(PYTHONPATH=str(tmp_path), UNMASK_STORE=str(tmp_path / "store"))
    status, said = python("-c", "import contributing", cwd=tmp_path, **variables)
    assert status == 0, said


# How the library is built

MODULES = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__", "__main__"}
FINDINGS = {path.stem for path in (LIBRARY / "findings").glob("*.py")} - {"__init__"}


def lint_imports(folder):
    """Are the walls of this folder's `pyproject.toml` those of the library in its `lib`?"""
    command = "from importlinter.cli import lint_imports_command as run; run()"
    return python("-c", command, "--no-cache", cwd=folder, PYTHONPATH=str(folder / "lib"))


def test_the_walls_stand():
    status, said = lint_imports(ROOT)
    assert status == 0 and "0 broken" in said, said


@pytest.mark.parametrize(
    "module, line, contract",
    [
        ("store.py", "from . import findings", "The instrument knows no finding"),
        ("lab.py", "from .findings.limit import MASKS", "The instrument knows no finding"),
        ("findings/tickets.py", "from . import limit", "A finding imports no other finding"),
        ("errors.py", "from . import store", "A module of the instrument imports only from below"),
    ],
)
def test_a_hole_in_a_wall_is_found(module, line, contract, tmp_path):
    shutil.copytree(LIBRARY, tmp_path / "lib/unmask")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "lib/unmask" / module, "a") as file:
        file.write(f"\n\n{line}\n")
    status, said = lint_imports(tmp_path)
    assert status == 1 and f"{contract} BROKEN" in said, said


def test_no_module_stands_beside_the_walls():
    forbidden, independent, layers = PYPROJECT["tool"]["importlinter"]["contracts"]
    layered = [name.strip() for layer in layers["layers"] for name in re.split("[|:]", layer)]
    instrument = sorted(f"unmask.{name}" for name in MODULES)
    assert sorted(forbidden["source_modules"]) == sorted(layered) == instrument
    assert set(independent["modules"]) == {f"unmask.findings.{name}" for name in FINDINGS}


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_code_is_linted_and_formatted(command):
    status, said = python("-m", "ruff", *command, "--no-cache", ".")
    assert status == 0, said


# A fresh interpreter runs these. Both say that they came to their end.
LIGHT = """
import sys
import unmask
assert not {"torch", "pandas", "fsspec", "upath"} & set(sys.modules)
from unmask import cli
assert cli.main(["presets"]) == 0
assert not {"torch", "pandas", "fsspec", "upath"} & set(sys.modules)
print("light")
"""
DRAWING = """
import inspect
import sys

import matplotlib.pyplot as plt
import unmask
from unmask.findings import FINDINGS
from unmask.verdicts import all_verdicts

e, tables, _ = unmask.published("mnist_lenet")
assert {*all_verdicts(tables, e).table.finding, "picture"} == set(FINDINGS)
for finding in FINDINGS.values():
    assert finding.numbers(tables, e)
    functions = [f for _, f in inspect.getmembers(finding, inspect.isfunction)]
    own = [f for f in functions if f.__module__ == finding.__name__]
    figures = [f for f in own if inspect.signature(f).return_annotation == "Figure"]
    drawn = [f for f in figures if not f.__name__.startswith("_")]
    assert drawn, finding
    for figure in drawn:
        try:
            assert figure(tables, e).axes, figure
        except KeyError as error:  # tables that came after these were published
            assert error.args[0] in ("layers", "subspaces"), figure
        plt.close("all")
        print(finding.__name__, figure.__name__)
assert "torch" not in sys.modules
print("drawn")
"""


@pytest.mark.parametrize("script, end", [(LIGHT, "light\n"), (DRAWING, "drawn\n")])
def test_only_computing_needs_torch(script, end):
    status, said = python("-c", script)
    assert status == 0 and said.endswith(end), said


def test_what_is_in_the_store_is_read_without_torch(smoke_store):
    there = unmask.measure("smoke", ["gaps"], smoke_store, 1)
    script = """
import sys, unmask
print(unmask.measure("smoke", ["gaps"])["gaps"].to_csv(), "torch" in sys.modules)"""
    status, said = python("-c", script, UNMASK_STORE=str(smoke_store.root))
    assert (status, said) == (0, f"{there['gaps'].to_csv()} False\n")


@pytest.mark.parametrize(
    "patterns, most",
    [
        (["lib/unmask/*.py"], 5751),
        (["lib/unmask/findings/*.py"], 3532),
        (["bench/*.py", "book/*.py"], 958),
    ],
)
def test_the_code_grows_no_longer(patterns, most):
    """What it is with verdicts about seeds, and in the instrument with steps that are recorded on a
    GPU; the aim is 3,000, 1,600 and 550: lower it only. It was raised once, by 78 lines, where some
    forty faults were found in how users' networks, data and stores are met."""
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert 0 < lines <= most
