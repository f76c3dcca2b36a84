"""Pages about published results are what their template and prose give; numbers they may quote."""

import dataclasses
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from two_runs import ALARM

import unmask
from unmask.findings import FINDINGS
from unmask.verdicts import all_verdicts, restricted

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))

import build  # noqa: E402
import pages  # noqa: E402

TEMPLATE = ROOT / "book/published.ipynb"

every_published = pytest.mark.parametrize("preset", pages.PUBLISHED)


def committed(preset):
    return nbformat.read(ROOT / f"notebooks/{pages.PUBLISHED[preset]['page']}.ipynb", 4)


@every_published
def test_committed_page_is_what_template_and_prose_give(preset):
    def sources(notebook):
        return [(cell.id, cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]

    assert sources(committed(preset)) == sources(build.compose(preset)), "run `make publish`"


@every_published
def test_page_names_its_figures_its_own_way_and_is_in_the_table_of_contents(preset):
    about = pages.PUBLISHED[preset]
    shown = [cell.metadata.mystnb for cell in committed(preset).cells if "mystnb" in cell.metadata]
    assert shown and all(each.figure.name.startswith(about["figures"] + "-") for each in shown)
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert f"notebooks/{about['page']}" in files
    assert preset in unmask.results.published_names()


def test_prose_changes_title_and_description_of_a_figure_and_nothing_else():
    template = {cell.metadata.get("name"): cell for cell in nbformat.read(TEMPLATE, 4).cells}
    plain = build.filled_in(template, "fig-x", "[[zigzag]]")
    said = build.filled_in(template, "fig-x", "[[zigzag]]\ntitle: Flat.\nalt: A line: flat.")
    assert plain.source == said.source == template["zigzag"].source
    assert plain.metadata.mystnb.image.alt == template["zigzag"].metadata.mystnb.image.alt
    assert said.metadata.mystnb.image.alt == "A line: flat."
    title, rest = plain.metadata.mystnb.figure.caption[2:].split("**", 1)
    assert said.metadata.mystnb.figure.caption == f"**Flat.**{rest}" and title != "Flat."
    assert said.metadata.mystnb.figure.name == "fig-x-zigzag"


def test_every_finding_has_a_page_and_what_the_paper_reports():
    assert list(pages.PAGES) == list(pages.REPORTED) == list(FINDINGS)
    assert all((ROOT / f"notebooks/{page}.ipynb").exists() for page in pages.PAGES.values())


@every_published
def test_numbers_of_a_finding_come_with_its_tables_and_under_its_name(preset):
    e, tables, provenance = unmask.published(preset)
    found = pages.numbers(tables, e, provenance)
    assert found["seeds"] == e.seeds and found["processor"] == unmask.results.told(
        provenance, "processor"
    )
    assert found["connectivity_pairs"] == e.seeds * len(e.rewind_steps) * e.levels
    assert ("robustness_longest" in found) == ("perturbations" in tables)
    if "perturbations" in tables:  # of which some seeds may come later
        assert found["robustness_seeds"] == tables["perturbations"].seed.nunique()
    fewer = {name: table for name, table in tables.items() if name != "segments"}
    assert not [name for name in pages.numbers(fewer, e, provenance) if "connectivity" in name]


VARIED = [(n, o) for n, about in pages.PUBLISHED.items() for o in about.get("varied", ())]


@pytest.mark.parametrize("preset, varied", VARIED)
def test_where_some_things_are_varied_the_rest_is_the_same(preset, varied):
    """Digits have another data set, which brings a size of its own and, mirrored, would be others;
    and of a training only what comes before the second level is there, of the first three seeds."""
    e, other = (unmask.published(name)[0] for name in (preset, varied))
    fields = {field.name for field in dataclasses.fields(e)}
    differ = {name for name in fields if getattr(e, name) != getattr(other, name)}
    differ -= {"rewind_steps", "levels", "probe_levels", "seeds"}
    digits = {"dataset", "folder", "image_size", "train_samples", "augmentation"}
    assert differ in ({"lr"}, {"augmentation"}, digits, digits | {"lr"})
    assert other.rewind_steps == (e.earliest,) and other.all_seeds == e.all_seeds[:3]


def test_training_steps_are_counted_by_what_they_are_for():
    """By hand, for one seed and one rewind step; how many trainings a search takes is a guess."""
    e = unmask.experiment("smoke", seeds=1, rewind_steps=[10])
    late = e.steps - 10
    controls = len(e.control_levels) * (3 * late + e.steps)  # one of four trains from step 0
    pairs = [2 * len(e.perturbation_lengths) + 3 - (level > 0) for level in e.probe_levels]
    counted = pages.training_steps(e)
    assert counted.pop("Finding 3") > 0
    fine_tuned, again = late * len(e.probe_levels), 2 * late
    assert counted == {
        "Findings 0 and 1": e.steps + e.levels * late + controls + fine_tuned + again,
        "Finding 2": late * sum(pairs),
        "Finding 4": 2 * e.control_levels[-1] * late,
    }


def test_other_seeds_say_the_same():
    """No claim holds on one set of seeds and fails on the other, and none differs by more than
    chance allows one in a thousand; at the levels that both have."""
    (e, there, _), (other, again, _) = map(unmask.published, ("miniature", "miniature_again"))
    assert not set(e.all_seeds) & set(other.all_seeds) and e.recipe == other.recipe
    alike = restricted(there, {name: rows.drop(columns="seed") for name, rows in again.items()})
    pairs = pages.judged_in_both(
        all_verdicts(alike, other.but(seeds=e.seeds)), all_verdicts(again, other)
    )
    found = pages.agreement(pairs)
    assert found["claims"] > 30 and found["opposed"] == found["told"] == 0
    assert min(p for *_, p in pairs if p == p) >= ALARM
