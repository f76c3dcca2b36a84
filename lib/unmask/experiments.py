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

DATASETS = ("mnist1d",)
NETWORKS = ("resnet1d", "resnet1d-strided")


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
    "train_samples": ("a positive multiple of 10", lambda v: v > 0 and v % 10 == 0),
    "test_samples": ("a positive multiple of 10", lambda v: v > 0 and v % 10 == 0),
    "data_seed": ("0 to 4294967295", lambda v: 0 <= v < 2**32),
    "network": (f"one of {', '.join(NETWORKS)}", lambda v: v in NETWORKS),
    "width": ("1 or more", _positive),
    "steps": ("1 or more", _positive),
    "batch_size": ("2 or more", lambda v: v >= 2),
    "lr": (f"above 0 and at most {_LARGEST:g}", lambda v: 0 < v <= _LARGEST),
    "momentum": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "weight_decay": (f"0 to {_LARGEST:g}", lambda v: 0 <= v <= _LARGEST),
    "milestones": ("increasing shares of the steps, each in (0, 1)",
                   lambda v: all(map(_share, v)) and list(v) == sorted(set(v))),
    "lr_decay": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "rewind_steps": ("at least one, increasing, each 0 or more",
                     lambda v: len(v) > 0 and v[0] >= 0 and list(v) == sorted(set(v))),
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
    "device": ("'auto', 'cpu', 'cuda' or 'cuda:N'",
               lambda v: re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", v)),
}

# Fields that decide what one training computes. Those left out (how many seeds, levels, rewind steps; how
# results are measured and judged) select among trainings, so changing them reuses every training in the store.
_RECIPE = ("dataset", "train_samples", "test_samples", "data_seed", "network", "width", "steps", "batch_size", "lr",
           "momentum", "weight_decay", "milestones", "lr_decay", "prune_fraction", "device")


@dataclass(frozen=True)
class Experiment:
    """All settings of one experiment. Make one with `experiment(preset, **changes)`.

    Errors and thresholds are shares (0.01 is one percentage point). `milestones` are shares of `steps` at which the
    learning rate is multiplied by `lr_decay`. `seeds`, `levels`: how many; levels count from 1, 0 being dense.

    Raises:
        UnmaskError: a field has the wrong type or is outside what is allowed.
    """

    preset: str
    # data
    dataset: str
    train_samples: int
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

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name)))
        for name, (allowed, test) in _ALLOWED.items():
            if not test(getattr(self, name)):
                raise _bad(name, getattr(self, name), allowed)
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
        """Hash of the named fields, 10 hexadecimal digits."""
        values = {"version": RECIPE_VERSION} | {name: getattr(self, name) for name in names}
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

PRESETS = {
    experiment.preset: experiment
    for experiment in (
        _MINIATURE,
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
    )
}
