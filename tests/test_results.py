"""Published results: they come back as written, say where they are from, and can be computed again."""

import json

import pandas as pd
import pytest

from unmask import claims, measure, results
from unmask.chains import Runs
from unmask.errors import UnmaskError
from unmask.experiments import PRESETS, experiment
from unmask.store import processor

PUBLISHED = sorted(path.parent.name for path in results.FOLDER.glob("*/provenance.json"))


def test_published_tables_come_back_to_the_bit_with_their_provenance(smoke_store, tmp_path):
    e = experiment("smoke")
    measure.compute(e, smoke_store, 1)
    assert results.publish(e, smoke_store, folder=tmp_path) == tmp_path / "smoke"
    back, tables, provenance = results.published("smoke", tmp_path)
    assert back == e and set(tables) == set(measure.TABLES)
    for name, table in measure.all_tables(e, smoke_store, 1).items():
        pd.testing.assert_frame_equal(tables[name], table, check_exact=True)
    assert provenance["identity"] == e.id and provenance["core_seconds"] > 0
    assert {"published from commit", "computed", "processor", "device", "versions"} <= set(provenance)
    changed = e.but(epsilon=0.02)
    with pytest.raises(UnmaskError, match="publish='smoke': the experiment is not that preset as it stands"):
        results.publish(changed, smoke_store, folder=tmp_path)
    results.publish(changed, smoke_store, "tolerant", tmp_path)
    assert results.published("tolerant", tmp_path)[0] == changed
    with pytest.raises(UnmaskError, match="must be a name of small letters"):
        results.check_name(changed, "../elsewhere")


def test_what_is_whole_in_the_store_is_published_and_nothing_else(store, tmp_path):
    e = experiment("smoke")
    with pytest.raises(UnmaskError, match="publish='smoke': no table of the experiment is whole"):
        results.publish(e, store, folder=tmp_path)
    measure.compute(e, store, 1, ("levels",))
    measure.compute(e.but(seeds=1), store, 1, ("pairs",))
    assert measure.complete(e, store, ["pairs", "levels"]) == ["levels"]
    ticket = next(name for name in store.names() if "level01" in name)
    (store.root / (ticket + ".json")).unlink()  # someone needed the space
    results.publish(e, store, folder=tmp_path)
    _, tables, provenance = results.published("smoke", tmp_path)
    assert provenance["entries no longer in the store"] == 1
    assert list(tables) == ["levels"] and results.names(tmp_path) == ["smoke"]
    assert set(claims.all_verdicts(tables, e).table.finding) == {"0"}
    with pytest.raises(UnmaskError, match="the published tables of smoke lack segments, pairs"):
        results.in_numbers(e, tables, provenance)


def test_publishing_loses_nothing(smoke_store, tmp_path):
    e = experiment("smoke")
    results.publish(e, smoke_store, "mine", tmp_path, wanted=["levels", "pairs"])
    results.publish(e, smoke_store, "mine", tmp_path, wanted=["levels", "pairs", "gaps"])
    with pytest.raises(UnmaskError, match="publish='mine': .* has gaps, pairs, which would be lost"):
        results.publish(e, smoke_store, "mine", tmp_path, wanted=["levels"])
    with pytest.raises(UnmaskError, match="publish='mine': .* has the tables of another experiment"):
        results.publish(e.but(epsilon=0.02), smoke_store, "mine", tmp_path, wanted=["levels", "pairs", "gaps"])
    assert set(results.published("mine", tmp_path)[1]) == {"levels", "pairs", "gaps"}


def test_tables_that_the_experiment_cannot_have_do_not_stop_the_others(store, tmp_path):
    e = experiment("smoke", levels=2, probe_levels=(5,), limit_levels=(5,), control_every=9)
    measure.compute(e, store, 1, ("levels",))
    results.publish(e, store, "shallow", tmp_path, wanted=["levels"])
    assert set(results.published("shallow", tmp_path)[1]) == {"levels"}


def test_what_is_not_published_is_said(tmp_path):
    with pytest.raises(UnmaskError, match="preset='smoke': is not published; in .* there is nothing"):
        results.published("smoke", tmp_path)


def test_a_folder_that_cannot_be_written_is_said(smoke_store, tmp_path):
    measure.compute(experiment("smoke"), smoke_store, 1, ("levels",))
    (tmp_path / "file").write_text("")
    with pytest.raises(UnmaskError, match="publish=.*cannot be written"):
        results.publish(experiment("smoke"), smoke_store, folder=tmp_path / "file")


def test_something_is_published():
    assert "miniature_fine" in PUBLISHED


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_experiment_is_the_presets_and_its_tables_are_complete(preset):
    e, tables, provenance = results.published(preset)
    assert preset not in PRESETS or e == experiment(preset)
    assert not provenance["published from commit"].endswith("-dirty")
    assert len(tables["levels"]) == e.seeds * len(e.rewind_steps) * (e.levels + 1)
    assert len(json.dumps(provenance)) < 5000


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_published_number_is_computed_again(preset, store, monkeypatch, request):
    """The dense network of the first seed, trained from nothing: the same error, up to what another processor may change."""
    e, tables, provenance = results.published(preset)
    runs, levels = Runs(e, store), tables["levels"]
    if e.device != "auto" or e.steps * runs.survivors(0) > 10**10:
        pytest.skip(f"{preset}: a training takes hours here")
    if e.dataset != "mnist1d":
        monkeypatch.setenv("UNMASK_DATA", str(request.getfixturevalue("real_images")))
    row = levels[(levels.seed == e.first_seed) & (levels.level == 0)].iloc[0]
    error = runs.evaluate(runs.level(e.first_seed, e.rewind_steps[0], 0).state).error
    same_machine = provenance["processor"] == processor() and provenance["versions"] == results.versions()
    assert error == pytest.approx(row.test_error, abs=0 if same_machine else 3 * e.epsilon)
