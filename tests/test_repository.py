"""The files around the library: they agree with each other and name nothing of the machine they were written on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def test_conda_environment_is_that_of_pyproject():
    """environment.yml asks pip for this project, its test extra and the pinned versions: nothing to drift apart."""
    *packages, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[test]"]}
    (python,) = [name for name in packages if name.startswith("python")]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_are_names_versions_and_markers():
    odd = [line for line in constraints() if not re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; [\w .'\"<>=!()*]+)?", line)]
    assert not odd


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_within_its_range(python):
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    pinned = {}
    for requirement in map(Requirement, constraints()):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in pinned, f"{requirement.name} is pinned twice"
            pinned[requirement.name] = next(iter(requirement.specifier)).version
    for requirement in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]):
        assert requirement.name in pinned
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.mark.parametrize("schema, name", [
    ("github-workflows", ".github/workflows/test.yml"),
    ("github-workflows", ".github/workflows/book.yml"),
    ("citation-file-format", "CITATION.cff"),
])
def test_file_is_valid_by_its_schema(schema, name):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", ROOT / name]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_workflows_run_what_a_reader_runs():
    def commands(name):
        jobs = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())["jobs"]
        return [step.get("run") for job in jobs.values() for step in job["steps"]]

    assert "make test" in commands("test.yml")
    assert "make book" in commands("book.yml")
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert tuple(matrix["python-version"]) == PYTHONS


def test_ci_runs_make_test_and_nothing_after_it():
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_pages_of_the_table_of_contents_exist():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    missing = [page for page in pages if not any((ROOT / f"{page}.{end}").exists() for end in ("md", "ipynb"))]
    assert not missing


def test_readme_names_both_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make book" in readme and "make test" in readme


def test_repository_is_at_one_address():
    address = PROJECT["urls"]["Repository"]
    assert yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"] == address
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == address


def test_no_file_names_a_machine_or_a_package_index():
    forbidden = re.compile(r"/(home|root|work|Users)/\w|--(extra-)?index-url|--find-links|--trusted-host|(https?://)?(files\.)?py(pi|thonhosted)\.org")
    listing = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                             cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for name in listing:
        path = ROOT / name
        if path.suffix not in (".png", ".safetensors") and path != Path(__file__).resolve() and path.is_file():
            found += [f"{name}: {match[0]}" for match in forbidden.finditer(path.read_text())]
    assert not found


def test_nbval_leaves_to_the_built_book_what_chance_may_change_and_no_more():
    from nbval.plugin import get_sanitize_patterns

    def seen(claim, statistic, verdict):
        row = (f'<td><a href="#fig-x">{claim}</a></td><td class="statistic">{statistic}</td>'
               f'<td class="verdict"><strong>{verdict}</strong></td>')
        for pattern, replacement in get_sanitize_patterns((ROOT / "tests/nbval_sanitize.cfg").read_text()):
            row = re.sub(pattern, replacement, row)
        return row

    assert seen("it works", "90.1%", "holds") == seen("it works", "89.9%", "fails")
    assert seen("it works", "90.1%", "holds") != seen("it does not", "90.1%", "holds")
    assert seen("it works", "90.1%", "holds") != seen("it works", "90.1%", "is good")


def test_no_page_has_a_place_left_open():
    for page in [ROOT / "README.md", *ROOT.glob("book/*.md"), *ROOT.glob("book/*.ipynb"), *ROOT.glob("notebooks/*.ipynb")]:
        assert not re.search(r"TODO|COSTS|FIXME|XXX", page.read_text()), page
