"""Experiments: identities, and one clear line for every kind of bad input."""

import copy
import dataclasses
import re
import subprocess
import sys

import pytest

import unmask
from unmask import tables
from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.experiments import PRESETS, Experiment, experiment, meanings, parse_setting

FIELDS = {field.name: field for field in dataclasses.fields(Experiment)}


def test_identities_are_pinned_so_that_stored_results_stay_findable():
    assert {name: (preset.id, preset.recipe) for name, preset in PRESETS.items()} == PINNED


def test_every_changed_field_gives_a_new_identity():
    changes = dict(
        # data
        train_samples=300,
        test_samples=400,
        data_seed=1,
        folder="pets",
        image_size=28,
        classes=9,
        augmentation="crop-flip",
        # network and training
        network="resnet1d",
        width=5,
        steps=41,
        batch_size=49,
        lr=0.3,
        momentum=0.5,
        weight_decay=0.0,
        schedule="cosine",
        milestones=(0.4,),
        lr_decay=0.2,
        warmup=0.1,
        precision="bf16",
        device="cpu",
        # what is pruned, perturbed and looked at
        rewind_steps=(0, 6),
        levels=2,
        prune_fraction=0.3,
        never_pruned=("linear.weight",),
        control_every=1,
        probe_levels=(1,),
        perturbation_lengths=(0.0, 1.0),
        limit_levels=(1,),
        prune_ratios=(0.5,),
        curvature_samples=50,
        lanczos_probes=3,
        lanczos_steps=5,
        seeds=3,
        first_seed=7,
        barrier_points=5,
        plane_points=7,
        train_measured=7,
        # judging
        epsilon=0.02,
        lmc_threshold=0.03,
        higher_sparsity=0.4,
        ticket_density=0.3,
        loss_height=0.1,
        limit_tolerance=0.2,
        gap_refilled=0.4,
    )
    smoke, fields = PRESETS["smoke"], [name for name in FIELDS if name != "preset"]
    ids = {smoke.id}
    for name, value in changes.items():
        changed = copy.copy(smoke)  # whether the value fits the rest is not the question
        object.__setattr__(changed, name, value)
        assert changed.id == Experiment.digest(changed, *fields)
        ids.add(changed.id)
    assert len(ids) == len(changes) + 1
    assert set(changes) | {"preset", "dataset"} == set(FIELDS)


def test_counting_and_judging_reuse_trainings_but_training_settings_do_not():
    smoke = PRESETS["smoke"]
    selecting = dict(seeds=9, levels=5, rewind_steps=(0, 9), epsilon=0.5, barrier_points=7)
    selecting |= dict(probe_levels=(1,), prune_ratios=(0.3,), loss_height=1.0, train_measured=50)
    for name, value in selecting.items():
        assert smoke.but(**{name: value}).recipe == smoke.recipe
    training = dict(lr=0.3, steps=41, width=5, prune_fraction=0.5, data_seed=1)
    for name, value in training.items():
        assert smoke.but(**{name: value}).recipe != smoke.recipe


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(steps=0), "steps=0: must be 1 or more"),
        (dict(steps=-5), "steps=-5"),
        (dict(levels=0), "levels=0"),
        (dict(seeds=-1), "seeds=-1"),
        (dict(seeds=2.0), "seeds=2.0: must be of type int"),
        (dict(seeds=True), "seeds=True: must be of type int"),
        (dict(lr="fast"), "lr='fast': must be of type float"),
        (dict(lr=float("nan")), "lr=nan"),
        (dict(lr=float("inf")), "lr=inf"),
        (dict(lr=1e39), "lr=1e+39: must be above 0 and at most 1e+06"),
        (dict(milestones=[1.0]), "[1.0]: must be increasing, each a share of the steps, in (0, 1)"),
        (dict(schedule="exponential"), "schedule='exponential': must be one of step, linear, cos"),
        (dict(schedule="linear"), "milestones=[0.5, 0.75]: must be empty for the linear schedule"),
        (dict(rewind_steps=5), "rewind_steps=5: must be a list of int"),
        (dict(rewind_steps=[0, 40]), "rewind_steps=[0, 40]: must be at most 39"),
        (dict(rewind_steps=[5, 0]), "rewind_steps=[5, 0]: must be at least one, increasing"),
        (dict(rewind_steps=[]), "rewind_steps=[]"),
        (dict(prune_fraction=0.0), "prune_fraction=0.0: must be in (0, 1)"),
        (dict(prune_fraction=1), "prune_fraction=1.0: must be in (0, 1)"),
        (dict(width=10**6), "width=1000000: must be 1 to 100,000"),
        (dict(seeds=10**20), "seeds=100000000000000000000: must be 1 to 10,000"),
        (dict(levels=10**6), "levels=1000000: must be 1 to 1,000"),
        (dict(lanczos_probes=10**20), "must be 2 to 1,000"),
        (dict(train_samples=10**12), "train_samples=1000000000000: must be a multiple of 10 for"),
        (dict(train_measured=1), "train_measured=1: must be 0 or more; 0 or 'all': all there"),
        (dict(plane_points=1000001), "plane_points=1000001: must be odd and 3 to 1,001"),
        (dict(loss_height=1e308), "loss_height=1e+308: must be above 0 and at most 1e+06"),
        (dict(perturbation_lengths=[0, 1, 1e300]), "must be increasing, each 0 or more and"),
        (dict(barrier_points=10), "barrier_points=10: must be odd"),
        (dict(plane_points=20), "plane_points=20: must be odd"),
        (dict(probe_levels=[]), "probe_levels=[]: must be at least one"),
        (dict(limit_levels=[-1, 2]), "[-1, 2]: must be at least one, increasing, each 0 or more"),
        (
            dict(perturbation_lengths=[-1.0, 0.0, 1.0]),
            "perturbation_lengths=[-1.0, 0.0, 1.0]: must be increasing, each 0 or",
        ),
        (
            dict(perturbation_lengths=[0.0, 1.0, float("inf")]),
            "perturbation_lengths=inf: must be of type float and finite",
        ),
        (dict(perturbation_lengths=[0.0, 1.0, float("nan")]), "perturbation_lengths=nan"),
        (dict(perturbation_lengths=[0.0, 2.0]), "0 and 1 among them"),
        (
            dict(prune_ratios=[0.5, 1.0]),
            "prune_ratios=[0.5, 1.0]: must be at least one, increasing, each in (0, 1)",
        ),
        (dict(prune_ratios=[0.0]), "prune_ratios=[0.0]"),
        (dict(classes=5), "classes=5: must be 10 for mnist1d"),
        (dict(train_samples=0), "train_samples=0: must be a multiple of 10 for mnist1d"),
        (dict(train_samples="some"), "train_samples='some': must be of type int"),
        (dict(batch_size="all"), "batch_size='all': must be of type int"),
        (dict(batch_size=501), "batch_size=501: must be at most train_samples (500)"),
        (dict(curvature_samples=501), "curvature_samples=501: must be at most train_samples (500)"),
        (dict(train_measured=-1), "train_measured=-1: must be 0 or more"),
        (dict(loss_height=0.0), "loss_height=0.0: must be above 0"),
        (dict(gap_refilled=1.5), "gap_refilled=1.5: must be in (0, 1)"),
        (dict(device="tpu"), "device='tpu': must be 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        (dict(device="cuda:²"), "device='cuda:²': must be 'auto'"),
        (dict(data_seed=2**32), "data_seed=4294967296: must be 0 to 4294967295"),
        (dict(network="vgg"), "network='vgg': must be one of resnet1d"),
        (dict(learning_rate=1), "unknown field 'learning_rate': must be one of dataset, train"),
        (dict(preset=["smoke"]), "preset=['smoke']: must be one of"),
        (dict(preset="x"), "preset='x': must be one of miniature, miniature_short, miniature_fine"),
        # what papermill's -p and -r make of a dictionary is text
        (
            dict(settings='{"lr": 0.5}'),
            "settings='{\"lr\": 0.5}': must be a dictionary of fields, such as {'lr': 0.5}; "
            "papermill takes one by -y 'settings: {lr: 0.5}'",
        ),
        (dict(settings={1: 0.5}), "settings={1: 0.5}: must be a dictionary of fields"),
        (dict(settings={"lr": 0.5}, lr=0.4), "lr is given beside it as well"),
        # all that is bad is said at once; what does not fit together, where each fits by itself
        (
            dict(steps=0, lr="fast", seeds=True, rewind_steps=[5, 0]),
            "steps=0: must be 1 or more; lr='fast': must be of type float and finite; "
            "rewind_steps=[5, 0]: must be at least one, increasing, each 0 or more; "
            "seeds=True: must be of type int",
        ),
        (
            dict(classes=5, batch_size=501, rewind_steps=[0, 40]),
            "classes=5: must be 10 for mnist1d; "
            "batch_size=501: must be at most train_samples (500); "
            "rewind_steps=[0, 40]: must be at most 39 each, before the last step",
        ),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(change, said):
    with pytest.raises(UnmaskError) as caught:
        unmask.experiment(**{"preset": "smoke"} | change)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_every_field_is_checked_or_free():
    allowed = {name: field.metadata["rule"][0] for name, field in FIELDS.items()}
    assert [name for name, words in allowed.items() if not words] == ["preset"]


def test_settings_are_changes_and_none_keeps_what_the_preset_says():
    changed = experiment("smoke", settings={"lr": 0.5, "seeds": 3}, levels=2, steps=None)
    assert changed == PRESETS["smoke"].but(lr=0.5, seeds=3, levels=2)


@pytest.mark.parametrize(
    "text, parsed",
    [
        ("seeds=4", ("seeds", 4)),
        ("seeds=1_0", ("seeds", 10)),
        ("lr=0.5", ("lr", 0.5)),
        ("lr=1_0", ("lr", 10)),
        ("rewind_steps=0,50", ("rewind_steps", [0, 50])),
        ("rewind_steps=[0, 50]", ("rewind_steps", [0, 50])),
        ("rewind_steps=5", ("rewind_steps", (5,))),
        ("milestones=", ("milestones", ())),
        ("device=cpu", ("device", "cpu")),
        ("folder=1_0", ("folder", "1_0")),
        ("train_samples=all", ("train_samples", "all")),
        ("foo=1", ("foo", "1")),
    ],
)
def test_settings_are_parsed_by_the_field_type(text, parsed):
    assert parse_setting(text) == parsed


NOTEBOOK = "notebooks/01_winning_tickets.ipynb"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["run", "nope"],
            "preset='nope': must be one of miniature, miniature_short, miniature_fine",
        ),
        (["run", "smoke", "--set", "nope=1"], "unknown field 'nope'"),
        (["run", "smoke", "--set", "lr=fast"], "lr='fast': must be of type float"),
        # digits that only Python's float() would take
        (["run", "smoke", "--set", "lr=١"], "lr='١': must be of type float"),
        (["run", "smoke", "--set", "seeds=١"], "seeds='١': must be of type int"),
        (["run", "smoke", "--set", "lr"], "must have the form field=value"),
        (["run", "smoke", "--set", "lr=0", "--set", "steps=0"], "steps=0: must be 1 or more; lr=0"),
        (["run", "smoke", "--jobs", "0"], "jobs=0: must be a whole number, 1 to 1,024"),
        (["run", "smoke", "--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
        (["run", "smoke", "--tables", "levels, nope"], "table='nope': must be one of levels, "),
        (["run", "smoke", "--set", "device=cuda:99"], "device='cuda:99': this machine has"),
        (
            ["run", "smoke", "--set", "prune_fraction=0.9", "--set", "levels=9"],
            "would leave no weight",
        ),
        (["run", "smoke", "--set", "preset=miniature"], "unknown field 'preset'"),
        (
            ["run", "smoke", "--set", "probe_levels=1,3"],
            "probe_levels=[1, 3]: must be below levels=3, as the next is measured, too; "
            "probe_levels=1 fits",
        ),
        (
            ["run", "smoke", "--set", "limit_levels=9"],
            "limit_levels=[9]: must be below levels=3, as the next is measured, too; "
            "limit_levels=0 fits",
        ),
        (
            ["run", "smoke", "--set", "control_every=9"],
            "control_every=9: must be at most levels=3; control_every=3 fits",
        ),
        (
            ["run", "smoke", "--set", "perturbation_lengths=0,1,-2"],
            "perturbation_lengths=[0.0, 1.0, -2.0]: must be incr",
        ),
        (["run", "smoke", "--publish", ""], "publish='': must be a name"),
        (["nope"], "invalid choice: 'nope'"),
        (["execute", "missing.ipynb"], "no such file"),
        (["execute", "README.md"], "is not a notebook"),
        (
            ["execute", NOTEBOOK, "book/claims.ipynb", "-p", "seeds", "2"],
            "unknown parameter 'seeds': claims.ipynb has",
        ),
        (["execute", NOTEBOOK, "-p", "settings", "{'seeds': 1}"], "set it there"),
        (["execute", NOTEBOOK, "-p", "jobs", "0"], "jobs=0: must be a whole number"),
        (["execute", NOTEBOOK, "-p", "device", "cpu"], "unknown parameter 'device'"),
        (["execute", NOTEBOOK, "-p", "settings", "{'device': 'cuda:99'}"], "this machine has"),
        (["execute", NOTEBOOK, "-p", "sedes", "2"], "unknown parameter 'sedes'"),
        (["execute", NOTEBOOK, "-p", "seeds", "two"], "seeds='two': must be of type int"),
        (["execute", NOTEBOOK, "-p", "settings", "3"], "settings=3: must be a dictionary"),
        (["execute", NOTEBOOK, "-p", "settings", "{'lrr': 3}"], "unknown field 'lrr'"),
    ],
)
def test_command_line_answers_bad_input_with_one_line_and_leaves_nothing(
    arguments, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path / "store"))
    assert main(arguments) == 2
    captured = capsys.readouterr().err
    assert said in captured and captured.count("\n") == 1
    assert captured.startswith("unmask: error: ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("typed", ["levels,pairs", "levels, pairs", " levels ,pairs, "])
def test_tables_are_named_with_or_without_spaces(typed, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path))
    monkeypatch.setattr(tables, "compute", lambda lab, names, *_: asked.append(names))
    monkeypatch.setattr("unmask.tables.complete", lambda lab, names: names)
    assert main(["run", "smoke", "--tables", typed]) == 0
    assert asked == [["levels", "pairs"]]
    assert capsys.readouterr().out.startswith("unmask: what was asked for smoke (identity ")


@pytest.mark.parametrize("typed", ["", ",", "levels,nope"])
def test_tables_that_are_none_are_refused(typed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path))
    assert main(["run", "smoke", "--tables", typed]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    wrong = "nope" if "nope" in typed else ""
    assert line.startswith(f"unmask: error: table={wrong!r}: must be one of levels, ")


def test_listing_presets_imports_nothing_heavy():
    code = (
        "import sys, unmask.cli; unmask.cli.main(['presets']); "
        "sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    assert done.returncode == 0


PINNED = {
    "miniature": ("ba47491384", "mnist1d-resnet1d-strided-b227a2cc74"),
    "miniature_short": ("bc3a57cab5", "mnist1d-resnet1d-strided-b227a2cc74"),
    "miniature_fine": ("da424bb8e1", "mnist1d-resnet1d-1bb3f0f09c"),
    "smoke": ("053158f69e", "mnist1d-resnet1d-strided-f99868e3dd"),
    "mnist_lenet": ("d9b7138b9b", "mnist-lenet-300-100-e844af970f"),
    "cifar10_resnet20": ("92b55a0241", "cifar10-resnet20-a564285d7c"),
    "cifar10_resnet8": ("2fdac5e124", "cifar10-resnet8-strided-91d99935d7"),
    "cifar10_resnet8_jpeg": ("37f1c57b6b", "imagefolder-resnet8-strided-69af8a6488"),
    "mnist_resnet20": ("8892718604", "mnist-resnet20-8245666913"),
    "cifar100_resnet18": ("c64d218397", "cifar100-resnet18-3127a276ce"),
    "imagenet_resnet50": ("755b1937c9", "imagefolder-resnet50-5e6f7eca02"),
}


def test_what_does_not_fit_the_levels_is_said_at_once_with_what_fits():
    def graph(*settings):
        e = experiment("miniature", dict(map(parse_setting, settings)))
        return tables.graph(e, tables.known_tables())

    with pytest.raises(UnmaskError) as error:
        graph("levels=1")
    fits = re.findall(r"(\S+) fits", str(error.value))
    named = [setting.partition("=")[0] for setting in fits]
    assert sorted(named) == ["control_every", "limit_levels", "probe_levels"]
    assert graph("levels=1", *fits)


def test_every_setting_is_explained(capsys):
    named = meanings()
    assert list(named) == [field.name for field in dataclasses.fields(Experiment)]
    assert main(["show", "smoke"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(meaning in shown for meaning in named.values())
