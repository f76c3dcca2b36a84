"""Image data sets and networks: against torchvision and independent constructions, and one line for every bad file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import textbook
from unmask import data, networks, pruning
from unmask.chains import Runs
from unmask.errors import UnmaskError
from unmask.experiments import DATASETS, experiment
from unmask.store import Store
from unmask.train import Start, batches, evaluate, generator, learning_rate, train

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Random images of 8 x 8 pixels: 2 classes, 30 for training and 10 for test in each."""
    monkeypatch.setenv("UNMASK_DATA", str(tmp_path))
    noise = np.random.RandomState(0)
    for split, count in (("train", 30), ("val", 10)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.randint(0, 128, (8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    return tmp_path / "pets"


def pets(**changes):
    settings = dict(
        dataset="imagefolder", folder="pets", image_size=8, classes=2, train_samples=60, test_samples=20,
        augmentation="crop-flip", network="resnet20", width=4, steps=12, batch_size=20, lr=0.05, curvature_samples=20,
        rewind_steps=(0, 2), levels=2, probe_levels=(1,), limit_levels=(1,), control_every=1, momentum=0.9)
    return experiment("smoke", **settings | changes)


# --- networks

@pytest.mark.parametrize("preset, parameters, prunable", [
    ("mnist_lenet", 266_610, 265_200), ("cifar10_resnet20", 272_474, 270_896), ("cifar100_resnet18", 11_220_132, 11_210_432),
    ("imagenet_resnet50", 25_557_032, 25_502_912)])
def test_networks_have_as_many_parameters_as_in_the_papers(preset, parameters, prunable):
    network = networks.build(experiment(preset))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert pruning.survivors(pruning.dense_mask(network)) == prunable


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("preset", ["mnist_lenet", "cifar10_resnet20", "cifar100_resnet18"])
def test_networks_equal_the_textbook_s(preset, training):
    e = experiment(preset)
    state = networks.initial_state(e, generator("test"))
    ours, theirs = networks.build(e), textbook.network(e)
    networks.load_state(ours, state)
    names = [name for name in theirs.state_dict() if not name.endswith("tracked")]
    assert [t.shape for t in state.values()] == [theirs.state_dict()[name].shape for name in names]
    theirs.load_state_dict(dict(zip(names, state.values())), strict=False)
    x = torch.randn(4, e.channels, e.image_size, e.image_size, generator=generator("x")).double()
    results = []
    for network in (ours, theirs):
        network.double().train(training)
        logits = network(x)
        loss = F.cross_entropy(logits, torch.arange(4))
        results.append((logits, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_resnet50_is_torchvision_s():
    from torchvision.models import resnet50

    e = experiment("imagenet_resnet50")
    ours, theirs = networks.build(e).eval(), resnet50().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=generator("x"))
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(UnmaskError, match="one at a time"):
        networks.build(e, 2)


@pytest.mark.parametrize("network, width", [("lenet-300-100", 30), ("resnet20", 4)])
def test_replicates_get_what_each_gets_alone_up_to_rounding(tree, store, network, width):
    e = pets(network=network, width=width)
    split = data.load(e, store).train
    dense = pruning.dense_mask(networks.build(e))
    starts = [Start(networks.initial_state(e, generator(i)), pruning.prune_random(dense, keep, generator("mask", i)),
                    ("order", i)) for i, keep in enumerate((400, 900, 1800))]
    for start, found in zip(starts, train(e, split, starts, start=2)):
        (alone,) = train(e, split, [start], start=2)
        for name, tensor in alone[e.steps].items():
            torch.testing.assert_close(found[e.steps][name], tensor, rtol=1e-3, atol=1e-4)


def test_lenet_trains_like_torch_sgd(tree, store):
    e = pets(network="lenet-300-100", width=30, momentum=0.0, weight_decay=0.0, augmentation="none")
    split = data.load(e, store).train
    state = networks.initial_state(e, generator("init"))
    mask = pruning.prune_random(pruning.dense_mask(networks.build(e)), 800, generator("mask"))
    ours = train(e, split, [Start(state, mask, ("order",))])[0][e.steps]
    assert "output.weight" not in mask
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in pruning.apply(mask, state).items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=e.lr)
    for step, (x, y) in enumerate(batches(e, split, [("order",)], 0, e.steps)):
        optimizer.param_groups[0]["lr"] = learning_rate(e, step)
        for layer in ("hidden1", "hidden2", "output"):
            x = F.linear(x.flatten(1), theirs[f"{layer}.weight"], theirs[f"{layer}.bias"])
            x = x.relu() if layer != "output" else x
        optimizer.zero_grad()
        F.cross_entropy(x, y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, kept in mask.items():
                theirs[name].mul_(kept)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor.detach(), rtol=1e-4, atol=1e-6)


def test_warm_up_rises_to_the_learning_rate():
    e = experiment("imagenet_resnet50")
    rates = [learning_rate(e, step) for step in (0, 5 * 1251 - 1, 5 * 1251, 30 * 1251 - 1, 30 * 1251, 80 * 1251)]
    assert rates == pytest.approx([0.4 / (5 * 1251), 0.4, 0.4, 0.4, 0.04, 0.0004])


# --- augmentation and normalisation

def test_crop_and_flip_is_torchvision_s_crop_and_flip_of_each_image():
    from torchvision.transforms.v2 import functional as tv

    x = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=generator("x"))
    draws = torch.randint(2**62, (200,), generator=generator("draws"))
    found = data.crop_and_flip(x, draws)
    seen = set()
    for image, draw, ours in zip(x, draws.tolist(), found):
        top, left, mirrored = draw % 9, draw // 9 % 9, draw // 81 % 2
        expected = tv.crop(tv.pad(image, [4]), top, left, 16, 16)
        assert torch.equal(ours, tv.horizontal_flip(expected) if mirrored else expected)
        seen |= {("top", top), ("left", left), ("mirrored", mirrored)}
    assert len(seen) == 9 + 9 + 2


def test_batches_are_normalised_augmented_and_differ_by_epoch_and_order(tree, store):
    e = pets()
    split = data.load(e, store).train
    plain = torch.cat([x for x, _ in split.chunks(7)])
    assert plain.mean((0, 2, 3)) == pytest.approx(torch.zeros(3), abs=1e-5)
    assert plain.transpose(0, 1).flatten(1).std(1) == pytest.approx(torch.ones(3), abs=1e-5)
    together = list(batches(e, split, [("one",), ("two",)], 0, 6))
    alone = [list(batches(e, split, [order], 0, 6)) for order in (("one",), ("two",))]
    for step, (x, y) in enumerate(together):
        for i in (0, 1):
            assert torch.equal(x[:, 3 * i:3 * i + 3], alone[i][step][0])
            assert torch.equal(y[20 * i:20 * i + 20], alone[i][step][1])
    first, second = (torch.cat([x for x, _ in alone[0][start:start + 3]]) for start in (0, 3))
    assert not torch.equal(first.sort(0).values, second.sort(0).values)  # the same images, moved differently
    late = list(batches(e, split, [("one",)], 4, 6))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone[0][4:], late))


@pytest.mark.parametrize("dataset, channels", [("mnist", 1), ("cifar10", 3)])
def test_convolutions_work_channels_last_whatever_the_channels(dataset, channels):
    """The layout in which they are fast, on a CPU and a GPU; it must be told by strides where there is one channel."""
    e = pets(dataset=dataset, folder="", image_size=DATASETS[dataset][0], augmentation="none")
    pixels = torch.zeros(40, channels, e.image_size, e.image_size, dtype=torch.uint8)
    split = data.Split(pixels, torch.zeros(40).long(), *torch.ones(2, 1, channels, 1, 1))
    network = networks.build(e)
    for x in (next(split.chunks(20))[0], next(batches(e, split, [("order",)], 0, 1))[0]):
        assert network.stem(x).stride(1) == 1


# --- folders of images

def test_a_tree_is_read_whole_mixed_and_stored(tree, store, monkeypatch):
    e = pets()
    train_split, test_split = data.load(e, store)
    assert train_split.x.shape == (60, 3, 8, 8) and test_split.x.shape == (20, 3, 8, 8)
    assert torch.equal(train_split.x.float().mean((1, 2, 3)) > 100, train_split.y == 1)
    assert 0 < train_split.y[:20].sum() < 20  # not class by class
    monkeypatch.setattr(data, "_open", lambda path: pytest.fail("decoded again"))
    again = data.load(e, store)
    assert torch.equal(again.train.x, train_split.x)


def change(tree, how):
    cat = tree / "train/cat"
    match how:
        case "damaged":
            (cat / "03.png").write_bytes((cat / "03.png").read_bytes()[:50])
        case "size":
            Image.new("RGB", (9, 8)).save(cat / "03.png")
        case "empty":
            for path in cat.iterdir():
                path.unlink()
        case "differ":
            (tree / "val/cat").rename(tree / "val/cow")
        case "deep":
            Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(cat / "03.png")
        case "flat":
            for folder in (tree / "train").iterdir():
                folder.rename(tree / f"moved-{folder.name}")
        case "no test":
            (tree / "val").rename(tree / "validate")
        case "dangling":
            (tree / "train/dog/zz.png").symlink_to("nowhere.png")


def test_signals_are_not_shared_among_processes(tiny, monkeypatch):
    from unmask import processes

    monkeypatch.setattr(processes, "count", lambda: 2)
    e = tiny.but(batch_size=50)
    start = Start(networks.initial_state(e, generator(0)), pruning.dense_mask(networks.build(e)), (0,))
    with pytest.raises(UnmaskError, match="network='resnet1d-strided': is trained by one process"):
        train(e, data.Split(torch.zeros(100, 1, 40), torch.zeros(100, dtype=torch.long)), [start])
    with pytest.raises(UnmaskError, match="batch_size=51: must be a multiple of the 2 processes"):
        train(e.but(batch_size=51), data.Split(torch.zeros(100, 1, 40), torch.zeros(100, dtype=torch.long)), [start])


@pytest.mark.parametrize("how, changes, said", [
    ("damaged", {}, "03.png: cannot be read"),
    ("damaged", {"augmentation": "resized-crop"}, "03.png: cannot be read"),
    ("size", {}, "03.png: is 9 x 8 pixels, not 8 x 8; set image_size"),
    ("empty", {}, "train': class 'cat' has no images"),
    ("deep", {}, "more than 8 bits a pixel"),
    ("flat", {}, "pets/train': has no folders"),
    ("differ", {}, "folder='pets': class 'cat' is among the training images only"),
    ("no test", {}, "pets/test'"),
    ("", {"classes": 3}, "classes=3: pets has 2"),
    ("", {"train_samples": 61}, "train_samples=61: pets has 60"),
    ("", {"folder": "pests"}, "folder='pests': there is no folder"),
    ("dangling", {}, "dog/zz.png: cannot be read (No such file or directory)"),
])
def test_a_bad_tree_is_said_in_one_line(tree, store, how, changes, said):
    change(tree, how)
    with pytest.raises(UnmaskError) as caught:
        e = pets(**changes)
        list(batches(e, data.load(e, store).train, [("order",)], 0, 3))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_unlabelled_test_folder_and_hidden_files_are_passed_over(tree, store):
    (tree / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tree / "test/1.png")
    (tree / "train/.ipynb_checkpoints").mkdir()
    (tree / "train/cat/._00.png").write_bytes(b"resource fork")
    (tree / "train/cat/notes.txt").write_text("good cats")
    (tree / "train/cat/00.png").rename(tree / "train/cat/00.PNG")
    assert len(data.load(pets(), store).train.y) == 60


def test_other_images_under_an_old_name_are_refused(tree, store):
    data.load(pets(), store)
    Image.new("RGB", (8, 8)).save(tree / "train/cat/03.png")
    with pytest.raises(UnmaskError, match="folder='pets': its images are not those of the results in"):
        data.load(pets(), store)


@pytest.mark.parametrize("changes", [{}, {"augmentation": "resized-crop", "image_size": 16}])
def test_a_copy_of_the_images_is_as_good(tree, store, changes):
    data.load(pets(**changes), store)
    for image in tree.rglob("*.png"):
        os.utime(image, (0, 0))
    data.load(pets(**changes), store)


def test_an_image_of_the_same_size_on_disk_is_still_another(tree, store):
    e, image = pets(train_samples=61), tree / "train/cat/03.bmp"
    Image.new("RGB", (8, 8), "black").save(image)
    data.load(e, store)
    Image.new("RGB", (8, 8), "white").save(image)
    with pytest.raises(UnmaskError, match="folder='pets': its images are not those of the results in"):
        data.load(e, store)


@pytest.mark.parametrize("changes, said", [
    ({"folder": ""}, "folder='': must be the folder of the images"),
    ({"dataset": "mnist", "folder": "", "image_size": 32}, "image_size=32: must be 28, the size of mnist"),
    ({"network": "resnet1d"}, "network='resnet1d': must be one of lenet-300-100, resnet20"),
    ({"dataset": "cifar10", "folder": "", "image_size": 32, "augmentation": "resized-crop"}, "augmentation='resized-crop': must"),
    ({"network": "resnet50"}, "width=4: must be 64"),
    ({"precision": "fp8"}, "precision='fp8': must be one of float32, tf32, bf16"),
    ({"warmup": 1.0}, "warmup=1.0: must be a share"),
])
def test_settings_that_do_not_fit_together_are_said(changes, said):
    with pytest.raises(UnmaskError) as caught:
        pets(**changes)
    assert said in str(caught.value)


def test_without_network_and_files_it_is_said_where_they_belong(tmp_path, monkeypatch, store):
    import torchvision

    monkeypatch.setenv("UNMASK_DATA", str(tmp_path / "none"))
    unreachable = "<urlopen error [Errno -2] Name or service not known>"
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive",
                        lambda *_, **__: (_ for _ in ()).throw(OSError(unreachable)))
    with pytest.raises(UnmaskError) as caught:
        data.load(experiment("mnist_lenet"), store)
    assert "dataset='mnist': not found whole and not downloaded" in str(caught.value)
    assert "MNIST/raw, or set UNMASK_DATA" in str(caught.value) and "\n" not in str(caught.value)


# --- streams

def test_a_stream_is_the_same_however_it_is_read(tree, store):
    e = pets(augmentation="resized-crop", image_size=16)
    split = data.load(e, store).train
    whole = list(batches(e, split, [("order",)], 0, 6))
    late = list(batches(e, split, [("order",)], 4, 6))
    assert whole[0][0].shape == (20, 3, 16, 16)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[4:], late))
    assert not torch.equal(whole[0][0], whole[3][0])
    plain = torch.cat([x for x, _ in split.chunks(17)])
    assert torch.equal(plain, torch.cat([x for x, _ in split.chunks(60)])) and torch.equal(plain[:9], split.first(9).x)
    assert torch.equal(plain[:9], torch.cat([x for x, _ in split.head(9).chunks(60)]))
    assert torch.equal(plain[1::3], torch.cat([x for x, _ in split.chunks(5, 1, 3)]))


def test_workers_decode_the_same_and_say_what_is_wrong_in_one_line(tree, store):
    split = data.load(pets(augmentation="resized-crop", image_size=16), store).train
    workers = split.to(torch.device("meta"))  # any device but the CPU: what is sent there is counted, not kept
    assert sum(len(y) for _, y in workers.chunks(7)) == 60
    change(tree, "damaged")
    with pytest.raises(UnmaskError) as caught:
        list(workers.chunks(7))
    assert "03.png: cannot be read" in str(caught.value) and "\n" not in str(caught.value)


def test_resnet50_trains_and_is_pruned_on_a_stream(tree, store):
    e = pets(augmentation="resized-crop", image_size=32, network="resnet50", width=64, steps=3, rewind_steps=(0, 1),
             batch_size=10, train_samples=30, test_samples=10, levels=1, warmup=0.5)
    runs = Runs(e, store)
    ticket = runs.level(0, 1, 1)
    assert pruning.survivors(ticket.mask) == runs.survivors(1)
    assert all((ticket.state[name][~kept] == 0).all() for name, kept in ticket.mask.items())
    networks.load_state(runs.network, ticket.state)
    assert 0 <= evaluate(runs.network, runs.data.test).error <= 1


# --- long runs

@pytest.mark.parametrize("network, width", [("resnet20", 4), ("lenet-300-100", 30)])
def test_an_interrupted_training_is_resumed_to_the_same_bits(tree, store, monkeypatch, network, width):
    from unmask import train as training

    e = pets(network=network, width=width, precision="bf16" if network == "resnet20" else "float32")
    split = data.load(e, store).train
    starts = [Start(networks.initial_state(e, generator(i)), pruning.dense_mask(networks.build(e)), (i, "order"))
              for i in (0, 1)]
    expected = train(e, split, starts, 1, (3, 12))

    monkeypatch.setattr(training.Unfinished, "SECONDS", 0)
    asked = []

    def stopping(experiment, step):
        asked.append(step)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return learning_rate(experiment, step)

    monkeypatch.setattr(training, "learning_rate", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(e, split, starts, 1, (3, 12), store=store)
    read = [start._replace(state=dict(reversed(start.state.items()))) for start in starts]  # as a store may give it
    found = train(e, split, read, 1, (3, 12), store=store)
    assert asked == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11]
    for one, other in zip(expected, found):
        assert all(torch.equal(one[step][name], other[step][name]) for step in (3, 12) for name in one[step])
    again = train(e, split, starts, 1, (3, 12), store=store)  # finished, but what comes of it is not stored yet
    assert len(asked) == 12
    for one, other in zip(expected, again):
        assert all(torch.equal(one[12][name], other[12][name]) for name in one[12])
    store.finish()
    assert not [name for name in store.names() if "unfinished" in name]


def test_a_kept_training_that_was_torn_leaves_the_one_before(tree, store, monkeypatch):
    from unmask import train as training

    e = pets(network="lenet-300-100", width=30)
    split = data.load(e, store).train
    start = Start(networks.initial_state(e, generator(0)), pruning.dense_mask(networks.build(e)), (0, "order"))
    monkeypatch.setattr(training.Unfinished, "SECONDS", 0)
    expected = train(e, split, [start], store=store)
    kept = sorted((name for name in store.names() if "unfinished" in name), key=lambda name: name)
    newest = max(kept, key=lambda name: int(store.tensors(name.removesuffix(".safetensors"))["step"]))
    (store.root / newest).write_bytes(b"torn")
    found = train(e, split, [start], store=store)
    assert all(torch.equal(found[0][12][name], tensor) for name, tensor in expected[0][12].items())


# --- several processes

def test_two_processes_train_what_one_does(tree, tmp_path):
    """`torchrun` on two CPU processes: the same tables as one process, but for rounding. Batch norm sees whole batches."""
    settings = {"steps": 6, "levels": 2, "seeds": 1, "control_every": 1, "probe_levels": 0, "limit_levels": 0, "width": 4,
                "dataset": "imagefolder", "folder": "pets", "image_size": 16, "classes": 2, "train_samples": 60,
                "test_samples": 20, "augmentation": "resized-crop", "network": "resnet20", "batch_size": 20, "lr": 0.05,
                "curvature_samples": 20, "rewind_steps": "0,2"}
    command = ["-m", "unmask", "run", "smoke", "--jobs", "1"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    for count in (1, 2):
        launch = [] if count == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        environment = os.environ | {"UNMASK_STORE": str(tmp_path / f"store{count}"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *launch, *command], env=environment, capture_output=True, text=True,
                              timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("unmask: everything for") == 1
    one, two = (Store(tmp_path / f"store{count}") for count in (1, 2))
    assert list(one.names()) == list(two.names())
    levels = [next(store.root.glob("*/seed0/rewind00000/levels-*.csv")) for store in (one, two)]
    first, second = (pd.read_csv(path).set_index("level").loc[0] for path in levels)
    assert second.train_loss == pytest.approx(first.train_loss, abs=1e-5)
    assert second.test_error == pytest.approx(first.test_error, abs=1 / 20)
    trained = [name.removesuffix(".safetensors") for name in one.names() if "level01.s" in name or "dense" in name]
    assert len(trained) > 5
    for name in trained:
        # Sparse networks of this width have channels that are almost constant, which batch norm scales up.
        tolerance = 1e-5 if name.endswith("dense") else 0.1
        for key, tensor in one.tensors(name).items():
            found = two.tensors(name)[key]
            if key.startswith("mask:"):
                assert torch.equal(found, tensor), (name, key)
            else:
                torch.testing.assert_close(found, tensor, rtol=tolerance, atol=tolerance, msg=f"{name} {key}")


def test_bad_images_end_all_processes_in_one_line_each(tree, tmp_path):
    shutil.rmtree(tree / "val/dog")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "unmask", "run", "smoke"]
    for name, value in {"dataset": "imagefolder", "folder": "pets", "image_size": 8, "classes": 2, "train_samples": 60,
                        "test_samples": 20, "network": "resnet20", "batch_size": 20, "curvature_samples": 20}.items():
        command += ["--set", f"{name}={value}"]
    environment = os.environ | {"UNMASK_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("unmask: process")]
    assert sorted(line[:18] for line in lines) == ["unmask: process 0:", "unmask: process 1:"]
    assert all("class 'dog' is among the training images only" in line for line in lines)


# --- real images

REDUCED = dict(train_samples=600, test_samples=300, steps=30, batch_size=60, levels=2, control_every=2, rewind_steps=(0, 5),
               probe_levels=(1,), limit_levels=(1,), prune_ratios=(0.2,), curvature_samples=60, lanczos_probes=2,
               lanczos_steps=5, seeds=1, barrier_points=3, plane_points=3, perturbation_lengths=(0.0, 1.0))


CIFAR = {"dataset": "imagefolder", "folder": "cifar10-jpeg", "classes": 10}
CHANGES = {"mnist_lenet": {"width": 30}, "cifar10_resnet20": {"width": 4} | CIFAR, "cifar100_resnet18": {"width": 4} | CIFAR,
           "imagenet_resnet50": CIFAR | {"image_size": 32, "train_samples": 100, "test_samples": 40, "batch_size": 20, "steps": 4,
                                         "rewind_steps": (0, 1), "train_measured": 20, "curvature_samples": 10, "lanczos_steps": 1}}


@pytest.mark.parametrize("preset, shape, mean", [
    ("mnist_lenet", (60_000, 1, 28, 28), [0.1307]), ("cifar10_resnet20", (50_000, 3, 32, 32), [0.4914, 0.4822, 0.4465])])
def test_real_images_are_those_of_the_data_set(real_images, store, monkeypatch, preset, shape, mean):
    monkeypatch.setenv("UNMASK_DATA", str(real_images))
    changes = {} if preset == "mnist_lenet" else {"dataset": "imagefolder", "folder": "cifar10-jpeg"}
    split, test = data.load(experiment(preset, **changes), store)
    assert split.x.shape == shape and len(test.y) == 10_000
    assert (split.mean.flatten() / 255).tolist() == pytest.approx(mean, abs=1e-3)
    if preset == "mnist_lenet":
        assert split.y[:5].tolist() == [5, 0, 4, 1, 9]
    else:
        assert split.y.bincount().tolist() == [5000] * 10


NOTEBOOKS = sorted(ROOT.glob("notebooks/0[1-6]*.ipynb"))


@pytest.mark.parametrize("preset, notebook", [
    (preset, notebook) for preset in CHANGES for notebook in NOTEBOOKS
    # with the 25 million weights of ResNet-50 all six would take as long as all other tests
    if preset != "imagenet_resnet50" or notebook.stem.startswith(("02", "03"))], ids=lambda value: getattr(value, "stem", value))
def test_notebooks_run_unchanged_on_real_images(real_images, tmp_path_factory, monkeypatch, preset, notebook):
    from unmask.cli import main

    folder = tmp_path_factory.getbasetemp() / preset  # the notebooks share what they train
    monkeypatch.setenv("UNMASK_DATA", str(real_images))
    monkeypatch.setenv("UNMASK_STORE", str(folder))
    monkeypatch.chdir(ROOT)
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in (REDUCED | CHANGES[preset]).items()}
    shared = {name: settings.pop(name) for name in ("rewind_steps", "levels", "seeds")}
    arguments = [part for name, value in (shared | {"settings": settings}).items() for part in ("-p", name, repr(value))]
    assert main(["execute", str(notebook), "-p", "preset", preset, *arguments, "--output", str(folder / "out")]) == 0
