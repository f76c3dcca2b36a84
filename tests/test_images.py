"""Image data sets and networks: against torchvision and independent constructions, and one line
for every bad file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import textbook
import torch
import torch.nn.functional as F
from PIL import Image

from unmask import data, networks, processes, pruning, tables
from unmask import train as training
from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.experiments import DATASETS, experiment
from unmask.lab import Lab
from unmask.store import Store
from unmask.train import Start, batches, evaluate, generator, is_finite, learning_rate, train

ROOT = Path(__file__).resolve().parent.parent


PETS = dict(
    dataset="imagefolder",
    folder="pets",
    image_size=8,
    classes=2,
    train_samples=60,
    test_samples=20,
    augmentation="crop-flip",
    network="resnet20",
    width=4,
    steps=12,
    batch_size=20,
    lr=0.05,
    curvature_samples=20,
    rewind_steps=(0, 2),
    levels=2,
    probe_levels=(1,),
    limit_levels=(1,),
    control_every=1,
    momentum=0.9,
)


def pets(**changes):
    return experiment("smoke", **PETS | changes)


def typed(**changes):
    """Settings as arguments of `unmask run`."""
    settings = PETS | changes
    words = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in settings.items()
    }
    return [part for name, word in words.items() for part in ("--set", f"{name}={word}")]


def starts_of(e, keep):
    """A replicate for each number of weights to keep."""
    dense, starts = pruning.dense_mask(networks.build(e)), []
    for i, count in enumerate(keep):
        mask = pruning.prune_random(dense, count, generator("mask", i))
        starts.append(Start(networks.initial_state(e, generator(i)), mask, ("order", i)))
    return starts


# Networks


@pytest.mark.parametrize(
    "preset, parameters, prunable",
    [
        ("mnist_lenet", 266_610, 265_200),
        ("cifar10_resnet20", 272_474, 270_896),
        ("cifar100_resnet18", 11_220_132, 11_210_432),
        ("imagenet_resnet50", 25_557_032, 25_502_912),
    ],
)
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
    shapes = [theirs.state_dict()[name].shape for name in names]
    assert [tensor.shape for tensor in state.values()] == shapes
    theirs.load_state_dict(dict(zip(names, state.values())), strict=False)
    x = torch.randn(4, e.channels, e.image_size, e.image_size, generator=generator("x")).double()
    results = []
    for network in (ours, theirs):
        network.double().train(training)
        logits = network(x)
        loss = F.cross_entropy(logits, torch.arange(4))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        results.append((logits, torch.cat([gradient.flatten() for gradient in gradients])))
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
def test_replicates_get_to_the_bit_what_each_gets_alone(tree, store, network, width):
    e = pets(network=network, width=width)
    split = data.load(e, store).train
    starts = starts_of(e, (400, 900, 1800))
    for start, found in zip(starts, train(e, split, starts, start=2)):
        (alone,) = train(e, split, [start], start=2)
        for name, tensor in alone.states[e.steps].items():
            assert torch.equal(found.states[e.steps][name], tensor), name


def test_lenet_trains_like_torch_sgd(tree, store):
    e = pets(network="lenet-300-100", width=30, momentum=0.0, weight_decay=0.0, augmentation="none")
    split = data.load(e, store).train
    state = networks.initial_state(e, generator("init"))
    mask = pruning.prune_random(pruning.dense_mask(networks.build(e)), 800, generator("mask"))
    assert "output.weight" not in mask
    ours = train(e, split, [Start(state, mask, ("order",))])[0].states[e.steps]
    projected = pruning.apply(mask, state).items()
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in projected}
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
    e, epoch = experiment("imagenet_resnet50"), 1251
    steps = 0, 5 * epoch - 1, 5 * epoch, 30 * epoch - 1, 30 * epoch, 80 * epoch
    expected = 0.4 / (5 * epoch), 0.4, 0.4, 0.4, 0.04, 0.0004
    assert [learning_rate(e, step) for step in steps] == pytest.approx(expected)


# Augmentation and normalisation


def test_crop_and_flip_is_torchvision_s_crop_and_flip_of_each_image():
    from torchvision.transforms.v2 import functional as tv

    x = torch.randint(0, 256, (200, 3, 16, 12), dtype=torch.uint8, generator=generator("x"))
    draws = torch.randint(2**62, (200,), generator=generator("draws"))
    found = data.crop_and_flip(x, draws)
    seen = set()
    for image, draw, ours in zip(x, draws.tolist(), found):
        top, left, mirrored = draw % 9, draw // 9 % 9, draw // 81 % 2
        expected = tv.crop(tv.pad(image, [4]), top, left, 16, 12)
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
            assert torch.equal(x[:, 3 * i : 3 * i + 3], alone[i][step][0])
            assert torch.equal(y[20 * i : 20 * i + 20], alone[i][step][1])
    first, second = (torch.cat([x for x, _ in alone[0][at : at + 3]]) for at in (0, 3))
    # the same images, moved differently
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    late = list(batches(e, split, [("one",)], 4, 6))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone[0][4:], late))


@pytest.mark.parametrize("dataset, channels", [("mnist", 1), ("cifar10", 3)])
def test_convolutions_work_channels_last_whatever_the_channels(dataset, channels):
    """The layout in which they are fast, on a CPU and a GPU; it must be told by strides where there
    is one channel."""
    size = DATASETS[dataset].size
    e = pets(dataset=dataset, folder="", image_size=size, augmentation="none")
    pixels = torch.zeros(40, channels, size, size, dtype=torch.uint8)
    split = data.Split(pixels, torch.zeros(40).long(), *torch.ones(2, 1, channels, 1, 1))
    network = networks.build(e)
    for x in (next(split.chunks(20))[0], next(batches(e, split, [("order",)], 0, 1))[0]):
        assert network.stem(x).stride(1) == 1


def test_a_folder_and_torchvision_s_data_set_take_the_same_path_from_bytes_on(
    tree, store, monkeypatch
):
    import torchvision

    for path in tree.rglob("*.png"):
        Image.open(path).resize((32, 32)).save(path)
    folder = data.load(pets(image_size=32), store)

    class Same:  # as torchvision keeps them: (samples, height, width, channels), a list of labels
        def __init__(self, root, train, download):
            split = folder.train if train else folder.test
            self.data, self.targets = split.x.permute(0, 2, 3, 1).numpy(), split.y.tolist()

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Same)
    theirs = data.load(pets(dataset="cifar10", folder="", image_size=32), store)
    for one, other in zip(folder, theirs):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4]))
        assert one.augmentation == other.augmentation


# Folders of images


def test_a_tree_is_read_whole_mixed_and_stored(tree, store, monkeypatch):
    e = pets()
    train_split, test_split = data.load(e, store)
    assert train_split.x.shape == (60, 3, 8, 8) and test_split.x.shape == (20, 3, 8, 8)
    assert torch.equal(train_split.x.float().mean((1, 2, 3)) > 100, train_split.y == 1)
    assert 0 < train_split.y[:20].sum() < 20  # not class by class
    monkeypatch.setattr(data, "_decoded", lambda *_: pytest.fail("decoded again"))
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
        case "no folder":
            (tree / "train/cow").symlink_to("nowhere")
        case "few":
            for path in sorted(cat.iterdir())[1:]:
                path.unlink()
        case "pipe":
            os.mkfifo(cat / "99.png")
        case "dangling":
            (tree / "train/dog/zz.png").symlink_to("nowhere.png")


@pytest.mark.parametrize(
    "how, changes, said",
    [
        ("damaged", {}, "03.png: cannot be read"),
        ("damaged", {"augmentation": "resized-crop"}, "03.png: cannot be read"),
        ("size", {}, "03.png: is 9 x 8 pixels, not 8 x 8; set image_size"),
        ("empty", {}, "train': class 'cat' has no images"),
        ("deep", {}, "more than 8 bits a pixel"),
        ("flat", {}, "pets/train': has no folders"),
        ("differ", {}, "folder='pets': class 'cat' is among the training images only"),
        ("no test", {}, "pets/test'"),
        ("", {"classes": 3}, "classes=3: pets has 2"),
        ("", {"train_samples": 61}, "train_samples=61: pets has 60, and 'all' takes all"),
        ("", {"test_samples": 21}, "test_samples=21: pets has 20, and 'all' takes all"),
        (
            "",
            {"train_samples": 0, "batch_size": 61},
            "batch_size=61: must be at most 60, the training samples",
        ),
        ("", {"folder": "pests"}, "folder='pests': there is no folder"),
        ("dangling", {}, "dog/zz.png: cannot be read (No such file or directory)"),
        ("pipe", {}, "cat/99.png: is not a file"),
        ("no folder", {}, "pets/train': 'cow' is a link that leads nowhere"),
        (
            "few",
            {"train_samples": 20, "data_seed": 0},
            "20 of 31 images have none of 'cat'; take more, or all",
        ),
    ],
)
def test_a_bad_tree_is_said_in_one_line(tree, store, how, changes, said):
    change(tree, how)
    with pytest.raises(UnmaskError) as caught:
        e = pets(**changes)
        list(batches(e, data.load(e, store).train, [("order",)], 0, 3))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_all_that_own_images_do_not_meet_is_said_at_once(tree, store):
    for path in tree.rglob("*.png"):
        Image.open(path).resize((16, 16)).save(path)
    with pytest.raises(UnmaskError) as caught:
        data.load(experiment("cifar10_resnet20", dataset="imagefolder", folder="pets"), store)
    size, *limits = str(caught.value).split("; ")
    assert size.startswith("image ") and size.endswith(".png: is 16 x 16 pixels, not 32 x 32")
    assert limits == [
        "set image_size, or augmentation=resized-crop, which scales all to one size",
        "classes=10: pets has 2",
        "train_samples=50000: pets has 60, and 'all' takes all",
        "test_samples=10000: pets has 20, and 'all' takes all",
        "batch_size=128: must be at most 60, the training samples",
        "curvature_samples=1000: must be at most 60, the training samples",
    ]
    assert list(store.names()) == []


@pytest.mark.parametrize("augmentation", ["crop-flip", "resized-crop"])
def test_0_and_all_take_all_images(tree, store, monkeypatch, augmentation):
    asked = []
    monkeypatch.setenv("UNMASK_STORE", str(store.root))
    monkeypatch.setattr(tables, "compute", lambda lab, *_: asked.append(lab))
    monkeypatch.setattr("unmask.tables.complete", lambda lab, names: names)
    samples = dict(train_samples="all", test_samples="all")
    arguments = typed(augmentation=augmentation, **samples)
    assert main(["run", "smoke", *arguments, "--tables", "levels, pairs"]) == 0
    (lab,) = asked
    chosen = pets(augmentation=augmentation, **samples)
    assert lab.experiment == chosen == chosen.but(train_samples=0, test_samples=0)
    assert (lab.experiment.train_samples, lab.experiment.test_samples) == (0, 0)
    for found, counted in zip(lab.data, data.load(pets(augmentation=augmentation), store)):
        assert torch.equal(found.y, counted.y)
        for ours, theirs in zip(found.chunks(60), counted.chunks(60)):
            assert torch.equal(ours[0], theirs[0])
    assert [len(split.y) for split in lab.data] == [60, 20]


def test_an_unlabelled_test_folder_and_hidden_files_are_passed_over(tree, store, capsys):
    (tree / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tree / "test/1.png")
    (tree / "train/.ipynb_checkpoints").mkdir()
    (tree / "train/cat/._00.png").write_bytes(b"resource fork")
    (tree / "train/cat/notes.txt").write_text("good cats")
    (tree / "train/cat/00.png").rename(tree / "train/cat/00.PNG")
    (tree / "train/cat/kittens").mkdir()
    Image.new("RGB", (8, 8)).save(tree / "train/cat/kittens/1.png")
    said = "unmask: folder='pets': 2 files are not FOLDER/train/CLASS/IMAGE with the ending of an "
    for expected in (said, ""):  # once
        assert len(data.load(pets(), store).train.y) == 60
        assert capsys.readouterr().err.startswith(expected) and bool(expected) == bool(said)
        said = ""


def test_a_name_that_is_not_utf_8_is_a_name(tree, store):
    image = os.fsencode(tree / "train/cat") + b"/gr\xfc\xdfe.png"
    os.rename(tree / "train/cat/00.png", image)
    for augmentation in ("crop-flip", "resized-crop"):
        e = pets(augmentation=augmentation)
        assert len(list(batches(e, data.load(e, store).train, [("order",)], 0, 3))) == 3


def test_a_channel_that_never_varies_is_zero(tree, store):
    for path in tree.rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[..., 2] = 7
        Image.fromarray(pixels).save(path)
    e = pets()
    for split in data.load(e, store):
        (x, _), *_ = split.chunks(20)
        assert x.isfinite().all() and not x[:, 2].any() and x[:, :2].std() > 0.5
    states = train(e, data.load(e, store).train, starts_of(e, (1000,)))[0].states
    assert is_finite(states[e.steps])


def test_a_last_image_goes_with_those_before_it():
    counts = {0: [], 1: [1], 20: [20], 21: [21], 22: [20, 2], 40: [20, 20], 41: [20, 21]}
    for count, expected in counts.items():
        split = data.Split(torch.zeros(count, 1, 4), torch.zeros(count))
        assert [len(y) for _, y in split.chunks(20)] == expected
    stream = data.Stream([], torch.arange(11), 8)
    stream._load = list
    assert [len(chunk) for chunk in stream.chunks(5)] == [5, 6]
    assert [len(chunk) for chunk in stream.chunks(5, 1, 2)] == [5]


def test_to_normalise_images_takes_little_more_memory_than_they_do():
    """Of 60 MB in three channels: each as floats, and one copy more to square them in."""
    script = """if True:
        import resource, torch
        from unmask import data, experiment
        x = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8)
        split, used = data.Split(x, torch.zeros(len(x)).long()), resource.getrusage
        before = used(resource.RUSAGE_SELF).ru_maxrss
        data._normalised(experiment("cifar10_resnet20"), split, split)
        print((used(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / x.numel())"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert float(found.stdout) < 4, found.stderr


def a_result(e, store):
    store.put_tensors(f"{e.recipe}/seed0/dense", {"weight": torch.zeros(1)})


def test_other_images_are_refused_where_there_are_results_of_the_first(tree, store):
    data.load(pets(), store)
    Image.new("RGB", (8, 8)).save(tree / "train/cat/02.png")
    data.load(pets(), store)  # one was mended before anything was computed
    a_result(pets(), store)
    Image.new("RGB", (8, 8)).save(tree / "train/cat/03.png")
    with pytest.raises(UnmaskError, match="^pets: its data are not those of the results in"):
        data.load(pets(), store)


def test_a_folder_has_one_name(tree):
    names = str(tree), f"{tree}/", f"{tree.parent}/./pets", f"{tree}/train/.."
    assert len({pets(folder=name).recipe for name in names}) == 1


@pytest.mark.parametrize("changes", [{}, {"augmentation": "resized-crop", "image_size": 16}])
def test_a_copy_of_the_images_is_as_good(tree, store, changes):
    data.load(pets(**changes), store)
    for image in tree.rglob("*.png"):
        os.utime(image, (0, 0))
    data.load(pets(**changes), store)


def test_an_image_of_the_same_size_on_disk_is_still_another(tree, store):
    e, image = pets(train_samples=61), tree / "train/cat/03.bmp"
    for date, color in enumerate(("black", "white")):
        Image.new("RGB", (8, 8), color).save(image)
        os.utime(image, (date, date))  # however coarse the file system's clock
        if color == "black":
            data.load(e, store)
            a_result(e, store)
    with pytest.raises(UnmaskError, match="^pets: its data are not those of the results in"):
        data.load(e, store)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"folder": ""}, "folder='': must be the folder of the images"),
        (
            {"dataset": "mnist", "folder": "", "image_size": 32},
            "image_size=32: must be 28, the size of mnist",
        ),
        ({"network": "resnet1d"}, "network='resnet1d': must be one of lenet-300-100, resnet8"),
        (
            {"dataset": "cifar10", "folder": "", "augmentation": "resized-crop"},
            "image_size=8: must be 32, the size of cifar10; "
            "augmentation='resized-crop': must be one of none, crop-flip for cifar10",
        ),
        ({"network": "resnet50"}, "width=4: must be 64"),
        (
            {"network": "resnet8-strided", "image_size": 1, "augmentation": "resized-crop"},
            "image_size=1: must be 2 or more for resnet8-strided",
        ),
        ({"precision": "fp8"}, "precision='fp8': must be one of float32, tf32, bf16"),
        ({"warmup": 1.0}, "warmup=1.0: must be at least 0 and below 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_said(changes, said):
    with pytest.raises(UnmaskError) as caught:
        pets(**changes)
    assert said in str(caught.value)


def test_without_network_and_files_it_is_said_where_they_belong(tmp_path, monkeypatch, store):
    import torchvision

    def unreachable(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setenv("UNMASK_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", unreachable)
    with pytest.raises(UnmaskError) as caught:
        data.load(experiment("mnist_lenet"), store)
    assert "dataset='mnist': not found whole and not downloaded" in str(caught.value)
    assert "MNIST/raw, or set UNMASK_DATA" in str(caught.value) and "\n" not in str(caught.value)


# Streams


def test_a_stream_is_the_same_however_it_is_read(tree, store):
    e = pets(augmentation="resized-crop", image_size=16)
    split = data.load(e, store).train
    whole = list(batches(e, split, [("order",)], 0, 6))
    late = list(batches(e, split, [("order",)], 4, 6))
    assert whole[0][0].shape == (20, 3, 16, 16)
    for a, b in zip(whole[4:], late):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(whole[0][0], whole[3][0])

    def read(split, *chunks):
        return torch.cat([x for x, _ in split.chunks(*chunks)])

    plain = read(split, 17)
    assert torch.equal(plain, read(split, 60)) and torch.equal(plain[1::3], read(split, 5, 1, 3))
    assert torch.equal(plain[:9], split.as_inputs(9).x)
    assert torch.equal(plain[:9], read(split.take(9), 60))


def test_workers_decode_the_same_and_say_what_is_wrong_in_one_line(tree, store):
    split = data.load(pets(augmentation="resized-crop", image_size=16), store).train
    # any device but the CPU has workers; what is sent to this one is counted, not kept
    workers = split.to(torch.device("meta"))
    assert sum(len(y) for _, y in workers.chunks(7)) == 60
    change(tree, "damaged")
    with pytest.raises(UnmaskError) as caught:
        list(workers.chunks(7))
    assert "03.png: cannot be read" in str(caught.value) and "\n" not in str(caught.value)


def test_resnet50_trains_and_is_pruned_on_a_stream(tree, store):
    few = dict(steps=3, rewind_steps=(0, 1), batch_size=10, train_samples=30, test_samples=10)
    few |= dict(levels=1, warmup=0.5, network="resnet50", width=64)
    lab = Lab(pets(augmentation="resized-crop", image_size=32, **few), store)
    ticket = lab.level(0, 1, 1)
    assert pruning.survivors(ticket.mask) == lab.survivors(1)
    assert all((ticket.state[name][~kept] == 0).all() for name, kept in ticket.mask.items())
    assert 0 <= lab.evaluate(ticket.state).error <= 1
    networks.load_state(lab.network, ticket.state)
    assert lab.evaluate(ticket.state) == evaluate(lab.network, lab.data.test)


# Long runs


def same_at(step, ours, theirs):
    """Are the states of all replicates the same, to the bit?"""
    return all(
        torch.equal(tensor, other.states[step][name])
        for one, other in zip(ours, theirs)
        for name, tensor in one.states[step].items()
    )


def below(start, state):
    """A number to observe."""
    return pruning.share_below(state, start.mask, 0.1)


@pytest.mark.parametrize("network, width", [("resnet20", 4), ("lenet-300-100", 30)])
def test_an_interrupted_training_is_resumed_to_the_same_bits(
    tree, store, monkeypatch, network, width
):
    precision = "bf16" if network == "resnet20" else "float32"
    e = pets(network=network, width=width, precision=precision, steps=20)
    split, starts = data.load(e, store).train, starts_of(e, [1800, 900])
    options = dict(start=7, snapshots=(9, 20), observe=below, observed_at=(8, 10, 15))
    expected = train(e, split, starts, **options)

    monkeypatch.setattr(training.Unfinished, "SECONDS", 0)
    asked = []

    def stopping(experiment, step):
        asked.append(step)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return learning_rate(experiment, step)

    monkeypatch.setattr(training, "learning_rate", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(e, split, starts, store=store, **options)
    # in another order, as a store may give it
    read = [start._replace(state=dict(reversed(start.state.items()))) for start in starts]
    found = train(e, split, read, store=store, **options)
    assert asked == [7, 8, 9, 10, 11, 12, *range(12, 20)]
    assert same_at(9, expected, found) and same_at(20, expected, found)
    # what is stored of it has the order in which it was observed
    assert [list(one.observed.items()) for one in found] == [
        list(one.observed.items()) for one in expected
    ]
    # finished, but what comes of it is not stored yet
    again = train(e, split, starts, store=store, **options)
    assert len(asked) == 6 + 8 and same_at(20, expected, again)
    store.finish()
    assert not [name for name in store.names() if "unfinished" in name]


@pytest.mark.parametrize("torn, again", [("a", []), ("b", [11])])
def test_a_kept_training_that_was_torn_leaves_the_other(
    tree, store, monkeypatch, capsys, torn, again
):
    """Of 12 steps, each kept, the last is in b, and the one before in a."""
    e, asked = pets(network="lenet-300-100", width=30), []
    split, starts = data.load(e, store).train, starts_of(e, [1800])
    monkeypatch.setattr(training.Unfinished, "SECONDS", 0)
    expected = train(e, split, starts, store=store)
    names = [name for name in store.names() if "unfinished" in name]
    assert [name.rpartition("-")[2] for name in names] == ["a.safetensors", "b.safetensors"]
    (store.root / names["ab".index(torn)]).write_bytes(b"torn")

    def counted(experiment, step):
        asked.append(step)
        return learning_rate(experiment, step)

    monkeypatch.setattr(training, "learning_rate", counted)
    assert same_at(12, expected, train(e, split, starts, store=store))
    assert asked == again and "is damaged" in capsys.readouterr().err


# Several processes


def test_signals_are_not_shared_among_processes(tiny, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    split = data.Split(torch.zeros(100, 1, 40), torch.zeros(100, dtype=torch.long))
    starts = starts_of(tiny, [1000])
    with pytest.raises(UnmaskError, match="'resnet1d-strided': is trained by one process"):
        train(tiny, split, starts)
    with pytest.raises(UnmaskError, match="batch_size=51: must be a multiple of the 2 processes"):
        train(tiny.but(batch_size=51), split, starts)


def launched(count, arguments, store):
    """`unmask run smoke`, by as many processes of torchrun; 1: without it."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*(launch if count > 1 else ()), "-m", "unmask", "run", "smoke", *arguments]
    environment = os.environ | {"UNMASK_STORE": str(store), "OMP_NUM_THREADS": "1"}
    options = dict(env=environment, capture_output=True, text=True, timeout=600)
    return subprocess.run([sys.executable, *command], **options)


def test_two_processes_train_what_one_does(tree, tmp_path):
    """`torchrun` on two CPU processes: the same tables as one process, but for rounding. Batch norm
    sees whole batches."""
    few = dict(steps=6, seeds=1, levels=1, probe_levels=0, limit_levels=0, plane_points=3)
    few |= dict(perturbation_lengths=(0, 1), prune_ratios=0.5, lanczos_steps=2)
    arguments = typed(augmentation="resized-crop", image_size=16, **few)
    for count in (1, 2):
        asked = "--jobs", "1", "--tables", "levels,controls,references"
        done = launched(count, [*arguments, *asked], tmp_path / f"store{count}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("unmask: what was asked for") == 1
    one, two = (Store(tmp_path / f"store{count}") for count in (1, 2))
    assert list(one.names()) == list(two.names())
    levels = [next(store.root.glob("*/seed0/rewind00000/levels-*.csv")) for store in (one, two)]
    first, second = (pd.read_csv(path).set_index("level").loc[0] for path in levels)
    assert second.train_loss == pytest.approx(first.train_loss, abs=1e-5)
    assert second.test_error == pytest.approx(first.test_error, abs=1 / 20)
    names = (name.removesuffix(".safetensors") for name in one.names())
    trained = [name for name in names if name.endswith(("level01", "dense"))]
    assert len(trained) > 5
    for name in trained:
        # sparse networks of this width have channels that are almost constant, which batch norm
        # scales up
        tolerance = 1e-5 if name.endswith("dense") else 0.1
        close = dict(rtol=tolerance, atol=tolerance)
        for key, tensor in one.tensors(name).items():
            found = two.tensors(name)[key]
            if key.startswith("mask:"):
                assert torch.equal(found, tensor), (name, key)
            else:
                torch.testing.assert_close(found, tensor, **close, msg=f"{name} {key}")


def test_bad_images_end_all_processes_in_one_line_each(tree, tmp_path):
    shutil.rmtree(tree / "val/dog")
    done = launched(2, typed(), tmp_path / "store")
    assert done.returncode != 0
    # torchrun may end one process before it speaks, when the other has failed
    lines = [line for line in done.stderr.splitlines() if line.startswith("unmask: process ")]
    assert 1 <= len(lines) <= 2 and len({line[:18] for line in lines}) == len(lines)
    assert {line[:18] for line in lines} <= {"unmask: process 0:", "unmask: process 1:"}
    assert all("class 'dog' is among the training images only" in line for line in lines)


# Real images

REDUCED = dict(
    train_samples=240,
    test_samples=100,
    steps=12,
    batch_size=40,
    levels=2,
    control_every=2,
    rewind_steps=(0, 5),
    probe_levels=(1,),
    limit_levels=(1,),
    prune_ratios=(0.2,),
    curvature_samples=40,
    lanczos_probes=2,
    lanczos_steps=5,
    seeds=1,
    barrier_points=3,
    plane_points=3,
    perturbation_lengths=(0.0, 1.0),
)
CIFAR = dict(dataset="imagefolder", folder="cifar10-jpeg", classes=10)
CHANGES = {
    "mnist_lenet": dict(width=30),
    "cifar10_resnet8": CIFAR | dict(width=8),
    "cifar100_resnet18": CIFAR | dict(width=4),
}


@pytest.mark.parametrize(
    "preset, shape, mean",
    [
        ("mnist_lenet", (60_000, 1, 28, 28), [0.1307]),
        ("cifar10_resnet8", (50_000, 3, 32, 32), [0.4914, 0.4822, 0.4465]),
    ],
)
def test_real_images_are_those_of_the_data_set(
    real_images, store, monkeypatch, preset, shape, mean
):
    monkeypatch.setenv("UNMASK_DATA", str(real_images))
    split, test = data.load(experiment(preset, **CHANGES[preset]), store)
    assert split.x.shape == shape and len(test.y) == 10_000
    assert (split.mean.flatten() / 255).tolist() == pytest.approx(mean, abs=1e-3)
    if preset == "mnist_lenet":
        assert split.y[:5].tolist() == [5, 0, 4, 1, 9]
    else:
        assert split.y.bincount().tolist() == [5000] * 10


NOTEBOOKS = sorted(ROOT.glob("notebooks/0[1-6]*.ipynb"))


# all six on one preset; the others differ by their networks, on which one has much to say
@pytest.mark.parametrize(
    "preset, notebook",
    [
        pytest.param(preset, notebook, marks=pytest.mark.xdist_group(preset))
        for preset in CHANGES
        for notebook in NOTEBOOKS
        if preset == "cifar10_resnet8" or notebook.stem.startswith("02")
    ],
    ids=lambda value: getattr(value, "stem", value),
)
def test_notebooks_run_unchanged_on_real_images(
    real_images, tmp_path_factory, monkeypatch, preset, notebook
):
    folder = tmp_path_factory.getbasetemp() / preset  # the notebooks share what they train
    monkeypatch.setenv("UNMASK_DATA", str(real_images))
    monkeypatch.setenv("UNMASK_STORE", str(folder))
    monkeypatch.chdir(ROOT)
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (REDUCED | CHANGES[preset]).items()
    }
    shared = {name: settings.pop(name) for name in ("rewind_steps", "levels", "seeds")}
    # in the kernel itself: to start workers takes longer than all of it
    parameters = {"preset": preset, "settings": settings, "jobs": 1} | shared
    arguments = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    assert main(["execute", str(notebook), *arguments, "--output", str(folder / "out")]) == 0
