"""Published results: they come back as written, say where they are from, can be computed again."""

import json

import pandas as pd
import pytest
from two_runs import made_alike

import unmask
from unmask import results, tables
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.store import Store
from unmask.verdicts import all_verdicts

PUBLISHED = results.published_names()


@pytest.fixture
def lab(smoke_store):
    return Lab(experiment("smoke"), smoke_store)


def tolerant(lab):
    """Another experiment with the same tables."""
    return Lab(lab.experiment.but(epsilon=0.02), lab.store)


def test_published_tables_come_back_to_the_bit_with_their_provenance(lab, tmp_path):
    computed = unmask.measure(lab.experiment, store=lab.store, jobs=1)
    assert results.publish(lab, folder=tmp_path) == tmp_path / "smoke"
    back, found, provenance = results.published("smoke", tmp_path)
    assert back == lab.experiment and set(found) == set(computed) == set(tables.known_tables())
    for name, table in computed.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)
    assert provenance["identity"] == lab.experiment.id
    (instalment,) = provenance["instalments"]
    told = {"published from commit", "computed", "processor", "device", "versions"}
    assert told <= set(instalment) and instalment["core_seconds"] > 0


def test_a_name_is_a_presets_only_for_that_preset_as_it_stands(lab, tmp_path):
    unmask.measure(lab.experiment, ["levels"], lab.store, 1)
    changed = tolerant(lab)
    said = "publish='smoke': the experiment is not that preset as it stands"
    with pytest.raises(UnmaskError, match=said):
        results.publish(changed, folder=tmp_path)
    results.publish(changed, "tolerant", tmp_path)
    assert results.published("tolerant", tmp_path)[0] == changed.experiment
    with pytest.raises(UnmaskError, match="must be a name of small letters"):
        results.check_name(changed.experiment, "../elsewhere")


def test_what_is_whole_in_the_store_is_published_and_nothing_else(store, tmp_path):
    lab = Lab(experiment("smoke"), store)
    said = "publish='smoke': no table of the experiment is whole"
    with pytest.raises(UnmaskError, match=said):
        results.publish(lab, folder=tmp_path)
    tables.compute(lab, ["levels"], 1)
    tables.compute(Lab(lab.experiment.but(seeds=1), store), ["pairs"], 1)
    assert tables.complete(lab, ["pairs", "levels"]) == ["levels"]
    ticket = next(name for name in store.names() if "level01" in name)
    (store.root / (ticket + ".json")).unlink()  # someone needed the space
    results.publish(lab, folder=tmp_path)
    back, found, provenance = results.published("smoke", tmp_path)
    assert provenance["instalments"][0]["entries no longer in the store"] == 1
    assert list(found) == ["levels"] and results.published_names(tmp_path) == ["smoke"]
    # tables that are missing are simply not judged
    assert set(all_verdicts(found, back).table.finding) == {"0"}


def test_tables_are_published_in_instalments(lab, tmp_path):
    unmask.measure(lab.experiment, ["levels", "pairs", "gaps"], lab.store, 1)
    results.publish(lab, "mine", tmp_path, wanted=["levels", "pairs"])
    first = (tmp_path / "mine/levels.csv").read_bytes()
    (tmp_path / "mine/pairs.csv").write_text("seed\n0\n1\n")  # as if computed elsewhere, and ...
    elsewhere = Store(tmp_path / "store")
    unmask.measure(lab.experiment, ["levels", "gaps"], elsewhere, 1)  # ... not in this store
    results.publish(Lab(lab.experiment, elsewhere), "mine", tmp_path, wanted=["gaps"])
    _, found, about = results.published("mine", tmp_path)
    assert list(found) == ["gaps", "levels", "pairs"] and list(found["pairs"].seed) == [0, 1]
    assert [one["tables"] for one in about["instalments"]] == [["pairs"], ["gaps", "levels"]]
    assert (tmp_path / "mine/levels.csv").read_bytes() == first
    with pytest.raises(UnmaskError, match="publish='mine': .* has the tables of another exp"):
        results.publish(tolerant(lab), "mine", tmp_path, wanted=["levels", "pairs", "gaps"])


def test_seeds_are_published_in_instalments(lab, tmp_path, monkeypatch):
    whole = unmask.measure(lab.experiment, ["levels", "pairs", "gaps"], lab.store, 1)
    seeds = lab.experiment.all_seeds
    one, other = (Lab(lab.experiment.but(first_seed=s, seeds=1), lab.store) for s in seeds)
    results.publish(other, folder=tmp_path, wanted=["levels", "pairs"])
    # no seed may lack what everything is compared with
    lacking = Lab(one.experiment, Store(tmp_path / "store"))
    tables.compute(lacking, ["gaps"], 1)
    with pytest.raises(UnmaskError, match="levels would not have all of seeds 0 to 1"):
        results.publish(lacking, folder=tmp_path, wanted=["gaps"])
    # of other tables some seeds may come first, and are not shown as if they were all
    tables.compute(lacking, ["levels"], 1)
    results.publish(lacking, folder=tmp_path, wanted=["levels"])
    e, found, about = results.published("smoke", tmp_path)
    assert e == lab.experiment
    assert {name: {*rows.seed} for name, rows in found.items()} == {"levels": {0, 1}, "pairs": {1}}
    told = {one["first_seed"]: one["tables"] for one in about["instalments"]}
    assert told == {0: ["levels"], 1: ["levels", "pairs"]}
    assert results.evidence(other.experiment, ["levels", "pairs"], tmp_path) == "smoke"
    assert results.evidence(one.experiment, ["levels", "pairs"], tmp_path) is None
    with monkeypatch.context() as here:
        here.setattr(results, "published_names", lambda *_: ["smoke"])
        here.setattr(results, "published", lambda *_: (e, found, about))
        page = results.shown(other.experiment, ["levels", "pairs"], compute=False)
        assert page.experiment == other.experiment and {*page.tables["levels"].seed} == {seeds[1]}
        assert results.shown(one.experiment, ["levels"], compute=False).experiment == e
    results.publish(one, folder=tmp_path, wanted=["levels", "pairs"])
    e, found, about = results.published("smoke", tmp_path)
    assert e == lab.experiment and about["identity"] == e.id
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, whole[name], check_exact=True)
    assert [one["first_seed"] for one in about["instalments"]] == list(seeds)[::-1]
    # all at once replaces both
    results.publish(lab, folder=tmp_path, wanted=["gaps"])
    (instalment,) = results.provenance("smoke", tmp_path)["instalments"]
    assert instalment["tables"] == ["gaps", "levels", "pairs"] and instalment["seeds"] == 2
    beyond = lab.experiment.but(first_seed=seeds[-1] + 2)
    with pytest.raises(UnmaskError, match="is not that preset as it stands"):
        results.check_name(beyond, "smoke")


def test_what_depends_on_the_first_seed_is_published_by_one_run_alone(lab, tmp_path):
    seeds, names = lab.experiment.all_seeds, ["landscape", "curvatures", "layers"]
    one, other = (Lab(lab.experiment.but(first_seed=s, seeds=1), lab.store) for s in seeds)
    for some in one, other:
        tables.compute(some, names, 1)
    # a landscape is of the first seed alone, of which a second instalment has none
    results.publish(one, folder=tmp_path, wanted=["landscape", "layers"])
    results.publish(other, folder=tmp_path, wanted=["landscape", "layers"])
    _, found, about = results.published("smoke", tmp_path)
    assert set(found["landscape"].seed) == {seeds[0]} and set(found["layers"].seed) == set(seeds)
    assert [one["tables"] for one in about["instalments"]] == [["landscape", "layers"], ["layers"]]
    results.publish(one, "mine", tmp_path, wanted=["curvatures"])
    with pytest.raises(UnmaskError, match="curvatures depend on the first seed: .* seeds=2"):
        results.publish(other, "mine", tmp_path, wanted=["curvatures"])


def test_an_interrupted_instalment_shows_nothing(lab, tmp_path, monkeypatch):
    seeds, write = lab.experiment.all_seeds, results.write_atomically
    one, other = (Lab(lab.experiment.but(first_seed=s, seeds=1), lab.store) for s in seeds)
    tables.compute(lab, ["levels", "pairs"], 1)
    results.publish(one, folder=tmp_path, wanted=["levels", "pairs"])

    def interrupted(path, data):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(results, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.publish(other, folder=tmp_path, wanted=["levels", "pairs"])
    e, found, _ = results.published("smoke", tmp_path)
    assert e == one.experiment and all(set(rows.seed) == {seeds[0]} for rows in found.values())
    monkeypatch.setattr(results, "write_atomically", write)
    results.publish(other, folder=tmp_path, wanted=["levels", "pairs"])
    assert results.published("smoke", tmp_path)[0] == lab.experiment


def test_a_provenance_that_git_could_not_merge_is_said(lab, tmp_path):
    tables.compute(lab, ["levels"], 1)
    results.publish(lab, folder=tmp_path, wanted=["levels"])
    file = tmp_path / "smoke/provenance.json"
    file.write_text("<<<<<<< HEAD\n" + file.read_text())
    with pytest.raises(UnmaskError, match="provenance.json cannot be read: JSONDecodeError"):
        results.published("smoke", tmp_path)
    file.write_text("{}")
    with pytest.raises(UnmaskError, match="smoke cannot be read: KeyError: 'experiment'"):
        results.published("smoke", tmp_path)


SWEEPS = {"probe_levels": (2, 6), "limit_levels": (3,), "prune_ratios": (0.33,)}
SWEEPS |= {"perturbation_lengths": (0.0, 1.0, 3.0), "control_every": 3, "lanczos_steps": 8}


@pytest.mark.parametrize("name", SWEEPS)
def test_other_sweeps_than_those_published_are_not_shown_by_them(name):
    e, names = experiment("miniature_short"), ["levels", "perturbations", "prunings", "controls"]
    assert results.evidence(e, names) == "miniature"
    assert results.evidence(e.but(**{name: SWEEPS[name]}), names) is None


def test_seeds_that_would_leave_a_gap_are_refused(lab, tmp_path):
    for seed in lab.experiment.all_seeds[0], lab.experiment.all_seeds[0] + 2:
        some = Lab(lab.experiment.but(first_seed=seed, seeds=1), lab.store)
        tables.compute(some, ["gaps"], 1)
        if seed == lab.experiment.all_seeds[0]:
            results.publish(some, "mine", tmp_path, wanted=["gaps"])
    with pytest.raises(UnmaskError, match="gaps would not have all of seeds 0 to 2"):
        results.publish(some, "mine", tmp_path, wanted=["gaps"])


def test_tables_that_the_experiment_cannot_have_do_not_stop_the_others(store, tmp_path):
    impossible = dict(probe_levels=(5,), limit_levels=(5,), control_every=9)
    lab = Lab(experiment("smoke", levels=2, **impossible), store)
    tables.compute(lab, ["levels"], 1)
    results.publish(lab, "shallow", tmp_path, wanted=["levels"])
    assert set(results.published("shallow", tmp_path)[1]) == {"levels"}


def test_what_is_not_published_is_said(tmp_path):
    said = "preset='smoke': is not published; in .* there is nothing"
    with pytest.raises(UnmaskError, match=said):
        results.published("smoke", tmp_path)


def test_a_folder_that_cannot_be_written_is_said(lab, tmp_path):
    unmask.measure(lab.experiment, ["levels"], lab.store, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UnmaskError, match="publish=.*cannot be written"):
        results.publish(lab, folder=tmp_path / "file")


def test_something_is_published():
    assert "miniature_fine" in PUBLISHED


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_experiment_is_the_presets_and_its_tables_are_complete(preset):
    e, found, provenance = results.published(preset)
    assert results.check_name(e, preset) == preset
    assert "-dirty" not in results.told(provenance, "published from commit")
    assert len(found["levels"]) == e.seeds * len(e.rewind_steps) * (e.levels + 1)
    assert len(json.dumps(provenance)) < 5000


# A residual network on images takes a minute or two more than all of these tests, and other seeds
# of the same setting tell nothing new.
@pytest.mark.parametrize("preset", [n for n in PUBLISHED if "resnet" not in n and "again" not in n])
def test_a_published_number_is_computed_again(preset, store, monkeypatch, request):
    """The dense network of the first seed, trained from nothing: the same error, up to what another
    processor may change."""
    e, found, provenance = results.published(preset)
    lab, levels = Lab(e, store), found["levels"]
    if e.device != "auto" or e.steps * lab.survivors(0) > 10**10:
        pytest.skip(f"{preset}: a training takes hours here")
    if e.dataset != "mnist1d":
        monkeypatch.setenv("UNMASK_DATA", str(request.getfixturevalue("real_images")))
    row = levels[(levels.seed == e.first_seed) & (levels.level == 0)].iloc[0]
    assert lab.chance == row.chance
    error = lab.evaluate(lab.level(e.first_seed, e.earliest, 0).state).error
    tolerance = 0 if made_alike(provenance) else 3 * e.epsilon
    assert error == pytest.approx(row.test_error, abs=tolerance)
