"""Experiments: every number that matters, by name, checked before anything is computed.

Nothing here imports torch: `unmask presets` and a mistyped parameter answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from dataclasses import dataclass

from .errors import UnmaskError

# Part of every identity. Raise it when a change to the code changes what a stored result would be.
RECIPE_VERSION = 1

# Size and channels of an image (of a signal: its length). Those of a folder are the experiment's to say.
DATASETS = {"mnist1d": (40, 1), "mnist": (28, 1), "cifar10": (32, 3), "cifar100": (32, 3), "imagefolder": (None, 3)}
NETWORKS = ("resnet1d", "resnet1d-strided", "lenet-300-100", "resnet20", "resnet18", "resnet50")
AUGMENTATIONS = ("none", "crop-flip", "resized-crop")
PRECISIONS = ("float32", "tf32", "bf16")


_LARGEST = 1e6  # of a factor; far beyond any use, and within the range of float32


def _positive(value):
    return value > 0


def _share(value):
    return 0 < value < 1


def _increasing(values):
    return list(values) == sorted(set(values))


# What each field may be, in words and as a test; fields that depend on each other are checked in `Experiment`.
_ALLOWED = {
    "dataset": (f"one of {', '.join(DATASETS)}", lambda v: v in DATASETS),
    "folder": ("a path without line breaks", lambda v: v == v.strip() and "\n" not in v),
    "image_size": ("1 or more", _positive),
    "classes": ("2 or more", lambda v: v >= 2),
    "augmentation": (f"one of {', '.join(AUGMENTATIONS)}", lambda v: v in AUGMENTATIONS),
    "train_samples": ("1 or more", _positive),
    "test_samples": ("1 or more", _positive),
    "data_seed": ("0 to 4294967295", lambda v: 0 <= v < 2**32),
    "network": (f"one of {', '.join(NETWORKS)}", lambda v: v in NETWORKS),
    "width": ("1 or more", _positive),
    "steps": ("1 or more", _positive),
    "batch_size": ("2 or more", lambda v: v >= 2),
    "lr": (f"above 0 and at most {_LARGEST:g}", lambda v: 0 < v <= _LARGEST),
    "momentum": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "weight_decay": (f"0 to {_LARGEST:g}", lambda v: 0 <= v <= _LARGEST),
    "milestones": ("increasing shares of the steps, each in (0, 1)",
                   lambda v: all(map(_share, v)) and _increasing(v)),
    "lr_decay": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "warmup": ("a share of the steps, at least 0 and below 1", lambda v: 0 <= v < 1),
    "precision": (f"one of {', '.join(PRECISIONS)}", lambda v: v in PRECISIONS),
    "rewind_steps": ("at least one, increasing, each 0 or more",
                     lambda v: len(v) > 0 and v[0] >= 0 and _increasing(v)),
    "levels": ("1 or more", _positive),
    "prune_fraction": ("in (0, 1)", _share),
    "control_every": ("1 or more", _positive),
    "probe_levels": ("at least one, increasing, each 0 or more", lambda v: len(v) > 0 and v[0] >= 0 and _increasing(v)),
    "perturbation_lengths": ("increasing, each 0 or more, 0 and 1 among them",
                             lambda v: {0, 1} <= set(v) and v[0] >= 0 and _increasing(v)),
    "limit_levels": ("at least one, increasing, each 0 or more", lambda v: len(v) > 0 and v[0] >= 0 and _increasing(v)),
    "prune_ratios": ("at least one, increasing, each in (0, 1)",
                     lambda v: len(v) > 0 and all(map(_share, v)) and _increasing(v)),
    "curvature_samples": ("1 or more", _positive),
    "lanczos_probes": ("2 or more", lambda v: v >= 2),
    "lanczos_steps": ("1 or more", _positive),
    "seeds": ("1 or more", _positive),
    "first_seed": ("0 or more", lambda v: v >= 0),
    "barrier_points": ("odd and 3 or more, so that the grid has both ends and the midpoint",
                       lambda v: v >= 3 and v % 2 == 1),
    "epsilon": ("in (0, 1)", _share),
    "lmc_threshold": ("in (0, 1)", _share),
    "agreement": ("in (0, 1)", _share),
    "higher_sparsity": ("in (0, 1)", _share),
    "ticket_density": ("in (0, 1)", _share),
    "loss_height": ("above 0", _positive),
    "limit_tolerance": ("in (0, 1)", _share),
    "gap_refilled": ("in (0, 1)", _share),
    "plane_points": ("odd and 3 or more", lambda v: v >= 3 and v % 2 == 1),
    "train_measured": ("0 or more", lambda v: v >= 0),
    "device": ("'auto', 'cpu', 'cuda' or 'cuda:N'",
               lambda v: re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", v)),
}

# Fields that decide what one training computes. Those left out (how many seeds, levels, rewind steps; how
# results are measured and judged) select among trainings, so changing them reuses every training in the store.
_RECIPE = ("dataset", "folder", "image_size", "classes", "augmentation", "train_samples", "test_samples", "data_seed",
           "network", "width", "steps", "batch_size", "lr", "momentum", "weight_decay", "milestones", "lr_decay", "warmup",
           "precision", "prune_fraction", "device")


@dataclass(frozen=True)
class Experiment:
    """All settings of one experiment. Make one with `experiment(preset, **changes)`.

    Errors and thresholds are shares (0.01 is one percentage point). `milestones` are shares of `steps` at which the
    learning rate is multiplied by `lr_decay`; over the first `warmup` share of them it rises from 0. `seeds`, `levels`:
    how many; levels count from 1, 0 being dense. `folder`: of "imagefolder", see `data.load`.

    Raises:
        UnmaskError: a field has the wrong type or is outside what is allowed.
    """

    preset: str
    # data
    dataset: str
    train_samples: int  # the first so many; of a folder, so many drawn by data_seed
    test_samples: int
    data_seed: int
    # network
    network: str
    width: int
    # training
    steps: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    milestones: tuple[float, ...]
    lr_decay: float
    # iterative magnitude pruning and its controls
    rewind_steps: tuple[int, ...]
    levels: int
    prune_fraction: float
    control_every: int  # controls are trained at every so many levels, from the last rewind step
    # perturbed pairs at the rewind point (Finding 2)
    probe_levels: tuple[int, ...]
    perturbation_lengths: tuple[float, ...]  # in units of the distance between a level's pruned rewind point and the next's
    # how much can be pruned at once (Finding 3), from solutions of the last rewind step
    limit_levels: tuple[int, ...]
    prune_ratios: tuple[float, ...]
    curvature_samples: int  # the first so many training samples
    lanczos_probes: int
    lanczos_steps: int  # estimated spectra are also computed with twice as many
    # replication
    seeds: int
    first_seed: int  # seeds are first_seed, first_seed + 1, ...
    # measuring and judging, fixed before results are looked at
    barrier_points: int
    epsilon: float  # a level is matching if its test error is at most the dense error plus epsilon
    lmc_threshold: float  # two networks are linearly mode connected if their error barrier is below this
    agreement: float  # a claim about many cases holds if at least this share of them agrees
    higher_sparsity: float  # the paper's "at higher sparsities" is read as: density at most this
    ticket_density: float  # a winning ticket keeps at most this share of the weights
    loss_height: float  # rise of the train loss, in nats, up to which a solution counts as in the same sublevel set
    limit_tolerance: float  # a predicted maximum pruning ratio is right if it misses the measured one by at most this
    gap_refilled: float  # a gap is filled if at least this share of as many weights as before are in it again
    plane_points: int  # grid points along each side of a landscape
    device: str = "auto"
    # more about data and training; what is not about MNIST-1D
    folder: str = ""
    image_size: int = 40  # pixels along a side, or points of a signal
    classes: int = 10
    augmentation: str = "none"
    warmup: float = 0.0
    precision: str = "float32"  # in training; everything is measured in float32
    # train error and loss, and re-estimated batch-norm statistics, are those of at most so many training samples; 0: of all
    train_measured: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name)))
        for name, (allowed, test) in _ALLOWED.items():
            if not test(getattr(self, name)):
                raise _bad(name, getattr(self, name), allowed)
        size, _ = DATASETS[self.dataset]
        if size and self.image_size != size:
            raise _bad("image_size", self.image_size, f"{size}, the size of {self.dataset}")
        if self.dataset == "mnist1d":
            for name in ("train_samples", "test_samples"):
                if getattr(self, name) % 10:
                    raise _bad(name, getattr(self, name), "a multiple of 10 for mnist1d, as many of each class")
            if self.classes != 10:
                raise _bad("classes", self.classes, "10 for mnist1d")
        if (self.dataset == "imagefolder") != bool(self.folder):
            raise _bad("folder", self.folder, "the folder of the images for imagefolder, and empty for other data sets")
        fitting = [name for name in NETWORKS if name.startswith("resnet1d") == (self.dataset == "mnist1d")]
        if self.network not in fitting:
            raise _bad("network", self.network, f"one of {', '.join(fitting)} for {self.dataset}")
        if self.network == "resnet50" and self.width != 64:
            raise _bad("width", self.width, "64 for resnet50")
        if self.network == "lenet-300-100" and self.width < 3:
            raise _bad("width", self.width, "3 or more for lenet-300-100, whose second layer is a third as wide")
        count = {"mnist1d": 1, "imagefolder": 3}.get(self.dataset, 2)
        augmentations = AUGMENTATIONS[:count]
        if self.augmentation not in augmentations:
            raise _bad("augmentation", self.augmentation, f"one of {', '.join(augmentations)} for {self.dataset}")
        if self.batch_size > self.train_samples:
            raise _bad("batch_size", self.batch_size, f"at most train_samples ({self.train_samples})")
        if self.curvature_samples > self.train_samples:
            raise _bad("curvature_samples", self.curvature_samples, f"at most train_samples ({self.train_samples})")
        if self.rewind_steps[-1] >= self.steps:
            raise _bad("rewind_steps", self.rewind_steps, f"at most {self.steps - 1} each, before the last step")

    @property
    def id(self) -> str:
        """Identity of the whole experiment: 10 hexadecimal digits over every field but the preset's name."""
        return self.digest(*(f.name for f in dataclasses.fields(self) if f.name != "preset"))

    @property
    def recipe(self) -> str:
        """Readable identity of what one training computes; the first folder of everything stored."""
        return f"{self.dataset}-{self.network}-{self.digest(*_RECIPE)}"

    def digest(self, *names: str) -> str:
        """Hash of the named fields, 10 hexadecimal digits. Later fields count only where they are not at their default,
        so that identities from before they existed stay."""
        values = {"version": RECIPE_VERSION} | {name: getattr(self, name) for name in names
                                                if getattr(self, name) != _LATER.get(name)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]

    def but(self, **changes) -> Experiment:
        """The same experiment with some fields changed, under a new identity.

        Raises:
            UnmaskError: a name is not a field, or a value is not allowed.
        """
        known = [f.name for f in dataclasses.fields(self) if f.name != "preset"]
        for name in changes:
            if name not in known:
                raise UnmaskError(f"unknown field {name!r}: an experiment has {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    @property
    def channels(self) -> int:
        """Channels of an image or signal."""
        return DATASETS[self.dataset][1]

    @property
    def streamed(self) -> bool:
        """Are images decoded as they are needed, rather than kept in memory?"""
        return self.augmentation == "resized-crop"

    @property
    def all_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def control_levels(self) -> range:
        return range(self.control_every, self.levels + 1, self.control_every)


def experiment(preset: str = "miniature", **changes) -> Experiment:
    """The named preset with fields changed; a change to `None` keeps the preset's value.

    Raises:
        UnmaskError: no such preset or field, or a value that is not allowed.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UnmaskError(f"preset={preset!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[preset].but(**{name: value for name, value in changes.items() if value is not None})


def parse_setting(text: str) -> tuple[str, object]:
    """`"name=value"` as typed on a command line: the field's name and its value, of the field's type."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UnmaskError(f"{text!r}: must have the form field=value")
    kind = _types().get(name)
    if kind is None or name == "preset":  # leave the complaint, with the list of fields, to `Experiment.but`
        return name, value
    if typing.get_origin(kind) is tuple:
        (item, _) = typing.get_args(kind)
        return name, tuple(_from_text(name, part, item) for part in value.strip("()[] ").split(",") if part.strip())
    return name, _from_text(name, value, kind)


@functools.cache
def _types() -> types.MappingProxyType:
    return types.MappingProxyType(typing.get_type_hints(Experiment))


def _bad(name: str, value, allowed: str) -> UnmaskError:
    shown = list(value) if isinstance(value, tuple) else value
    return UnmaskError(f"{name}={shown!r}: must be {allowed}")


def _from_text(name: str, text: str, kind: type):
    try:
        return kind(text.strip())
    except ValueError:
        raise _bad(name, text, f"of type {kind.__name__}") from None


def _typed(name: str, value):
    """`value` as the field's type; whole numbers pass as floats, lists as tuples, and nothing else is converted."""
    kind = _types()[name]
    if typing.get_origin(kind) is tuple:
        (item, _) = typing.get_args(kind)
        if not isinstance(value, (tuple, list)):
            raise _bad(name, value, f"a list of {item.__name__}")
        return tuple(_scalar(name, part, item) for part in value)
    return _scalar(name, value, kind)


def _scalar(name: str, value, kind: type):
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, kind) or kind is float:
        raise _bad(name, value, f"of type {kind.__name__}" + (" and finite" if kind is float else ""))
    return value


_LATER = {field.name: field.default for field in dataclasses.fields(Experiment)
          if field.default is not dataclasses.MISSING and field.name != "device"}

_MINIATURE = Experiment(
    preset="miniature",
    dataset="mnist1d", train_samples=4000, test_samples=10_000, data_seed=42,
    network="resnet1d-strided", width=8,
    steps=1200, batch_size=128, lr=1.0, momentum=0.9, weight_decay=1e-4, milestones=(0.5, 0.75), lr_decay=0.1,
    rewind_steps=(0, 25, 250), levels=13, prune_fraction=0.2, control_every=2,
    probe_levels=(8, 12), perturbation_lengths=(0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    limit_levels=(0, 8), prune_ratios=(0.1, 0.2, 0.4, 0.6, 0.8, 0.95),
    curvature_samples=1000, lanczos_probes=8, lanczos_steps=120,
    seeds=3, first_seed=0,
    barrier_points=11, epsilon=0.01, lmc_threshold=0.02, agreement=0.9,
    higher_sparsity=0.33, ticket_density=0.2,
    # A wrongly classified sample has a loss of at least log 2: where the train loss is near 0, a rise of epsilon * log 2
    # makes at most the share epsilon of the samples wrong.
    loss_height=0.007, limit_tolerance=0.1,
    gap_refilled=0.5, plane_points=21,
)

# This and the two made from it are trained as in the authors' closest public configuration and OpenLTH.
_CIFAR10 = dataclasses.replace(
    _MINIATURE, preset="cifar10_resnet20", dataset="cifar10", image_size=32, train_samples=50_000,
    augmentation="crop-flip", network="resnet20", width=16, steps=62_400, lr=0.1,
    rewind_steps=(0, 250, 1000, 2000), levels=15, control_every=5, lanczos_probes=4, lanczos_steps=40,
    epsilon=0.005, loss_height=0.0035,
)

PRESETS = {
    experiment.preset: experiment
    for experiment in (
        # a finer sweep of ratios than in the presets made from it, whose tables are published
        dataclasses.replace(_MINIATURE, prune_ratios=(0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 0.95)),
        # the same blocks at full resolution: more accurate, more work for each step
        dataclasses.replace(
            _MINIATURE, preset="miniature_fine", network="resnet1d", steps=800, lr=0.5, rewind_steps=(0, 20, 160),
            probe_levels=(4, 8, 12), limit_levels=(0, 5, 10),
            epsilon=0.005, loss_height=0.0035),
        dataclasses.replace(
            _MINIATURE, preset="smoke", train_samples=500, test_samples=500, width=4, steps=40, batch_size=50,
            rewind_steps=(0, 5), levels=3, control_every=2, probe_levels=(1, 2), perturbation_lengths=(0.0, 0.5, 1.0),
            limit_levels=(2,), prune_ratios=(0.2, 0.8), curvature_samples=100, lanczos_probes=2, lanczos_steps=10,
            seeds=2, barrier_points=3, plane_points=5),
        # LeNet-300-100, trained as by OpenLTH, its output layer not pruned
        dataclasses.replace(
            _MINIATURE, preset="mnist_lenet", dataset="mnist", image_size=28, train_samples=60_000, network="lenet-300-100",
            width=300, steps=18_720, lr=0.1, momentum=0.0, weight_decay=0.0, milestones=(), rewind_steps=(0, 500),
            levels=20, control_every=8, probe_levels=(8, 16), perturbation_lengths=(0.0, 1.0, 2.0, 4.0),
            limit_levels=(0, 10), prune_ratios=(0.3, 0.6, 0.9, 0.98), lanczos_probes=4, lanczos_steps=40,
            epsilon=0.002, lmc_threshold=0.004, loss_height=0.0014),
        # a residual network on the same images, half as wide as the paper's and trained for two epochs, for a CPU
        dataclasses.replace(
            _CIFAR10, preset="mnist_resnet20", dataset="mnist", image_size=28, train_samples=60_000, augmentation="none",
            width=8, steps=936, rewind_steps=(0,), levels=12, control_every=4, probe_levels=(4, 8),
            limit_levels=(0, 8), barrier_points=5, epsilon=0.002, lmc_threshold=0.004, loss_height=0.0014,
            train_measured=2500),
        _CIFAR10,
        dataclasses.replace(
            _CIFAR10, preset="cifar100_resnet18", dataset="cifar100", classes=100, network="resnet18", width=64,
            weight_decay=5e-4, rewind_steps=(0, 500, 2000), lanczos_probes=2, lanczos_steps=20),
        dataclasses.replace(
            _CIFAR10, preset="imagenet_resnet50", dataset="imagefolder", folder="imagenet", image_size=224, classes=1000,
            train_samples=1_281_167, test_samples=50_000, augmentation="resized-crop", network="resnet50", width=64,
            steps=90 * 1251, batch_size=1024, lr=0.4, milestones=(30 / 90, 60 / 90, 80 / 90), warmup=5 / 90,
            rewind_steps=(0, 1251, 5 * 1251), levels=10, probe_levels=(4, 8), lanczos_probes=2, lanczos_steps=20,
            train_measured=50_000),
    )
}
