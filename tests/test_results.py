"""Published results: they come back as written, say where they are from, and can be computed again."""

import json

import pandas as pd
import pytest

from unmask import measure, networks, results
from unmask.chains import Runs
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.store import processor
from unmask.train import evaluate

PUBLISHED = sorted(path.parent.name for path in results.FOLDER.glob("*/provenance.json"))


def test_published_tables_come_back_to_the_bit_with_their_provenance(smoke_store, tmp_path):
    e = experiment("smoke")
    assert results.publish(e, smoke_store, 1, tmp_path) == tmp_path / "smoke"
    back, tables, provenance = results.published("smoke", tmp_path)
    assert back == e and set(tables) == set(measure.TABLES)
    for name, table in measure.all_tables(e, smoke_store, 1).items():
        pd.testing.assert_frame_equal(tables[name], table, check_exact=True)
    assert provenance["identity"] == e.id and provenance["core_seconds"] > 0
    assert {"published from commit", "computed", "processor", "device", "versions"} <= set(provenance)
    with pytest.raises(UnmaskError, match="only presets as they are can be published"):
        results.publish(e.but(epsilon=0.02), smoke_store, 1, tmp_path)


def test_what_is_not_published_is_said(tmp_path):
    with pytest.raises(UnmaskError, match="preset='smoke': nothing is published for it"):
        results.published("smoke", tmp_path)


def test_a_folder_that_cannot_be_written_is_said(smoke_store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnmaskError, match="publish=.*cannot be written"):
        results.publish(experiment("smoke"), smoke_store, 1, tmp_path / "file")


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
def test_a_published_number_is_computed_again(preset, store):
    """The dense network of seed 0, trained from nothing: the same error, up to what another processor may change."""
    e, tables, provenance = results.published(preset)
    runs = Runs(e, store)
    networks.load_state(runs.network, runs.level(0, e.rewind_steps[0], 0).state)
    levels = tables["levels"]
    row = levels[(levels.seed == 0) & (levels.level == 0)].iloc[0]
    error = evaluate(runs.network, runs.data.test).error
    same_machine = provenance["processor"] == processor() and provenance["versions"] == results.versions()
    assert error == pytest.approx(row.test_error, abs=0 if same_machine else 3 * e.epsilon)
