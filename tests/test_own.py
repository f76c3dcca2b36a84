"""Networks and data of a user's own: trained as by a plain loop, and one line for what does not
work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

import unmask
from unmask import barriers, data, networks, own, pruning, results
from unmask.chains import Place
from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.export import export
from unmask.experiments import experiment
from unmask.lab import Lab
from unmask.train import Start, batches, generator, learning_rate, train

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return x + self.inside(x)


def mlp():
    hidden = nn.Linear(12, 24), nn.LayerNorm(24), nn.GELU(), nn.Dropout(0.2)
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(24, 3))


def convmixer():  # along the 40 points of a signal
    along = nn.Conv1d(8, 8, 5, padding=2, groups=8), nn.GELU(), nn.BatchNorm1d(8)
    across = nn.Conv1d(8, 8, 1), nn.GELU(), nn.BatchNorm1d(8)
    patches = nn.Conv1d(1, 8, 4, stride=4), nn.GELU(), nn.BatchNorm1d(8)
    ends = nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(*patches, Residual(nn.Sequential(*along)), *across, *ends)


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.cls, self.at = nn.Parameter(torch.zeros(1, 1, 8)), nn.Embedding(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 2)
        self.register_buffer("places", torch.arange(5))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.at(self.places)
        return self.head(self.layer(x)[:, 0])


class TwoInputs(nn.Module):  # a word and three numbers, side by side in one tensor
    def __init__(self):
        super().__init__()
        self.word, self.mixed, self.last = nn.Embedding(5, 4), nn.Linear(7, 8), nn.Linear(8, 3)
        columns = self.mixed.weight.detach().t().contiguous()
        self.mixed.weight = nn.Parameter(columns.t())  # which lies in memory column by column

    def forward(self, x):
        word, numbers = x.split([1, 3], 1)
        x = torch.cat([self.word(word.squeeze(1).long()), numbers], 1)
        return self.last(self.mixed(x).relu())


def frozen():
    network = mlp()
    network[1].requires_grad_(False)
    return network


def instance_norm():  # upwards and down again
    up = nn.ConvTranspose2d(3, 4, 2, stride=2), nn.InstanceNorm2d(4, affine=True), nn.ReLU()
    down = nn.Conv2d(4, 8, 4, stride=4), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*up, *down, nn.Flatten(), nn.Linear(8, 2))


def vectors():
    x = torch.randn(90, 3, 4, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :3].argmax(1)
    return x[:60], y[:60], x[60:], y[60:]


def words():
    draws = torch.Generator().manual_seed(0)
    word, numbers = torch.randint(5, (90, 1), generator=draws), torch.randn(90, 3, generator=draws)
    x, y = torch.cat([word, numbers], 1), (word.squeeze(1) + numbers.argmax(1)) % 3
    return x[:60], y[:60], x[60:], y[60:]


def images():
    x = torch.randint(256, (90, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    y = (x[:, 0].float().mean((1, 2)) > 127).long()
    return x[:60].to(torch.uint8), y[:60], x[60:].to(torch.uint8), y[60:]


def pairs():
    x, y, test_x, test_y = vectors()
    return torch.utils.data.TensorDataset(x, y), list(zip(test_x, test_y.tolist()))
"""
BAD = """
import sys

import torch
from torch import nn

SEEN = []


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.last(self.two(self.one(x.flatten(1))))


def no_network():
    return 3


def fails():
    return nn.Linear(3, -3)


def wrong_shape():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


def wrong_input():
    return nn.Sequential(nn.Flatten(), nn.Linear(11, 3))


def nothing_to_prune():
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(12))


def drawn_elsewhere():
    import numpy as np

    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    nn.init.constant_(network[1].weight, np.random.rand())
    return network


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 3)

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return (logits, logits) if self.training else logits


def mixed():
    x = torch.zeros(60, 3, 8, 8)
    return x.to(torch.uint8), torch.zeros(60).long(), x[:30], torch.zeros(30).long()


def not_finite():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    nn.init.constant_(network[1].weight, float("nan"))
    return network


class RandomAtRest(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 3)

    def forward(self, x):
        return self.linear(nn.functional.dropout(x.flatten(1), 0.3))


def cumulative():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, momentum=None), nn.Linear(12, 3))


def half():
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(12, dtype=torch.float16), nn.Linear(12, 3))


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


_once = nn.Linear(12, 3)


def once():
    return nn.Sequential(nn.Flatten(), _once)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(12, 3), 1

    def forward(self, x):
        self.seen += self.training
        return self.linear(x.flatten(1)) / self.seen


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 3)
        self.register_buffer("mean", torch.zeros(12), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.flatten(1).mean(0)
        return self.linear(x.flatten(1) - self.mean)


def renamed():
    def drop(module, state, *_):
        del state["1.bias"]

    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    network._register_state_dict_hook(drop)
    return network


def leaves():
    sys.exit("usage: bad.py")


def scalars():
    return torch.zeros(60), torch.zeros(60).long(), torch.zeros(30), torch.zeros(30).long()


def large():
    x, y, test_x, test_y = (part.double() for part in scalars())
    return x[:, None] + 1e300, y.long(), test_x[:, None], test_y.long()


def tokens():
    x, y, test_x, test_y = (part.long() for part in scalars())
    return x[:, None] + 2**24 + 1, y, test_x[:, None], test_y


def sorted_by_class():
    y = torch.arange(60) // 20
    return torch.zeros(60, 3, 4), y, torch.zeros(60, 3, 4), y


def three():
    return torch.zeros(4, 2), torch.zeros(4).long(), torch.zeros(4, 2)


def fractions():
    return torch.zeros(60, 2), torch.zeros(60), torch.zeros(30, 2), torch.zeros(30)


def infinite():
    zeros = torch.zeros(60).long()
    return torch.zeros(60, 2) / 0, zeros, torch.zeros(30, 2), zeros[:30]


def random():
    return torch.randn(60, 2), torch.zeros(60).long(), torch.randn(30, 2), torch.zeros(30).long()


number = 3
"""


@pytest.fixture
def here(tree, monkeypatch):
    """A user's folder: two files, and images."""
    folder = tree.parent
    (folder / "mine.py").write_text(CODE)
    (folder / "bad.py").write_text(BAD)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("UNMASK_STORE", str(folder / "store"))
    return folder


SHORT = dict(steps=20, batch_size=20, lr=0.05, rewind_steps=(0, 5), levels=2, control_every=1)
SHORT |= dict(probe_levels=(1,), limit_levels=(1,), curvature_samples=20, seeds=1)
VECTORS = dict(dataset="mine.py:vectors", classes=3, train_samples=0, test_samples=0)
PETS = dict(dataset="imagefolder", folder="pets", image_size=8, classes=2, augmentation="crop-flip")
PETS |= dict(train_samples=0, test_samples=0)
CASES = {
    "MLP, dropout, layer norm": VECTORS | dict(network="mine.py:mlp"),
    "MLP, frozen layer": VECTORS | dict(network="mine.py:frozen"),
    "two inputs, one an embedding": VECTORS
    | dict(network="mine.py:TwoInputs", dataset="mine.py:words"),
    "ConvMixer on signals": dict(network="mine.py:convmixer"),
    "ViT": PETS | dict(network="mine.py:ViT"),
    "transposed, instance and group norm": PETS | dict(network="mine.py:instance_norm"),
    "MobileNetV3": PETS | dict(network="torchvision:mobilenet_v3_small"),
    "timm": PETS | dict(network="timm:test_byobnet.r160_in1k"),
}


def of(name, **changes):
    return experiment("smoke", **SHORT | CASES[name] | changes)


@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_a_plain_loop_would(here, store, name):
    e = of(name)
    lab = Lab(e, store)
    split, state = lab.data.train, lab.initial(0)
    mask = pruning.prune_random(lab.dense_mask, lab.total // 2, generator("mask"))
    (found,) = train(e, split, [Start(state, mask, ("order",))])

    network = networks.build(e).train()
    network.load_state_dict(pruning.apply(mask, state), strict=False)
    learned = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    rates = dict(lr=e.lr, momentum=e.momentum, weight_decay=e.weight_decay)
    optimizer = torch.optim.SGD([p for _, p in learned], **rates)
    for step, (x, y) in enumerate(batches(e, split, [("order",)], 0, e.steps)):
        optimizer.param_groups[0]["lr"] = learning_rate(e, step)
        torch.manual_seed(generator("order", "noise", step).initial_seed())
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for n, p in learned:
                p.mul_(mask.get(n, torch.tensor(True)))
    for n, tensor in networks.state_of(network).items():
        torch.testing.assert_close(found.states[e.steps][n], tensor, rtol=2e-3, atol=2e-4, msg=n)


@pytest.mark.parametrize("name", ["MLP, dropout, layer norm", "ConvMixer on signals", "ViT"])
def test_all_tables_are_measured(here, store, name):
    e = of(name, lanczos_steps=4, prune_ratios=(0.5,), perturbation_lengths=(0.0, 1.0))
    found = unmask.measure(e, store=store, jobs=1)
    assert set(found) == set(unmask.tables.known_tables())
    # in another process as well, to the bit, dropout and all; workers of before know no UNMASK_DATA
    jobs = 1 if "folder" in CASES[name] else 2
    again = unmask.measure(e, ["levels"], unmask.Store(here / "again"), jobs=jobs)["levels"]
    assert again.equals(found["levels"])


def test_dropout_draws_anew_each_step_and_leaves_the_global_generator(here, store):
    e = of("MLP, dropout, layer norm")
    lab = Lab(e, store)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    start = Start(lab.initial(0), lab.dense_mask, ("order",))
    one, other = (train(e, lab.data.train, [start])[0].states[e.steps] for _ in range(2))
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = lab.initial(0), lab.initial(1)
    assert not torch.equal(first["1.weight"], second["1.weight"])  # it initialises itself, by seed


AT_RANDOM = """

import random

import numpy as np


class AtRandom(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 3)
        self.register_buffer("kept", torch.arange(12) > 2)
        self.register_buffer("scale", torch.ones(12, dtype=torch.bfloat16))

    def forward(self, x):
        x = x.flatten(1) * self.kept * self.scale
        if self.training:
            x = x * (random.random() < 0.5) + np.random.rand()
        return self.linear(x)
"""


def test_what_python_and_numpy_draw_is_seeded_as_well(here, store):
    """And buffers of booleans or bfloat16 have no part in a distance, and are no obstacle."""
    with (here / "mine.py").open("a") as file:
        file.write(AT_RANDOM)
    e = of("MLP, dropout, layer norm", network="mine.py:AtRandom")
    lab = Lab(e, store)
    start = Start(lab.initial(0), lab.dense_mask, ("order",))
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    one, other = (train(e, lab.data.train, [start])[0].states[e.steps] for _ in range(2))
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert not torch.equal(one["linear.weight"], start.state["linear.weight"])
    assert np.array_equal(np.random.get_state()[1], before)
    weights = [
        torch.cat([s["linear.weight"].flatten(), s["linear.bias"]]) for s in (one, start.state)
    ]
    away = float((weights[0] - weights[1]).double().norm())
    assert barriers.distance(one, start.state) == pytest.approx(away, rel=1e-6)
    assert len(unmask.measure(e, ["perturbations"], store=store, jobs=1)["perturbations"]) > 0


def test_what_can_be_pruned(here):
    def prunable(name, **changes):
        e = of(name, **changes)
        return list(pruning.dense_mask(networks.build(e), e.never_pruned))

    assert prunable("MLP, dropout, layer norm") == ["1.weight", "5.weight"]
    assert prunable("MLP, dropout, layer norm", never_pruned=("5.*",)) == ["1.weight"]
    assert prunable("MLP, frozen layer") == ["5.weight"]
    attention = ["layer.self_attn.in_proj_weight", "layer.self_attn.out_proj.weight"]
    linear = ["layer.linear1.weight", "layer.linear2.weight", "head.weight"]
    assert prunable("ViT") == ["patches.weight", *attention, *linear]
    deep = prunable("MobileNetV3")
    assert len(deep) == 54 and "features.1.block.0.0.weight" in deep
    with pytest.raises(UnmaskError, match="never_pruned: '9.*' fits none of 1.weight, 1.bias, "):
        prunable("MLP, dropout, layer norm", never_pruned=("9.*",))


def test_what_can_be_pruned_is_shown(here, capsys):
    words = [f"{name}={value}" for name, value in CASES["MLP, dropout, layer norm"].items()]
    arguments = [part for word in words for part in ("--set", word)]
    assert main(["show", "smoke", *arguments, "--set", "never_pruned=5.*, 2.*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["1.weight", "24", "x", "12", "288"],
        ["288", "weights", "of", "435", "parameters", "can", "be", "pruned"],
    ]
    shown = [line.split()[:2] for line in lines]
    assert ["network", "mine.py:mlp"] in shown and ["never_pruned", "5.*,2.*"] in shown


def test_the_readme_s_example_works_as_it_stands(here, capsys):
    section = (ROOT / "README.md").read_text().partition("## Your network")[2]
    (here / "mine.py").write_text(section.partition("```python\n")[2].partition("```")[0])
    mine, show, run, *_ = section.partition("```sh\n")[2].splitlines()
    settings = mine.removeprefix('mine="').removesuffix('"').split()
    for line in show, run:
        (*words, given) = line.partition("#")[0].split()
        assert given == "$mine" and words.pop(0) == "unmask"
        assert (
            main([*words, *settings, *(["--tables", "levels"] if words[0] == "run" else [])]) == 0
        )
    said = capsys.readouterr().out
    assert "1,536 weights of 1,732 parameters can be pruned" in said and "what was asked" in said


def test_a_pair_of_data_sets_is_as_good_as_four_tensors(here, store):
    one = data.load(of("MLP, dropout, layer norm"), store)
    other = data.load(of("MLP, dropout, layer norm", dataset="mine.py:pairs"), store)
    for a, b in zip(one, other):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.x.shape[1:] == (3, 4)


def test_images_as_bytes_are_normalised_and_moved(here, store):
    changes = dict(dataset="mine.py:images", folder="", network="mine.py:instance_norm")
    e = of("ViT", **changes)
    split = data.load(e, store).train
    (x, _), *_ = split.chunks(60)
    assert x.mean((0, 2, 3)) == pytest.approx(torch.zeros(3), abs=1e-5)
    first, second = (next(batches(e, split, [order], 0, 1))[0] for order in (("a",), ("b",)))
    assert first.shape == second.shape == (20, 3, 8, 8) and not torch.equal(first, second)
    assert unmask.table("levels", e, store, jobs=1).test_error.between(0, 1).all()


def test_identity_goes_by_what_the_file_says(here, monkeypatch):
    def recipe(**changes):
        own._source.cache_clear()
        return of("MLP, dropout, layer norm", **changes).recipe

    first = recipe()
    assert first.startswith("mine.py-vectors-mine.py-mlp-")
    (here / "elsewhere").mkdir()
    (here / "elsewhere/mine.py").write_text(CODE)
    assert recipe(network=str(here / "elsewhere/mine.py:mlp")) == first
    assert recipe(network="mine:mlp").rpartition("-")[2] == first.rpartition("-")[2]
    (here / "mine.py").write_text(CODE.replace("Dropout(0.2)", "Dropout(0.3)"))
    assert recipe() != first


def test_tables_of_another_file_of_that_name_are_not_its_tables(here, monkeypatch):
    e, store, folder = of("MLP, dropout, layer norm"), unmask.Store(here / "store"), here / "out"
    unmask.measure(e, ["gaps"], store, jobs=1)
    results.publish(Lab(e, store), "mine", folder, wanted=["gaps"])
    assert results.evidence(e, ["gaps"], folder) == "mine"
    (here / "mine.py").write_text(CODE.replace("Dropout(0.2)", "Dropout(0.3)"))
    own._source.cache_clear()
    assert results.evidence(e, ["gaps"], folder) is None
    unmask.measure(e, ["gaps"], store, jobs=1)
    with pytest.raises(UnmaskError, match="has the tables of another experiment"):
        results.publish(Lab(e, store), "mine", folder, wanted=["gaps"])
    (here / "mine.py").unlink()  # others can still be read
    own._source.cache_clear()
    assert results.evidence(experiment("smoke"), ["gaps"], folder) is None


def test_what_a_file_said_at_first_is_what_runs(here):
    e = of("MLP, dropout, layer norm")
    before = e.recipe
    (here / "mine.py").write_text("raise SystemExit")
    assert networks.build(e)[4].p == 0.2 and e.recipe == before


def test_a_ticket_with_attention_leaves_whole(here, store):
    e = of("ViT", levels=1)
    lab, at = Lab(e, store), Place("imp", 0, 5, 1)
    ticket = lab.tickets([at])[0]
    with pytest.raises(UnmaskError, match="has a README.md of something else"):
        (here / "README.md").write_text("# mine\n")
        export(lab, at, here)
    assert (here / "README.md").read_text() == "# mine\n"
    card = (export(lab, at, here / "out") / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    shutil.copy(here / "mine.py", here / "out")
    os.chdir(here / "out")
    exec(code, found := {})
    networks.load_state(lab.network, ticket.state)
    x, network = lab.data.test.as_inputs(4).x, found["network"]
    assert torch.equal(network.eval()(x), lab.network.eval()(x))
    # it goes on within its mask
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network.train()(x).square().sum().backward()
        optimizer.step()
    end = ".0.mask"
    masked = {name for name, _ in network.named_buffers() if name.endswith(end)}
    assert {n.replace("parametrizations.", "") for n in masked} == {n + end for n in ticket.mask}
    for name, kept in ticket.mask.items():
        module, _, weight = name.rpartition(".")
        there = getattr(network.get_submodule(module), weight)
        assert not there[~kept].any() and not torch.equal(there, ticket.state[name])


def test_a_function_is_as_good_as_its_name():
    found = experiment("smoke", network=a_network, **SHORT)
    assert found.network == f"{Path(__file__)}:a_network"
    assert isinstance(networks.build(found), torch.nn.Linear)
    assert own.name_of(torchvision.models.resnet18) == "torchvision.models.resnet:resnet18"
    for function in (lambda: a_network(), torch.nn.Linear(3, 3).forward):
        with pytest.raises(UnmaskError, match=": must be a function at the top of a file, so that"):
            experiment("smoke", network=function)


def a_network():
    return torch.nn.Linear(40, 10)


def test_a_network_that_changes_its_inputs_leaves_the_data_alone(here, store):
    changing = "nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3))"
    with (here / "mine.py").open("a") as file:
        file.write(f"\n\ndef changing():\n    return {changing}\n")
    lab = Lab(of("MLP, dropout, layer norm", network="mine.py:changing"), store)
    before = [split.x.clone() for split in lab.data]
    for split in ("train", "test"):
        lab.evaluate(lab.initial(0), split)
    lab.trained([Start(lab.initial(0), lab.dense_mask, ("order",))], 0)
    assert all(torch.equal(split.x, x) for split, x in zip(lab.data, before))


OTHER_SHAPES = """

import pandas as pd


def two():
    return vectors()[:2], vectors()[2:]


def lists():
    return list(vectors()[:2]), list(vectors()[2:])


def flat():
    return [part.flatten(1) if part.dim() > 1 else part for part in vectors()]


def frames():
    return [pd.DataFrame(part) if part.dim() > 1 else pd.Series(part) for part in flat()]
"""


@pytest.mark.parametrize(
    "plain, as_it_is", [("vectors", "two"), ("vectors", "lists"), ("flat", "frames")]
)
def test_data_as_keras_and_pandas_have_them_are_as_good(here, store, plain, as_it_is):
    with (here / "mine.py").open("a") as file:
        file.write(OTHER_SHAPES)
    names = (f"mine.py:{name}" for name in (plain, as_it_is))
    loaded = (data.load(of("MLP, dropout, layer norm", dataset=name), store) for name in names)
    for one, other in zip(*loaded):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_a_script_that_runs_unmask_when_it_is_imported_is_told_so(tmp_path):
    (tmp_path / "layers.py").write_text("from torch import nn\n\nlayer = nn.Linear(40, 10)\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import copy\nimport layers\nimport unmask\nfrom torch import nn\n\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), copy.deepcopy(layers.layer))\n\n\n"
        f"e = unmask.experiment('smoke', network=net, **{SHORT})\n"
        "print('trains')\nunmask.measure(e, ['levels'], 'store', jobs=1)\n"
    )
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.count("trains") == 2 and "script.py runs unmask while it is" in ran.stderr
    guarded = script.read_text().replace("e = unmask", "if __name__ == '__main__':\n    e = unmask")
    script.write_text(
        guarded.replace("\nprint(", "\n    print(").replace("\nunmask.m", "\n    unmask.m")
    )
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True)
    # from elsewhere it finds what stands beside it
    assert isinstance(own.find(f"{script}:net")(), torch.nn.Sequential)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"network": "nowhere.py:mlp"}, "'nowhere.py': there is no such file or module"),
        ({"network": "nowhere.at.all:mlp"}, "'nowhere.at.all': there is no such file or module"),
        ({"network": "mine.py:nothing"}, "mine.py:nothing: mine.py has no function 'nothing'"),
        ({"network": "bad.py:number"}, "bad.py has no function 'number'"),
        ({"network": "broken.py:mlp"}, "broken.py cannot be imported: SyntaxError: "),
        ({"network": "bad.py:no_network"}, "returns int, not a torch.nn.Module"),
        ({"network": "bad.py:fails"}, "network='bad.py:fails': RuntimeError: "),
        ({"network": "bad.py:wrong_shape"}, "gives (2, 4) for 2 inputs in training, not (2, 3)"),
        ({"network": "bad.py:wrong_input"}, "does not take inputs of shape (2, 3, 4): RuntimeErr"),
        ({"network": "bad.py:nothing_to_prune"}, "the network has no weight that can be pruned"),
        ({"network": "bad.py:not_finite"}, "1.weight is not finite to begin with"),
        ({"network": "bad.py:Auxiliary"}, "gives tuple for 2 inputs in training, not (2, 3)"),
        ({"network": "bad.py:drawn_elsewhere"}, "1.weight is another each time, although torch"),
        ({"dataset": "bad.py:mixed"}, "training are torch.uint8, (3, 8, 8), those for test torch"),
        ({"network": "bad.py:Tied"}, "two.weight is the same tensor as another"),
        ({"network": "torchvision:nothing"}, "network='torchvision:nothing': ValueError: "),
        ({"network": "timm:nothing"}, "network='timm:nothing': RuntimeError: "),
        ({"network": "mlp"}, "must be one of resnet1d, resnet1d-strided, "),
        ({"network": "resnet20"}, "must be your own as well, for mine.py:vectors"),
        ({"dataset": "bad.py:three"}, "must return inputs and labels, for training and for test"),
        ({"dataset": "bad.py:fractions"}, "there must be a whole number from 0 on for each input"),
        ({"dataset": "bad.py:infinite"}, "an input is not finite"),
        ({"dataset": "bad.py:random"}, "returns other data when called again"),
        ({"network": "bad.py:RandomAtRest"}, "gives other logits when called again in evaluation"),
        ({"network": "bad.py:cumulative"}, "1 has momentum=None, by which a training cannot be"),
        ({"network": "bad.py:half"}, "2.bias is torch.float32; all parameters must be float32, or"),
        ({"network": "bad.py:lazy"}, "has lazy layers; give them their sizes"),
        ({"network": "bad.py:once"}, "has the same parameters when its function is called again"),
        ({"network": "bad.py:Counting"}, "keeps what its state_dict() lacks"),
        ({"network": "bad.py:Forgetful"}, "keeps what its state_dict() lacks"),
        ({"network": "bad.py:renamed"}, "1.bias is not in its state_dict() by that name"),
        ({"network": "bad.py:leaves"}, "network='bad.py:leaves': SystemExit: usage: bad.py"),
        (
            {"network": "options.py:mlp"},
            "options.py:mlp: options.py cannot be imported: SystemExit",
        ),
        ({"dataset": "bad.py:scalars"}, "for each input, and that is no scalar"),
        ({"dataset": "bad.py:large"}, "an input is not finite, as float32"),
        ({"dataset": "bad.py:tokens"}, "a whole number among the inputs is too large for float32"),
        (
            {"dataset": "bad.py:sorted_by_class", "train_samples": 30},
            "the first 30 of 60 samples have none of class 2; mix them, or take more, or 'all'",
        ),
        ({"train_measured": 70}, "train_measured=70: mine.py:vectors has 60"),
        ({"classes": 4}, "classes=4: mine.py:vectors has 3"),
        ({"augmentation": "crop-flip"}, "augmentation='crop-flip': of bytes only; mine.py:vec"),
    ],
)
def test_what_does_not_work_is_said_in_one_line(here, capsys, changes, said):
    (here / "broken.py").write_text("def mlp(:\n")
    (here / "options.py").write_text("import sys\n\nsys.exit(2)\n")
    settings = SHORT | CASES["MLP, dropout, layer norm"] | changes
    typed = []
    for name, value in settings.items():
        word = ",".join(map(str, value)) if isinstance(value, tuple) else value
        typed += ["--set", f"{name}={word}"]
    assert main(["run", "smoke", *typed, "--tables", "levels", "--jobs", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not list((here / "store").rglob("*dense*"))


def test_a_state_that_does_not_fit_is_refused(here, store):
    lab = Lab(of("MLP, dropout, layer norm"), store)
    state = lab.initial(0)
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(UnmaskError, match="'1.bias' is in the network alone: the two do not fit"):
        networks.load_state(lab.network, wrapped)
    with pytest.raises(UnmaskError, match="'weight_orig' is in the state alone"):
        networks.load_state(lab.network, state | {"weight_orig": torch.zeros(1)})
    with pytest.raises(UnmaskError, match=r"'1.bias' has shape \(1,\), \(24,\) in the network"):
        networks.load_state(lab.network, state | {"1.bias": torch.zeros(1)})
