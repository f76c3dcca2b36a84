"""Data sets: small ones as tensors on a device, big ones as a stream of decoded images."""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from . import processes
from .errors import UnmaskError
from .experiments import Experiment
from .store import Store, default_root

PADDING = 4  # pixels around an image, of which a random crop has the size of the image (He et al. 2016)
# Mean and standard deviation of each channel, for images that are not all read beforehand (those of ImageNet).
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Batch(NamedTuple):
    """What to read: samples (replicates, batch), and beside each a random number that decides how it is augmented."""

    samples: torch.Tensor
    draws: torch.Tensor


class Split(NamedTuple):
    """Samples in memory. `x`: float32 signals (samples, 1, length), or uint8 images (samples, channels, size, size).
    `y`: labels, (samples,) int64. `mean`, `std`: of the training images' channels, in units of `x`, (channels, 1, 1);
    signals have none.
    """

    x: torch.Tensor
    y: torch.Tensor
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    augmentation: str = "none"

    @property
    def device(self) -> torch.device:
        return self.x.device

    def to(self, device: torch.device) -> Split:
        return Split(*(part.to(device) if torch.is_tensor(part) else part for part in self))

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Some of `x` as a network takes it: images normalised, their channels last in memory."""
        if self.mean is None:
            return x
        # `to`, for `contiguous` leaves one channel as it is, and convolutions then take it for channels-first
        return x.float().sub_(self.mean).div_(self.std).to(memory_format=torch.channels_last)

    def chunks(self, size: int, first: int = 0, step: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every `step`th sample from `first` on, at most `size` at a time: inputs and labels."""
        x, y = self.x[first::step], self.y[first::step]
        return ((self.inputs(some), labels) for some, labels in zip(x.split(size), y.split(size)))

    def head(self, count: int) -> Split:
        """A split of the first `count` samples, as they are stored."""
        return self._replace(x=self.x[:count], y=self.y[:count])

    def first(self, count: int) -> Split:
        """The first `count` samples, as inputs."""
        return Split(self.inputs(self.x[:count]), self.y[:count])

    def read(self, batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs (batch, replicates * channels, ...) and labels (replicates * batch) of each batch, augmented."""
        for samples, draws in batches:
            samples = samples.to(self.device)
            x = self.x.index_select(0, samples.flatten())  # copies rows: much faster than x[...] for bytes
            if self.augmentation == "crop-flip":
                x = crop_and_flip(x, draws.flatten().to(self.device))
            x = self.inputs(x).unflatten(0, samples.shape).transpose(0, 1).flatten(1, 2)
            if self.mean is not None:
                x = x.to(memory_format=torch.channels_last)
            yield x, self.y[samples].flatten()


class Data(NamedTuple):
    train: Split | Stream
    test: Split | Stream


def crop_and_flip(x: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Each image (n, channels, size, size) shifted by up to `PADDING` pixels each way, black where it leaves an edge
    behind, and mirrored or not: all equally likely, as its draw (n,) says."""
    size, shifts = x.shape[-1], 2 * PADDING + 1
    padded = torch.nn.functional.pad(x, (PADDING,) * 4)
    rows = (draws % shifts)[:, None] + torch.arange(size, device=x.device)
    columns = (draws // shifts % shifts)[:, None] + torch.arange(size, device=x.device)
    mirrored = (draws // shifts ** 2 % 2).bool()[:, None]
    columns = torch.where(mirrored, columns.flip(1), columns)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    # indices around a slice put its dimension last: (n, size, size, channels)
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def root() -> Path:
    """Where data sets are: `$UNMASK_DATA`, else a folder `unmask-data` beside the default store."""
    return Path(os.environ.get("UNMASK_DATA") or default_root().parent / "unmask-data").expanduser().absolute()


def load(experiment: Experiment, store: Store) -> Data:
    """Train and test split of the experiment's data set, on the CPU.

    * "mnist1d" is generated once and then read from the store.
    * "mnist", "cifar10", "cifar100" are torchvision's, downloaded to `root()` on first use.
    * "imagefolder" is a tree with a folder for each class in `train/` and in `test/` or `val/`; `experiment.folder` is
      its path, absolute or from `root()`. Small images are decoded once and then read from the store.

    Raises:
        UnmaskError: the data set is not there and cannot be downloaded, or is not as the experiment says; an image
            that cannot be read or has another size, a class without images or in one split only.
    """
    found = processes.first(lambda: _load(experiment, store))  # downloads and decodes, the others find what it leaves
    return found if processes.rank() == 0 else _load(experiment, store)


def _load(e: Experiment, store: Store) -> Data:
    if e.dataset == "mnist1d":
        name = f"data/{e.dataset}-{e.digest('dataset', 'train_samples', 'test_samples', 'data_seed')}"
        tensors = store.tensors(name)
        if tensors is None:
            tensors = _mnist1d(e.train_samples, e.test_samples, e.data_seed)
            store.put_tensors(name, tensors, wait=False)
        return Data(*(Split(tensors[f"{split}.x"], tensors[f"{split}.y"]) for split in ("train", "test")))
    if e.dataset == "imagefolder":
        return _folder(e, store)
    return _normalised(e, *(_first(e, split, _torchvision(e.dataset, split == "train")) for split in ("train", "test")))


def _normalised(e: Experiment, train: Split, test: Split) -> Data:
    channels = train.x.transpose(0, 1).flatten(1).float()
    mean, std = channels.mean(1).view(-1, 1, 1), channels.std(1).view(-1, 1, 1)
    return Data(train._replace(mean=mean, std=std, augmentation=e.augmentation), test._replace(mean=mean, std=std))


def _first(e: Experiment, split: str, found: Split) -> Split:
    _check_classes(e, int(found.y.max()) + 1)
    return found.head(_wanted(e, f"{split}_samples", len(found.y)))


def _wanted(e: Experiment, field: str, there: int) -> int:
    wanted = getattr(e, field)
    if wanted > there:
        raise UnmaskError(f"{field}={wanted}: {e.folder or e.dataset} has {there}")
    return wanted


def _check_classes(e: Experiment, count: int) -> None:
    if e.classes != count:
        raise UnmaskError(f"classes={e.classes}: {e.folder or e.dataset} has {count}")


def _mnist1d(train: int, test: int, seed: int) -> dict[str, torch.Tensor]:
    """MNIST-1D (Greydanus & Kobak, arXiv:2011.14439) from its own package: 40 points a sample, no download."""
    import numpy as np
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.num_samples, settings.seed = train + test, seed
    # make_dataset seeds the global generators: put them back as they were found
    states = random.getstate(), np.random.get_state()
    try:
        made = make_dataset(settings)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    # split here, not by the package's train_split, which is a rounded share
    x = torch.from_numpy(np.concatenate([made["x"], made["x_test"]])).float().unsqueeze(1)
    y = torch.from_numpy(np.concatenate([made["y"], made["y_test"]])).long()
    return {"train.x": x[:train].clone(), "train.y": y[:train].clone(),
            "test.x": x[train:].clone(), "test.y": y[train:].clone()}


# torchvision's name, and the folder of its files within `root()`
_DOWNLOADS = {"mnist": ("MNIST", "MNIST/raw"), "cifar10": ("CIFAR10", "cifar-10-batches-py"),
              "cifar100": ("CIFAR100", "cifar-100-python")}


def _torchvision(name: str, train: bool) -> Split:
    import torchvision

    kind, folder = _DOWNLOADS[name]
    try:
        found = getattr(torchvision.datasets, kind)(root(), train=train, download=True)
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError) as error:  # torchvision raises all of these
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UnmaskError(f"dataset={name!r}: not found whole and not downloaded ({said}); without a network, put "
                          f"torchvision's files into {root() / folder}, or set UNMASK_DATA to the folder that has "
                          f"{folder}") from error
    x = torch.as_tensor(found.data)
    return Split(x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous(), torch.as_tensor(found.targets))


# Images in folders


class _Tree(NamedTuple):
    """The images of one split: paths, labels (samples,), and what tells these files from others."""

    paths: list[str]
    labels: torch.Tensor
    classes: list[str]
    fingerprint: str


def _folder(e: Experiment, store: Store) -> Data:
    path = root() / Path(e.folder).expanduser()
    if not path.is_dir():
        raise UnmaskError(f"folder={e.folder!r}: there is no folder {path}; give its path, or set UNMASK_DATA")
    # ImageNet comes with a `test` of unlabelled images, in no folders
    test = next((name for name in ("test", "val") if any(map(Path.is_dir, _visible(path / name)))), "test")
    train, test = (_tree(path / name, dated=not e.streamed) for name in ("train", test))
    if odd := sorted(set(train.classes) ^ set(test.classes)):
        there = "training" if odd[0] in train.classes else "test"
        raise UnmaskError(f"folder={e.folder!r}: class {odd[0]!r} is among the {there} images only")
    _check_classes(e, len(train.classes))
    train, test = _drawn(e, "train_samples", train), _drawn(e, "test_samples", test)
    if e.streamed:
        _refuse_other_images(e, store, train.fingerprint + test.fingerprint)
        return Data(Stream(train.paths, train.labels, e.image_size), Stream(test.paths, test.labels, e.image_size))
    name = f"data/images-{e.digest('folder', 'image_size')}-{train.fingerprint}{test.fingerprint}"
    tensors = store.tensors(name)
    if tensors is None:
        tensors = {"train.x": _decoded(train.paths, e.image_size), "train.y": train.labels,
                   "test.x": _decoded(test.paths, e.image_size), "test.y": test.labels}
        store.put_tensors(name, tensors, wait=False)
    _refuse_other_images(e, store, _sha256(*(tensors[part].numpy().tobytes() for part in sorted(tensors))))
    return _normalised(e, *(Split(tensors[f"{split}.x"], tensors[f"{split}.y"]) for split in ("train", "test")))


def _tree(path: Path, dated: bool) -> _Tree:
    """The images in a folder of folders. Files count as the same by name and size and, if `dated`, by date."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not path.is_dir():
        raise UnmaskError(f"folder={str(path)!r}: there is no such folder")
    classes = [folder for folder in _visible(path) if folder.is_dir()]
    if not classes:
        raise UnmaskError(f"folder={str(path)!r}: has no folders, and there must be one for each class")
    images = [[image for image in _visible(folder) if image.suffix.lower() in IMG_EXTENSIONS] for folder in classes]
    if empty := [folder.name for folder, there in zip(classes, images) if not there]:
        raise UnmaskError(f"folder={str(path)!r}: class {empty[0]!r} has no images")
    paths = [image for there in images for image in there]
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(there) for there in images]))
    try:
        stats = [(image, image.stat()) for image in paths]
    except OSError as error:
        raise UnmaskError(f"image {error.filename}: cannot be read ({error.strerror})") from error
    lines = "\n".join(f"{image.relative_to(path)} {stat.st_size} {stat.st_mtime_ns if dated else ''}" for image, stat in stats)
    return _Tree(list(map(str, paths)), labels, [folder.name for folder in classes], _sha256(lines.encode()))


def _visible(path: Path) -> list[Path]:
    """What is in a folder, in order, but for hidden files and folders; nothing if it cannot be read."""
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


def _drawn(e: Experiment, field: str, tree: _Tree) -> _Tree:
    """So many images as the experiment says, in an order that mixes the classes."""
    wanted = _wanted(e, field, len(tree.paths))
    order = torch.randperm(len(tree.paths), generator=torch.Generator().manual_seed(e.data_seed))[:wanted]
    fingerprint = _sha256(f"{tree.fingerprint} {e.data_seed} {wanted}".encode())
    return _Tree([tree.paths[i] for i in order], tree.labels[order], tree.classes, fingerprint)


def _refuse_other_images(e: Experiment, store: Store, fingerprint: str) -> None:
    """Names in the store go by the folder's name: were its images exchanged, old results would count as theirs.

    Of decoded images the pixels tell, so that a copy is as good; of a stream's too many, the names and sizes of files.
    """
    name = f"{e.recipe}/fingerprint"
    known, seen = store.tensors(name), torch.tensor(list(fingerprint.encode()))
    if known is None:
        store.put_tensors(name, {"fingerprint": seen}, wait=False)
    elif not torch.equal(known["fingerprint"], seen):
        raise UnmaskError(f"folder={e.folder!r}: its images are not those of the results in {store.root}; give them "
                          "another folder, or take another store")


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:10]


def _open(path: str):
    """The image at `path`, in color.

    Raises:
        UnmaskError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a pixel, mode {image.mode}")  # which convert would cut off
            return image.convert("RGB")
    except Exception as error:  # Pillow raises almost anything for a damaged file
        said = str(error).partition("\n")[0]
        raise UnmaskError(f"image {path}: cannot be read ({type(error).__name__}: {said})") from error


def _decoded(paths: Sequence[str], size: int) -> torch.Tensor:
    """uint8 images, (samples, 3, size, size)."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    for into, path in zip(images, paths):
        image = _open(path)
        if image.size != (size, size):
            raise UnmaskError(f"image {path}: is {image.size[0]} x {image.size[1]} pixels, not {size} x {size}; set "
                              "image_size, or augmentation=resized-crop, which scales all to one size")
        into.copy_(pil_to_tensor(image))
    return images


class Stream:
    """Images too many for memory, decoded as they are needed by torchvision's transforms; on a GPU, by a DataLoader's
    workers.

    In training a random part of each image, of 8 to 100 % of its area, is scaled to `size` pixels, and mirrored or
    not; otherwise the middle, of an image scaled to 8/7 of `size`, is taken. The usual transforms for ImageNet.
    """

    def __init__(self, paths: list[str], labels: torch.Tensor, size: int, device: torch.device = torch.device("cpu")):
        self.paths, self.y, self.size, self.device = paths, labels, size, device

    def to(self, device: torch.device) -> Stream:
        return Stream(self.paths, self.y, self.size, device)

    def chunks(self, size: int, first: int = 0, step: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        every = torch.arange(first, len(self.y), step)
        return self._load(chunk.tolist() for chunk in every.split(min(size, 250)))

    def head(self, count: int) -> Stream:
        """As `Split.head`."""
        return Stream(self.paths[:count], self.y[:count], self.size, self.device)

    def first(self, count: int) -> Split:
        parts = list(self._load([range(count)]))
        return Split(*(torch.cat(part) for part in zip(*parts)))

    def read(self, batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As `Split.read`, of one replicate (see `train.together`)."""
        return self._load(list(zip(samples[0].tolist(), draws[0].tolist())) for samples, draws in batches)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """One image: as it is, or augmented if there is a draw beside its number."""
        sample, draw = item if isinstance(item, tuple) else (item, None)
        image = _open(self.paths[sample])
        if draw is None:
            return self._transforms[0](image), self.y[sample]
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(draw)
            return self._transforms[1](image), self.y[sample]

    @functools.cached_property
    def _transforms(self):
        from torchvision.transforms import v2

        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
        return (v2.Compose([v2.Resize(round(self.size * 8 / 7)), v2.CenterCrop(self.size), *finish]),
                v2.Compose([v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(), *finish]))

    def _load(self, batches: Iterable[list]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        from torch.utils.data import DataLoader

        workers = 0 if self.device.type == "cpu" else min(8, os.cpu_count() or 1)
        loader = DataLoader(self, batch_sampler=_Once(batches), num_workers=workers, pin_memory=workers > 0)
        try:
            for x, y in loader:
                x = x.to(self.device, non_blocking=True).to(memory_format=torch.channels_last)
                yield x, y.to(self.device, non_blocking=True)
        except UnmaskError as error:  # a worker puts its traceback before it
            raise UnmaskError(str(error).strip().rpartition("UnmaskError: ")[2]) from error


class _Once:
    """A sampler that passes on batches made elsewhere."""

    def __init__(self, batches: Iterable[list]):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)
