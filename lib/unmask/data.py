"""Data sets: small ones as tensors on a device, big ones as a stream of decoded images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import torch

from . import networks, own, processes
from .errors import UnmaskError
from .experiments import Experiment
from .store import TENSORS, Store, default_root, expanded

PADDING = 4  # pixels around an image, from which a random crop is taken (He et al. 2016)

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]  # inputs and labels
# What to read: samples (replicates, batch), and beside each a random number that decides how it is
# augmented.
Batch = tuple[torch.Tensor, torch.Tensor]


class Split(NamedTuple):
    """Samples in memory.

    `x`: float32 signals (samples, 1, length), or uint8 images (samples, channels, size, size).
    `y`: labels, (samples,) int64. `mean`, `std`: of the training images' channels, in units of `x`,
    (channels, 1, 1); signals have none."""

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

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        """Some of `x` as a network takes it: images normalised."""
        return x if self.mean is None else _laid_out(x.float().sub_(self.mean).div_(self.std))

    def chunks(self, size: int, first: int = 0, step: int = 1) -> Batches:
        """Every `step`th sample from `first` on, at most `size` at a time: inputs and labels."""
        x, y = self.x[first::step], self.y[first::step]
        # copies, as a network may change its inputs
        chunks = (self.normalised(chunk.clone()) for chunk in _chunked(x, size))
        return zip(chunks, _chunked(y, size))

    def take(self, count: int) -> Split:
        """A split of the first `count` samples."""
        return self._replace(x=self.x[:count], y=self.y[:count])

    def as_inputs(self, count: int) -> Split:
        """The first `count` samples as a network takes them."""
        return Split(self.normalised(self.x[:count].clone()), self.y[:count])

    def read(self, batches: Iterable[Batch]) -> Batches:
        """Inputs (batch, replicates * channels, ...) and labels (replicates * batch), augmented."""
        for samples, draws in batches:
            x = self.x.index_select(0, samples.flatten())  # much faster than x[...] for bytes
            if self.augmentation == "crop-flip":
                x = crop_and_flip(x, draws.flatten())
            # replicates become groups of channels
            x = self.normalised(x).unflatten(0, samples.shape).transpose(0, 1).flatten(1, 2)
            yield x if self.mean is None else _laid_out(x), self.y[samples].flatten()


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    """Images as the kernels for float32 want them in memory."""
    # not `contiguous`, which leaves one channel as it is, taken for channels-first later
    return x.to(memory_format=networks.layout("float32", x))


def _chunked(samples: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """At most `size` at a time, but for a last one alone, which goes with those before it: batch
    norm takes no statistics of one."""
    if len(samples) == 0:  # fewer than there are processes
        return []
    return samples.tensor_split(tuple(range(size, len(samples) - 1, size)))


class Data(NamedTuple):
    train: Samples
    test: Samples


def crop_and_flip(x: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Each image (n, channels, height, width) shifted by up to `PADDING` pixels each way, black
    where it leaves an edge behind, and mirrored or not: all equally likely, as its draw (n,)
    says."""
    (height, width), shifts = x.shape[-2:], 2 * PADDING + 1
    padded = torch.nn.functional.pad(x, (PADDING,) * 4)
    rows = (draws % shifts)[:, None] + torch.arange(height, device=x.device)
    columns = (draws // shifts % shifts)[:, None] + torch.arange(width, device=x.device)
    mirrored = (draws // shifts**2 % 2).bool()[:, None]
    columns = torch.where(mirrored, columns.flip(1), columns)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    # indices around a slice put its dimension last: (n, height, width, channels)
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def root() -> Path:
    """Where data sets are: `$UNMASK_DATA`, else a folder `unmask-data` beside the default store."""
    return expanded(os.environ.get("UNMASK_DATA") or default_root().parent / "unmask-data")


def load(experiment: Experiment, store: Store) -> Data:
    """Train and test split of the experiment's data set, on the CPU.

    * "mnist1d" is generated once and then read from the store.
    * "mnist", "cifar10", "cifar100" are torchvision's, downloaded to `root()` on first use.
    * `FILE.py:FUNCTION` or `MODULE:FUNCTION` returns inputs and labels for training, then for test,
      or a torch data set for each; uint8 images (samples, channels, height, width) are normalised,
      all else is taken as it is.
    * "imagefolder" is a tree with a folder for each class in `train/` and in `test/` or `val/`;
      `experiment.folder` is its path, absolute or from `root()`. Small images are decoded once and
      then read from the store; as by torchvision, without their transparency and orientation.

    Raises UnmaskError: the data set is not there and cannot be downloaded, or is not as the
    experiment says (all that does not fit is said at once); an image that cannot be read or has
    another size, a class without images or in one split only."""
    with processes.first_alone():  # which downloads and decodes
        if experiment.dataset == "mnist1d":
            fields = "dataset", "train_samples", "test_samples", "data_seed"
            name = f"data/{experiment.dataset}-{experiment.digest(*fields)}"
            return Data(*_stored(store, name, lambda: _mnist1d(experiment)))
        if experiment.dataset == "imagefolder":
            return _folder(experiment, store)
        if own.is_own(experiment.dataset):
            return _own(experiment, store)
        return _torchvision(experiment)


def _stored(store: Store, name: str, make: Callable[[], Iterable[torch.Tensor]]) -> list[Split]:
    """Both splits, from the store if they are there: or else made, inputs and labels for training,
    then for test, and stored."""
    names = "train.x", "train.y", "test.x", "test.y"
    tensors = store.tensors(name)
    if tensors is None:
        tensors = dict(zip(names, make()))
        store.put_tensors(name, tensors, wait=False)
    x, y, test_x, test_y = (tensors[name] for name in names)
    return [Split(x, y), Split(test_x, test_y)]


def _normalised(e: Experiment, train: Split, test: Split) -> Data:
    # channel by channel: as floats, all of them together take four times the data's memory
    channels = (channel.flatten().float() for channel in train.x.unbind(1))
    mean, std = torch.tensor([(x.mean(), x.std()) for x in channels]).T.reshape(2, -1, 1, 1)
    std = torch.where(std > 0, std, 1.0)  # a channel that never varies is zero everywhere
    train = train._replace(mean=mean, std=std, augmentation=e.augmentation)
    return Data(train, test._replace(mean=mean, std=std))


def _counts(e: Experiment, train: int, test: int, classes: int, odd: str = "") -> tuple[int, int]:
    """How many samples of both splits to take, of so many that there are.
    Raises UnmaskError: all that the experiment asks for and that is not there, in one line."""
    source, problems = e.folder or e.dataset, [odd] if odd else []
    if e.classes != classes:
        problems.append(f"classes={e.classes}: {source} has {classes}")
    wanted = ("train_samples", train), ("train_measured", train), ("test_samples", test)
    for name, there in wanted:
        if (asked := getattr(e, name)) > there:
            problems.append(f"{name}={asked}: {source} has {there}, and 'all' takes all")
    least = min(e.train_samples or train, train)
    for name in ("batch_size", "curvature_samples"):
        if (asked := getattr(e, name)) > least:
            problems.append(f"{name}={asked}: must be at most {least}, the training samples")
    if problems:
        raise UnmaskError("; ".join(problems))
    return e.train_samples or train, e.test_samples or test


def _taken(e: Experiment, train: Split, test: Split) -> tuple[Split, Split]:
    """As many samples of both as the experiment asks for."""
    classes = 1 + int(max(train.y.max(), test.y.max()))
    counts = _counts(e, len(train.y), len(test.y), classes)
    for split, count in zip((train, test), counts):
        if left_out := _left_out(split.y, split.y[:count]):
            said = f"the first {count} of {len(split.y)} samples have none of class {min(left_out)}"
            raise UnmaskError(f"{e.dataset}: {said}; mix them, or take more, or 'all'")
    return train.take(counts[0]), test.take(counts[1])


def _left_out(labels: torch.Tensor, taken: torch.Tensor) -> set[int]:
    """The classes of which none is among those taken."""
    return set(labels.unique().tolist()) - set(taken.unique().tolist())


def _mnist1d(e: Experiment) -> list[torch.Tensor]:
    """MNIST-1D (Greydanus & Kobak, arXiv:2011.14439) from its own package: 40 points a sample."""
    import numpy as np
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.num_samples, settings.seed = e.train_samples + e.test_samples, e.data_seed
    with own.global_draws():  # which make_dataset seeds
        made = make_dataset(settings)
    # split here, not by the package's train_split, which is a rounded share
    x = torch.from_numpy(np.concatenate([made["x"], made["x_test"]])).float().unsqueeze(1)
    y = torch.from_numpy(np.concatenate([made["y"], made["y_test"]])).long()
    train = e.train_samples
    return [part.clone() for part in (x[:train], y[:train], x[train:], y[train:])]


def _torchvision(e: Experiment) -> Data:
    import torchvision

    known, splits = e.known_dataset, []
    for train in (True, False):
        try:
            kind = getattr(torchvision.datasets, known.torchvision)
            found = kind(root(), train=train, download=True)
        except (RuntimeError, OSError, EOFError, ValueError, AssertionError) as error:
            # torchvision raises all of these
            raise UnmaskError(
                f"dataset={e.dataset!r}: not found whole and not downloaded "
                f"({own.one_line(error)}); without a network, put torchvision's files into "
                f"{root() / known.files}, or set UNMASK_DATA to the folder that has {known.files}"
            ) from error
        x = torch.as_tensor(found.data)
        x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()
        splits.append(Split(x, torch.as_tensor(found.targets)))
    return _normalised(e, *_taken(e, *splits))


# What a user's function returns


def _own(e: Experiment, store: Store) -> Data:
    """A function's, which is called twice: what differs is not data that processes can share."""
    splits = _returned(e)
    for one, other in zip(splits, _returned(e)):
        if not (torch.equal(one.x, other.x) and torch.equal(one.y, other.y)):
            said = "returns other data when called again; seed what it draws"
            raise UnmaskError(f"dataset={e.dataset!r}: {said}")
    train, test = _taken(e, *splits)
    _refuse_other_images(e, store, _sha256(*train[:2], *test[:2]))
    if train.x.dtype == torch.uint8:
        return _normalised(e, train, test)
    if e.augmentation != "none":
        raise UnmaskError(f"augmentation={e.augmentation!r}: of bytes only; {e.dataset} has floats")
    return Data(train, test)


def _returned(e: Experiment) -> list[Split]:
    """Inputs and labels for training and for test, or a torch data set of pairs for each.
    Raises UnmaskError: they are not."""

    def refuse(said: str):
        raise UnmaskError(f"dataset={e.dataset!r}: {said}")

    said = "must return inputs and labels, for training and for test; it ended with"
    with own.foreign(f"dataset={e.dataset!r}: {said}"):
        found = own.find(e.dataset)()
        if len(found) == 2 and all(isinstance(s, (tuple, list)) and len(s) == 2 for s in found):
            found = chain(*found)  # as Keras has them
        elif len(found) == 2:
            pairs = ([split[i] for i in range(len(split))] for split in found)
            found = [part for split in pairs for part in zip(*split)]
        train_x, train_y, test_x, test_y = map(_stacked, found)
    splits = []
    for x, y in ((train_x, train_y), (test_x, test_y)):
        odd = y.dim() != 1 or y.is_floating_point() or y.is_complex() or x.is_complex()
        if odd or x.dim() < 2 or len(x) != len(y) or not len(y) or y.long().min() < 0:
            shapes = f"inputs {tuple(x.shape)}, {x.dtype}, labels {tuple(y.shape)}, {y.dtype}"
            said = "there must be a whole number from 0 on for each input, and that is no scalar"
            refuse(f"{shapes}: {said}")
        images = x.dtype == torch.uint8 and x.dim() == 4
        made = x if images else x.float()
        if not made.isfinite().all():
            refuse("an input is not finite, as float32")
        if not (images or x.is_floating_point() or torch.equal(made.long(), x.long())):
            refuse("a whole number among the inputs is too large for float32")
        splits.append(Split(made, y.long()))
    kinds = [f"{split.x.dtype}, {tuple(split.x.shape[1:])}" for split in splits]
    if kinds[0] != kinds[1]:
        refuse(f"inputs for training are {kinds[0]}, those for test {kinds[1]}")
    return splits


def _stacked(values) -> torch.Tensor:
    if isinstance(values, (list, tuple)):
        values = torch.stack([torch.as_tensor(value) for value in values])
    if hasattr(values, "to_numpy"):  # pandas
        values = values.to_numpy().copy()  # theirs may not be written
    return torch.as_tensor(values).detach().cpu().to_dense()


# Images in folders


class _Tree(NamedTuple):
    """The images of one split: paths, labels (samples,), what tells these files from others, and
    how many files were passed over."""

    paths: list[str]
    labels: torch.Tensor
    classes: list[str]
    fingerprint: str
    others: int


def _folder(e: Experiment, store: Store) -> Data:
    path = root() / (expanded(e.folder) if e.folder.startswith("~") else e.folder)
    if not path.is_dir():
        said = f"there is no folder {path}; give its path, or set UNMASK_DATA"
        raise UnmaskError(f"folder={e.folder!r}: {said}")
    # ImageNet comes with a `test` of unlabelled images, in no folders
    names = ("test", "val")
    test = next((name for name in names if any(map(Path.is_dir, _visible(path / name)))), "test")
    train, test = (_tree(path / name, dated=not e.streamed) for name in ("train", test))
    if odd := sorted(set(train.classes) ^ set(test.classes)):
        there = "training" if odd[0] in train.classes else "test"
        raise UnmaskError(f"folder={e.folder!r}: class {odd[0]!r} is among the {there} images only")
    # before any memory is asked for
    problem = "" if e.streamed else _other_size(train.paths[0], e.image_size)
    counts = _counts(e, len(train.paths), len(test.paths), len(train.classes), problem)
    train, test = (_drawn(e, tree, count) for tree, count in zip((train, test), counts))
    if (others := train.others + test.others) and f"{e.recipe}/fingerprint{TENSORS}" not in store:
        said = "are not FOLDER/train/CLASS/IMAGE with the ending of an image that torchvision reads"
        print(f"unmask: folder={e.folder!r}: {others} files {said}: passed over", file=sys.stderr)
    fingerprint = train.fingerprint + test.fingerprint
    if e.streamed:
        _refuse_other_images(e, store, fingerprint)
        return Data(*(Stream(tree.paths, tree.labels, e.image_size) for tree in (train, test)))
    name = f"data/images-{e.digest('folder', 'image_size')}-{fingerprint}"
    size = e.image_size
    splits = _stored(store, name, lambda: [*_decoded(train, size), *_decoded(test, size)])
    # in order of their names in the store, test before training
    _refuse_other_images(e, store, _sha256(*splits[1][:2], *splits[0][:2]))
    return _normalised(e, *splits)


def _tree(path: Path, dated: bool) -> _Tree:
    """The images in a folder of folders. Files count as the same by name and size and, if
    `dated`, by date."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not path.is_dir():
        said = "there is no such folder; images belong in train/CLASS/ and test/CLASS/"
        raise UnmaskError(f"folder={str(path)!r}: {said}")
    classes = [folder for folder in _visible(path) if folder.is_dir()]
    if broken := [link for link in _visible(path) if link.is_symlink() and not link.exists()]:
        raise UnmaskError(f"folder={str(path)!r}: {broken[0].name!r} is a link that leads nowhere")
    if not classes:
        said = f"folder={str(path)!r}: has no folders, and there must be one for each class"
        raise UnmaskError(said)
    paths, labels, lines, others = [], [], [], 0
    for label, folder in enumerate(classes):
        files = _visible(folder)
        images = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
        others += len(files) - len(images)
        if not images:
            raise UnmaskError(f"folder={str(path)!r}: class {folder.name!r} has no images")
        paths += images
        labels += [label] * len(images)
    for image in paths:
        try:
            stat = image.stat()
        except OSError as error:
            said = f"image {error.filename}: cannot be read ({error.strerror})"
            raise UnmaskError(said) from error
        if not S_ISREG(stat.st_mode):
            raise UnmaskError(f"image {image}: is not a file")
        date = stat.st_mtime_ns if dated else ""
        lines.append(f"{image.relative_to(path)} {stat.st_size} {date}")
    names = [folder.name for folder in classes]
    fingerprint = _sha256(os.fsencode("\n".join(lines)))
    return _Tree(list(map(str, paths)), torch.tensor(labels), names, fingerprint, others)


def _visible(path: Path) -> list[Path]:
    """What is in a folder, in order, but for hidden files; nothing if it cannot be read."""
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


def _drawn(e: Experiment, tree: _Tree, count: int) -> _Tree:
    """So many of the images, in an order that mixes the classes.
    Raises UnmaskError: none of a class is among them."""
    draws = torch.Generator().manual_seed(e.data_seed)
    order = torch.randperm(len(tree.paths), generator=draws)[:count]
    labels = tree.labels[order]
    if left_out := _left_out(tree.labels, labels):
        said = f"{count} of {len(tree.paths)} images have none of {tree.classes[min(left_out)]!r}"
        raise UnmaskError(f"folder={e.folder!r}: {said}; take more, or all of them (0)")
    paths = [tree.paths[i] for i in order]
    fingerprint = _sha256(f"{tree.fingerprint} {e.data_seed} {count}".encode())
    return tree._replace(paths=paths, labels=labels, fingerprint=fingerprint)


def _refuse_other_images(e: Experiment, store: Store, fingerprint: str) -> None:
    """Names in the store go by the folder's name: were its images exchanged, old results would
    count as theirs.

    Of decoded images the pixels tell, so that a copy is as good; of a stream's too many, the names
    and sizes of files. Where there are no results yet, none can be taken for another's."""
    name = f"{e.recipe}/fingerprint"
    known, seen = store.tensors(name), torch.tensor(list(fingerprint.encode()))
    if known is not None and torch.equal(known["fingerprint"], seen):
        return
    results = (entry for entry in store.names() if entry.startswith(f"{e.recipe}/"))
    if known is not None and set(results) > {name + TENSORS}:
        said = f"its data are not those of the results in {store.root}; give them another name, or "
        raise UnmaskError(f"{e.folder or e.dataset}: {said}take another store")
    store.put_tensors(name, {"fingerprint": seen}, wait=False)


def _sha256(*parts: bytes | torch.Tensor) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.numpy().tobytes() if torch.is_tensor(part) else part)
    return digest.hexdigest()[:10]


def _open(path: str):
    """The image at `path`, in color.
    Raises UnmaskError: it cannot be read."""
    from PIL import Image

    # Pillow raises almost anything for a damaged file
    with own.foreign(f"image {path}: cannot be read:"), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):  # which convert would cut off
            raise ValueError(f"more than 8 bits a pixel, mode {image.mode}")
        return image.convert("RGB")


def _other_size(path: str, size: int, image=None) -> str:
    """What is wrong with the size of an image, or nothing."""
    found = (image or _open(path)).size
    if found == (size, size):
        return ""
    return (
        f"image {path}: is {found[0]} x {found[1]} pixels, not {size} x {size}; set image_size, or "
        "augmentation=resized-crop, which scales all to one size"
    )


def _decoded(tree: _Tree, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images, (samples, 3, size, size), and their labels."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    images = torch.empty(len(tree.paths), 3, size, size, dtype=torch.uint8)
    for into, path in zip(images, tree.paths):
        image = _open(path)
        if problem := _other_size(path, size, image):
            raise UnmaskError(problem)
        into.copy_(pil_to_tensor(image))
    return images, tree.labels


@dataclasses.dataclass(eq=False)
class Stream:
    """Images too many for memory, decoded as they are needed by torchvision's transforms; on a GPU,
    by a DataLoader's workers.

    In training a random part of each image, of 8 to 100 % of its area, is scaled to `size` pixels,
    and mirrored or not; otherwise the middle, of an image scaled to 8/7 of `size`, is taken. The
    usual transforms for ImageNet."""

    paths: list[str]
    y: torch.Tensor
    size: int
    device: torch.device = torch.device("cpu")

    def to(self, device: torch.device) -> Stream:
        return dataclasses.replace(self, device=device)

    def chunks(self, size: int, first: int = 0, step: int = 1) -> Batches:
        every = torch.arange(first, len(self.y), step)
        return self._load(chunk.tolist() for chunk in _chunked(every, min(size, 250)))

    def take(self, count: int) -> Stream:
        """As `Split.take`."""
        return dataclasses.replace(self, paths=self.paths[:count], y=self.y[:count])

    def as_inputs(self, count: int) -> Split:
        """As `Split.as_inputs`."""
        parts = list(self._load([range(count)]))
        return Split(*(torch.cat(part) for part in zip(*parts)))

    def read(self, batches: Iterable[Batch]) -> Batches:
        """As `Split.read`, of one replicate (see `train.replicates_at_once`)."""
        return self._load(list(zip(x[0].tolist(), draws[0].tolist())) for x, draws in batches)

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

        scaled = v2.ToDtype(torch.float32, scale=True)
        # ImageNet's mean and standard deviation, as these images are not all read beforehand
        normalised = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        finish = [v2.ToImage(), scaled, normalised]
        middle = [v2.Resize(round(self.size * 8 / 7)), v2.CenterCrop(self.size)]
        moved = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()]
        return v2.Compose(middle + finish), v2.Compose(moved + finish)

    def _load(self, batches: Iterable[list]) -> Batches:
        from torch.utils.data import DataLoader

        workers = 0 if self.device.type == "cpu" else min(8, os.cpu_count() or 1)
        options = dict(num_workers=workers, pin_memory=workers > 0)
        loader = DataLoader(self, batch_sampler=batches, **options)
        try:
            for x, y in loader:
                x = _laid_out(x.to(self.device, non_blocking=True))
                yield x, y.to(self.device, non_blocking=True)
        except UnmaskError as error:  # a worker puts its traceback before it
            raise UnmaskError(str(error).strip().rpartition("UnmaskError: ")[2]) from error


Samples = Split | Stream
