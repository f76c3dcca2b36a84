"""Published results: they come back as written, say where they are from, and can be computed again."""

import json

import pandas as pd
import pytest

from unmask import claims, measure, results
from unmask.chains import Runs
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.store import processor

PUBLISHED = sorted(path.parent.name for path in results.FOLDER.glob("*/provenance.json"))


def test_published_tables_come_back_to_the_bit_with_their_provenance(smoke_store, tmp_path):
    e = experiment("smoke")
    measure.compute(e, smoke_store, 1)
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke/outdated.csv").write_text("a,b\n")
    assert results.publish(e, smoke_store, tmp_path) == tmp_path / "smoke"
    back, tables, provenance = results.published("smoke", tmp_path)
    assert back == e and set(tables) == set(measure.TABLES)
    for name, table in measure.all_tables(e, smoke_store, 1).items():
        pd.testing.assert_frame_equal(tables[name], table, check_exact=True)
    assert provenance["identity"] == e.id and provenance["core_seconds"] > 0
    assert {"published from commit", "computed", "processor", "device", "versions"} <= set(provenance)
    with pytest.raises(UnmaskError, match="only presets as they are can be published"):
        results.publish(e.but(epsilon=0.02), smoke_store, tmp_path)


def test_what_is_whole_in_the_store_is_published_and_nothing_else(store, tmp_path):
    e = experiment("smoke")
    with pytest.raises(UnmaskError, match="publish: no table of smoke is whole"):
        results.publish(e, store, tmp_path)
    measure.compute(e, store, 1, ("levels",))
    measure.compute(e.but(seeds=1), store, 1, ("pairs",))
    assert measure.complete(e, store) == ["levels"]
    results.publish(e, store, tmp_path)
    _, tables, provenance = results.published("smoke", tmp_path)
    assert list(tables) == ["levels"] and results.names(tmp_path) == ["smoke"]
    assert claims.all_verdicts(tables, e).rows == []


def test_what_is_not_published_is_said(tmp_path):
    with pytest.raises(UnmaskError, match="preset='smoke': nothing is published for it"):
        results.published("smoke", tmp_path)


def test_a_folder_that_cannot_be_written_is_said(smoke_store, tmp_path):
    measure.compute(experiment("smoke"), smoke_store, 1, ("levels",))
    (tmp_path / "file").write_text("")
    with pytest.raises(UnmaskError, match="publish=.*cannot be written"):
        results.publish(experiment("smoke"), smoke_store, tmp_path / "file")


def test_something_is_published():
    assert "miniature_fine" in PUBLISHED


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_experiment_is_the_presets_and_its_tables_are_complete(preset):
    e, tables, provenance = results.published(preset)
    assert e == experiment(preset)
    assert not provenance["published from commit"].endswith("-dirty")
    assert len(tables["levels"]) == e.seeds * len(e.rewind_steps) * (e.levels + 1)
    assert len(json.dumps(provenance)) < 5000


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_published_number_is_computed_again(preset, store, monkeypatch, request):
    """The dense network of seed 0, trained from nothing: the same error, up to what another processor may change."""
    if preset != "miniature_fine":
        monkeypatch.setenv("UNMASK_DATA", str(request.getfixturevalue("real_images")))
    e, tables, provenance = results.published(preset)
    runs = Runs(e, store)
    levels = tables["levels"]
    row = levels[(levels.seed == 0) & (levels.level == 0)].iloc[0]
    error = runs.evaluate(runs.level(0, e.rewind_steps[0], 0).state).error
    same_machine = provenance["processor"] == processor() and provenance["versions"] == results.versions()
    assert error == pytest.approx(row.test_error, abs=0 if same_machine else 3 * e.epsilon)
