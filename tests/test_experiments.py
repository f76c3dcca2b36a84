"""Experiments: identities, and one clear line for every kind of bad input."""

import copy
import subprocess
import sys

import pytest

from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.experiments import _ALLOWED, PRESETS, Experiment, experiment, parse_setting


def test_identities_are_pinned_so_that_stored_results_stay_findable():
    assert {name: (preset.id, preset.recipe) for name, preset in PRESETS.items()} == PINNED


def test_every_changed_field_gives_a_new_identity():
    changes = dict(train_samples=300, test_samples=400, data_seed=1, network="resnet1d", width=5, steps=41, batch_size=49,
                   lr=0.3, momentum=0.5, weight_decay=0.0, milestones=(0.4,), lr_decay=0.2, rewind_steps=(0, 6),
                   levels=2, prune_fraction=0.3, control_every=1, seeds=3, barrier_points=5, epsilon=0.02,
                   lmc_threshold=0.03, agreement=0.8, higher_sparsity=0.4, ticket_density=0.3, gap_refilled=0.4, plane_points=7, first_seed=7,
                   device="cpu",
                   probe_levels=(1,), perturbation_lengths=(0.0, 1.0), limit_levels=(1,), prune_ratios=(0.5,),
                   image_size=28, classes=9, augmentation="crop-flip", folder="pets", warmup=0.1, precision="bf16",
                   curvature_samples=50, lanczos_probes=3, lanczos_steps=5, loss_height=0.1, limit_tolerance=0.2, train_measured=7)
    smoke, digest = PRESETS["smoke"], Experiment.digest
    fields = [name for name in Experiment.__dataclass_fields__ if name != "preset"]
    ids = {smoke.id}
    for name, value in changes.items():
        changed = copy.copy(smoke)  # whether the value fits the rest is not the question
        object.__setattr__(changed, name, value)
        assert changed.id == digest(changed, *fields)
        ids.add(changed.id)
    assert len(ids) == len(changes) + 1
    assert set(changes) | {"preset", "dataset"} == set(Experiment.__dataclass_fields__)


def test_counting_and_judging_reuse_trainings_but_training_settings_do_not():
    smoke = PRESETS["smoke"]
    for change in (dict(seeds=9), dict(levels=5), dict(rewind_steps=(0, 9)), dict(epsilon=0.5), dict(barrier_points=7),
                   dict(probe_levels=(1,)), dict(prune_ratios=(0.3,)), dict(loss_height=1.0),
                   dict(train_measured=50)):
        assert smoke.but(**change).recipe == smoke.recipe
    for change in (dict(lr=0.3), dict(steps=41), dict(width=5), dict(prune_fraction=0.5), dict(data_seed=1)):
        assert smoke.but(**change).recipe != smoke.recipe


@pytest.mark.parametrize("change, said", [
    (dict(steps=0), "steps=0: must be 1 or more"),
    (dict(steps=-5), "steps=-5"),
    (dict(levels=0), "levels=0"),
    (dict(seeds=-1), "seeds=-1"),
    (dict(seeds=2.0), "seeds=2.0: must be of type int"),
    (dict(seeds=True), "seeds=True: must be of type int"),
    (dict(lr="fast"), "lr='fast': must be of type float"),
    (dict(lr=float("nan")), "lr=nan"),
    (dict(lr=float("inf")), "lr=inf"),
    (dict(rewind_steps=5), "rewind_steps=5: must be a list of int"),
    (dict(rewind_steps=[0, 40]), "rewind_steps=[0, 40]: must be at most 39"),
    (dict(rewind_steps=[5, 0]), "rewind_steps=[5, 0]: must be at least one, increasing"),
    (dict(rewind_steps=[]), "rewind_steps=[]"),
    (dict(prune_fraction=0.0), "prune_fraction=0.0: must be in (0, 1)"),
    (dict(prune_fraction=1), "prune_fraction=1.0: must be in (0, 1)"),
    (dict(barrier_points=10), "barrier_points=10: must be odd"),
    (dict(probe_levels=[]), "probe_levels=[]: must be at least one"),
    (dict(limit_levels=[-1, 2]), "limit_levels=[-1, 2]: must be at least one, increasing, each 0 or more"),
    (dict(perturbation_lengths=[-1.0, 0.0, 1.0]), "perturbation_lengths=[-1.0, 0.0, 1.0]: must be increasing, each 0 or"),
    (dict(perturbation_lengths=[0.0, 1.0, float("inf")]), "perturbation_lengths=inf: must be of type float and finite"),
    (dict(perturbation_lengths=[0.0, 1.0, float("nan")]), "perturbation_lengths=nan"),
    (dict(perturbation_lengths=[0.0, 2.0]), "0 and 1 among them"),
    (dict(prune_ratios=[0.5, 1.0]), "prune_ratios=[0.5, 1.0]: must be at least one, increasing, each in (0, 1)"),
    (dict(prune_ratios=[0.0]), "prune_ratios=[0.0]"),
    (dict(classes=5), "classes=5: must be 10 for mnist1d"),
    (dict(curvature_samples=501), "curvature_samples=501: must be at most train_samples (500)"),
    (dict(train_measured=-1), "train_measured=-1: must be 0 or more"),
    (dict(loss_height=0.0), "loss_height=0.0: must be above 0"),
    (dict(plane_points=20), "plane_points=20: must be odd"),
    (dict(gap_refilled=1.5), "gap_refilled=1.5: must be in (0, 1)"),
    (dict(batch_size=501), "batch_size=501: must be at most train_samples (500)"),
    (dict(device="tpu"), "device='tpu': must be 'auto', 'cpu', 'cuda' or 'cuda:N'"),
    (dict(device="cuda:²"), "device='cuda:²': must be 'auto'"),
    (dict(lr=1e39), "lr=1e+39: must be above 0 and at most 1e+06"),
    (dict(data_seed=2**32), "data_seed=4294967296: must be 0 to 4294967295"),
    (dict(preset=["smoke"]), "preset=['smoke']: must be one of"),
    (dict(network="vgg"), "network='vgg': must be one of resnet1d"),
    (dict(learning_rate=1), "unknown field 'learning_rate': an experiment has dataset"),
    (dict(preset="x"), "preset='x': must be one of miniature, miniature_fine, smoke"),
])
def test_bad_values_are_named_with_what_is_allowed(change, said):
    with pytest.raises(UnmaskError) as caught:
        experiment(**{"preset": "smoke"} | change)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_every_field_is_checked_or_free():
    assert set(Experiment.__dataclass_fields__) - set(_ALLOWED) == {"preset"}


@pytest.mark.parametrize("text, parsed", [
    ("seeds=4", ("seeds", 4)), ("lr=0.5", ("lr", 0.5)), ("rewind_steps=0,50", ("rewind_steps", (0, 50))),
    ("rewind_steps=[0, 50]", ("rewind_steps", (0, 50))), ("device=cpu", ("device", "cpu")), ("foo=1", ("foo", "1"))])
def test_settings_are_parsed_by_the_field_type(text, parsed):
    assert parse_setting(text) == parsed


@pytest.mark.parametrize("arguments, said", [
    (["run", "nope"], "preset='nope': must be one of miniature, miniature_fine, smoke"),
    (["run", "smoke", "--set", "nope=1"], "unknown field 'nope'"),
    (["run", "smoke", "--set", "lr=fast"], "lr='fast': must be of type float"),
    (["run", "smoke", "--set", "lr"], "must have the form field=value"),
    (["run", "smoke", "--jobs", "0"], "jobs=0: must be a whole number, 1 or more"),
    (["run", "smoke", "--set", "device=cuda:99"], "device='cuda:99': this machine has"),
    (["run", "smoke", "--set", "prune_fraction=0.9", "--set", "levels=9"], "would leave no weight"),
    (["run", "smoke", "--set", "preset=miniature"], "unknown field 'preset'"),
    (["run", "smoke", "--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
    (["nope"], "invalid choice: 'nope'"),
    (["run", "smoke", "--set", "probe_levels=1,3"], "probe_levels=[1, 3]: must be at most 2 each; the chain has levels"),
    (["run", "smoke", "--set", "control_every=9"], "control_every=9: must be at most levels (3)"),
    (["run", "smoke", "--publish", ""], "publish='': must be a name"),
    (["run", "smoke", "--set", "limit_levels=9"], "limit_levels=[9]: must be at most 2 each; the chain has levels 0 to 3"),
    (["run", "smoke", "--set", "perturbation_lengths=0,1,-2"], "perturbation_lengths=[0.0, 1.0, -2.0]: must be incr"),
    (["execute", "missing.ipynb"], "no such file"),
    (["execute", "README.md"], "is not a notebook"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "book/claims.ipynb", "-p", "seeds", "2"],
     "unknown parameter 'seeds': claims.ipynb has"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "-p", "settings", "{'seeds': 1}"], "set it there"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "-p", "jobs", "0"], "jobs=0: must be a whole number"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "-p", "device", "cpu"], "unknown parameter 'device'"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "-p", "settings", "{'device': 'cuda:99'}"], "this machine has"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "-p", "sedes", "2"], "unknown parameter 'sedes'"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "-p", "seeds", "two"], "seeds='two': must be of type int"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "-p", "settings", "3"], "settings=3: must be a dictionary"),
    (["execute", "notebooks/01_winning_tickets.ipynb", "-p", "settings", "{'lrr': 3}"], "unknown field 'lrr'"),
])
def test_command_line_answers_bad_input_with_one_line_and_leaves_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path / "store"))
    assert main(arguments) == 2
    captured = capsys.readouterr().err
    assert said in captured and captured.count("\n") == 1 and captured.startswith("unmask: error: ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_listing_presets_imports_nothing_heavy():
    code = "import sys, unmask.cli; unmask.cli.main(['presets']); sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


PINNED = {
    "miniature": ("aede39df4c", "mnist1d-resnet1d-strided-b227a2cc74"),
    "miniature_fine": ("cfd3e18bfe", "mnist1d-resnet1d-1bb3f0f09c"),
    "smoke": ("c32c1250ff", "mnist1d-resnet1d-strided-f99868e3dd"),
    "mnist_lenet": ("788ed10cc8", "mnist-lenet-300-100-e844af970f"),
    "mnist_resnet20": ("07cd1c02e7", "mnist-resnet20-8245666913"),
    "cifar10_resnet20": ("f372f39dcd", "cifar10-resnet20-a564285d7c"),
    "cifar100_resnet18": ("ca3ef64f75", "cifar100-resnet18-3127a276ce"),
    "imagenet_resnet50": ("12247f2f57", "imagefolder-resnet50-5e6f7eca02"),
}
