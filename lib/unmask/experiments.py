"""Experiments: every number that matters, by name, checked before anything is computed.

Nothing here imports torch: `unmask presets` and a mistyped parameter answer at once.
"""

import ast
import dataclasses
import difflib
import hashlib
import json
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import own
from .errors import UnmaskError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Part of every identity. Raise it when a change to the code changes what a stored result would be.
RECIPE_VERSION = 1


class Dataset(NamedTuple):
    """`size`: pixels along a side, or points of a signal; None: the experiment's to say.

    `torchvision`: the name of its class there, `files`: the folder of its files below
    `data.root()`.
    """

    size: int | None
    channels: int
    augmentations: tuple[str, ...]
    torchvision: str = ""
    files: str = ""


_MOVED = ("none", "crop-flip")
DATASETS = {
    "mnist1d": Dataset(40, 1, ("none",)),
    "mnist": Dataset(28, 1, _MOVED, "MNIST", "MNIST/raw"),
    "cifar10": Dataset(32, 3, _MOVED, "CIFAR10", "cifar-10-batches-py"),
    "cifar100": Dataset(32, 3, _MOVED, "CIFAR100", "cifar-100-python"),
    "imagefolder": Dataset(None, 3, (*_MOVED, "resized-crop")),
}


class Network(NamedTuple):
    """`family`: in `networks`, called with the experiment, for signals the number of replicates,
    and `arguments`. `width`: the least and the most."""

    family: str
    arguments: dict = {}
    width: tuple[int, float] = (1, math.inf)
    signals: bool = False


NETWORKS = {
    "resnet1d": Network("ResNet1d", dict(stem_kernel=3, stem_stride=1), signals=True),
    "resnet1d-strided": Network("ResNet1d", dict(stem_kernel=5, stem_stride=2), signals=True),
    "lenet-300-100": Network("LeNet", width=(3, math.inf)),
    "resnet8-strided": Network("ResNet", dict(stages=3, blocks=1, stem_kernel=4, stem_stride=2)),
    "resnet20": Network("ResNet", dict(stages=3, blocks=3)),
    "resnet18": Network("ResNet", dict(stages=4, blocks=2)),
    "resnet50": Network("ResNet50", width=(64, 64)),
}

# Of what is a user's own, see `own`, nothing is known beforehand.
_OWN_DATASET, _OWN_NETWORK = Dataset(None, 3, ("none", "crop-flip")), Network("own_network")
_LIBRARIES = "torchvision:NAME, timm:NAME, "

# What a value may be, in words and as a test. Factors beyond the largest are of no use, and would
# leave the range of float32.
Rule = tuple[str, Callable[[typing.Any], bool]]
_SHARE: Rule = "in (0, 1)", lambda v: 0 < v < 1
_FACTOR: Rule = "above 0 and at most 1e+06", lambda v: 0 < v <= 1e6
_ODD: Rule = "odd and 3 to 1,001, for the middle", lambda v: 3 <= v <= 1001 and v % 2 == 1


def _one_of_or_own(names, more: str) -> Rule:
    said = f"one of {', '.join(names)}, or {more}FILE.py:FUNCTION or MODULE:FUNCTION"
    return said, lambda value: value in names or own.is_own(value)


def _at_least(least: int, most: float = math.inf) -> Rule:
    said = f"{least} or more" if most == math.inf else f"{least} to {most:,}"
    return said, lambda value: least <= value <= most


def _one_of(names) -> Rule:
    return f"one of {', '.join(names)}", lambda value: value in names


def _increasing(each: str, fits: Callable = lambda v: True, some: bool = True) -> Rule:
    def test(values):
        ordered = list(values) == sorted(set(values))
        return ordered and all(map(fits, values)) and (len(values) > 0 or not some)

    return f"{'at least one, ' if some else ''}increasing, each {each}", test


_PLACES = _increasing("0 or more", lambda v: v >= 0)
_LENGTHS: Rule = (
    "increasing, each 0 or more and at most 1e+06, 0 and 1 among them",
    lambda values: {0, 1} <= set(values) and _PLACES[1](values) and values[-1] <= 1e6,
)
_BELOW_1: Rule = "at least 0 and below 1", lambda v: 0 <= v < 1
_PATH: Rule = "a path without line breaks", lambda v: v == v.strip() and "\n" not in v
_DEVICE = "'auto', 'cpu', 'cuda' or 'cuda:N'", re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?").fullmatch
_AUGMENTATION, _PRECISION = _one_of((*_MOVED, "resized-crop")), _one_of(("float32", "tf32", "bf16"))
_STEPS = _increasing("a share of the steps, in (0, 1)", _SHARE[1], some=False)
_NAMES: Rule = "a list of names", lambda v: all(v)
_ALL = "0 or more; 0 or 'all': all there are", lambda v: v >= 0
_SOME = f"{_ALL[0]}; not 1", lambda v: v >= 0 and v != 1  # batch norm takes no statistics of one


def setting(rule: Rule, *, recipe: bool = False, before=dataclasses.MISSING):
    """A field of an experiment.

    Args:
        rule: what it may be, in words and as a test of one value.
        recipe: does it decide what one training computes? Other fields (how many seeds, levels,
            rewind steps; how results are measured and judged) select among trainings: changing
            them reuses every training in the store.
        before: of a field that came later, the value that all experiments had before it. Identities
            do not count it, so that they stay."""
    return dataclasses.field(default=before, metadata={"rule": rule, "recipe": recipe})


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings of one experiment; `meanings` says what they mean. Make one with
    `experiment(preset, **changes)`.

    Raises UnmaskError: fields have the wrong type or are outside what is allowed; all of them at
    once."""

    preset: str = setting(("", lambda v: True))
    # data
    dataset: str = setting(_one_of_or_own(DATASETS, ""), recipe=True)
    train_samples: int = setting(_ALL, recipe=True)
    test_samples: int = setting(_ALL, recipe=True)
    data_seed: int = setting(("0 to 4294967295", lambda v: 0 <= v < 2**32), recipe=True)
    folder: str = setting(_PATH, recipe=True, before="")
    image_size: int = setting(_at_least(1, 4096), recipe=True, before=40)
    classes: int = setting(_at_least(2, 10**6), recipe=True, before=10)
    augmentation: str = setting(_AUGMENTATION, recipe=True, before="none")
    # network and training
    network: str = setting(_one_of_or_own(NETWORKS, _LIBRARIES), recipe=True)
    width: int = setting(_at_least(1, 100_000), recipe=True)
    steps: int = setting(_at_least(1), recipe=True)
    batch_size: int = setting(_at_least(2), recipe=True)
    lr: float = setting(_FACTOR, recipe=True)
    momentum: float = setting(_BELOW_1, recipe=True)
    weight_decay: float = setting(("0 to 1e+06", lambda v: 0 <= v <= 1e6), recipe=True)
    schedule: str = setting(_one_of(("step", "linear", "cosine")), recipe=True, before="step")
    milestones: tuple[float, ...] = setting(_STEPS, recipe=True)
    lr_decay: float = setting(("above 0 and at most 1", lambda v: 0 < v <= 1), recipe=True)
    warmup: float = setting(_BELOW_1, recipe=True, before=0.0)
    precision: str = setting(_PRECISION, recipe=True, before="float32")
    device: str = setting(_DEVICE, recipe=True)
    # iterative magnitude pruning
    rewind_steps: tuple[int, ...] = setting(_PLACES)
    levels: int = setting(_at_least(1, 1000))
    prune_fraction: float = setting(_SHARE, recipe=True)
    never_pruned: tuple[str, ...] = setting(_NAMES, recipe=True, before=())
    control_every: int = setting(_at_least(1))
    # what is measured of it
    probe_levels: tuple[int, ...] = setting(_PLACES)
    perturbation_lengths: tuple[float, ...] = setting(_LENGTHS)
    limit_levels: tuple[int, ...] = setting(_PLACES)
    prune_ratios: tuple[float, ...] = setting(_increasing("in (0, 1)", _SHARE[1]))
    curvature_samples: int = setting(_at_least(1))
    lanczos_probes: int = setting(_at_least(2, 1000))
    lanczos_steps: int = setting(_at_least(1, 10_000))
    seeds: int = setting(_at_least(1, 10_000))
    first_seed: int = setting(_at_least(0))
    barrier_points: int = setting(_ODD)
    plane_points: int = setting(_ODD)
    train_measured: int = setting(_SOME, before=0)
    # how it is judged
    epsilon: float = setting(_SHARE)
    lmc_threshold: float = setting(_SHARE)
    higher_sparsity: float = setting(_SHARE)
    ticket_density: float = setting(_SHARE)
    loss_height: float = setting(_FACTOR)
    limit_tolerance: float = setting(_SHARE)
    gap_refilled: float = setting(_SHARE)

    def __post_init__(self):
        problems = []
        if isinstance(self.folder, str) and self.folder:  # one folder has one name
            object.__setattr__(self, "folder", os.path.normpath(self.folder))
        for field in dataclasses.fields(self):
            allowed, test = field.metadata["rule"]
            try:
                value = _typed(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)
                if not test(value):
                    raise bad(field.name, value, allowed)
            except UnmaskError as error:
                problems.append(str(error))
        # what fits by itself may not fit together
        if problems := problems or [str(bad(n, getattr(self, n), r)) for n, r in self._misfits()]:
            raise UnmaskError("; ".join(problems))

    def _misfits(self) -> Iterator[tuple[str, str]]:
        """Fields that do not fit others: name, and what is allowed."""
        data, network, signals = self.known_dataset, self.known_network, self.dataset == "mnist1d"
        if data.size and self.image_size != data.size:
            yield "image_size", f"{data.size}, the size of {self.dataset}"
        if signals:
            for name in ("train_samples", "test_samples"):
                if (count := getattr(self, name)) % 10 or not 0 < count <= 10**6:
                    yield name, "a multiple of 10 for mnist1d, 10 to 1,000,000"
            if self.classes != 10:
                yield "classes", "10 for mnist1d"
        if (self.dataset == "imagefolder") != bool(self.folder):
            rule = "the folder of the images for imagefolder, and empty for other data sets"
            yield "folder", rule
        if own.is_own(self.dataset) and not own.is_own(self.network):
            yield "network", f"your own as well, for {self.dataset}"
        elif network.signals != signals and not own.is_own(self.network):
            fitting = [name for name, other in NETWORKS.items() if other.signals == signals]
            yield "network", f"one of {', '.join(fitting)} for {self.dataset}"
        if self.network == "resnet8-strided" and self.image_size == 1:
            yield "image_size", "2 or more for resnet8-strided"
        least, most = network.width
        if not least <= self.width <= most:
            rule = str(least) if least == most else f"{least} or more"
            yield "width", f"{rule} for {self.network}"
        if self.schedule != "step" and self.milestones:
            yield "milestones", f"empty for the {self.schedule} schedule"
        if self.augmentation not in data.augmentations:
            yield "augmentation", f"one of {', '.join(data.augmentations)} for {self.dataset}"
        if self.train_samples:
            for name in ("batch_size", "curvature_samples"):
                if getattr(self, name) > self.train_samples:
                    yield name, f"at most train_samples ({self.train_samples})"
        if self.latest >= self.steps:
            yield "rewind_steps", f"at most {self.steps - 1} each, before the last step"

    @property
    def id(self) -> str:
        """Identity of the whole experiment: 10 hexadecimal digits over all but the preset's
        name."""
        return self.digest(*(name for name in _FIELDS if name != "preset"))

    @property
    def recipe(self) -> str:
        """Readable identity of what one training computes; the first folder of all that is
        stored."""
        names = [name for name, field in _FIELDS.items() if field.metadata["recipe"]]
        words = f"{Path(self.dataset).name}-{Path(self.network).name}"
        words = re.sub(r"[^a-zA-Z0-9.]+", "-", words).strip("-.")
        return f"{words[-80:]}-{self.digest(*names)}"

    def digest(self, *names: str) -> str:
        """Hash of the named fields, 10 hexadecimal digits."""
        values = {"version": RECIPE_VERSION}
        for name in names:
            value = getattr(self, name)
            if value != _FIELDS[name].default:  # see `setting`
                is_own = name in ("dataset", "network") and own.is_own(value)
                values[name] = own.identity(value) if is_own else value
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]

    def but(self, **changes) -> "Experiment":
        """The same experiment with some fields changed, under a new identity.
        Raises UnmaskError: a name is not a field, or a value is not allowed."""
        known = [name for name in _FIELDS if name != "preset"]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = f" (perhaps {near[0]!r})" if near else ""
                said = f"unknown field {name!r}{meant}: must be one of {', '.join(known)}"
                raise UnmaskError(said)
        return dataclasses.replace(self, **changes)

    @property
    def known_dataset(self) -> Dataset:
        return DATASETS.get(self.dataset, _OWN_DATASET)

    @property
    def known_network(self) -> Network:
        return NETWORKS.get(self.network, _OWN_NETWORK)

    @property
    def channels(self) -> int:
        """Channels of an image or signal."""
        return self.known_dataset.channels

    @property
    def streamed(self) -> bool:
        """Are images decoded as they are needed, rather than kept in memory?"""
        return self.augmentation == "resized-crop"

    @property
    def all_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def evaluated(self) -> tuple[int, int]:
        """Test and training samples a network is measured on, to tell what that costs; where the
        experiment takes all there are, a guess."""
        return self.test_samples or 10_000, self.train_measured or self.train_samples or 50_000

    @property
    def earliest(self) -> int:
        """The first rewind step."""
        return self.rewind_steps[0]

    @property
    def latest(self) -> int:
        """The last rewind step."""
        return self.rewind_steps[-1]

    @property
    def control_levels(self) -> range:
        return range(self.control_every, self.levels + 1, self.control_every)


def experiment(preset: str = "miniature", settings: dict | None = None, **changes) -> Experiment:
    """The named preset with fields changed; a change to `None` keeps the preset's value.

    Args:
        settings: more changes, by field; a notebook's parameter of that name.
    Raises UnmaskError: no such preset or field, or a value that is not allowed."""
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UnmaskError(f"preset={preset!r}: must be one of {', '.join(PRESETS)}")
    settings = {} if settings is None else settings
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        said = "must be a dictionary of fields, such as {'lr': 0.5}; papermill takes one by "
        raise UnmaskError(f"settings={settings!r}: {said}-y 'settings: {{lr: 0.5}}'")
    changes = {name: value for name, value in changes.items() if value is not None}
    for given in (changes, settings := dict(settings)):
        for name in ("dataset", "network"):
            if callable(given.get(name)):
                given[name] = own.name_of(given[name])
    if twice := [name for name in settings if name in changes]:
        raise UnmaskError(f"settings={settings!r}: {twice[0]} is given beside it as well")
    return PRESETS[preset].but(**changes, **settings)


def parse_setting(text: str) -> tuple[str, object]:
    """`"name=value"` as typed on a command line: the field and its value; lists as 0,50,100.
    Raises UnmaskError: there is no =."""
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals:
        raise UnmaskError(f"{text!r}: must have the form field=value")
    kind = _TYPES.get(name, str)
    if kind is str:
        return name, value
    if kind == tuple[str, ...]:
        return name, tuple(part.strip() for part in value.split(",") if part.strip())
    value = literal(value)
    if typing.get_origin(kind) is tuple and not isinstance(value, (list, tuple)):
        value = (value,) if value != "" else ()
    return name, value


def literal(text: str):
    """A value as typed: a Python literal where it is one, or else the text."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError):
        return text
    return list(value) if isinstance(value, tuple) else value  # papermill writes tuples as text


def bad(name: str, value, allowed: str) -> UnmaskError:
    """What is said of a value that is not allowed."""
    shown = list(value) if isinstance(value, tuple) else value
    return UnmaskError(f"{name}={shown!r}: must be {allowed}")


_TYPES = typing.get_type_hints(Experiment)
_FIELDS = {field.name: field for field in dataclasses.fields(Experiment)}


def _typed(name: str, value):
    """`value` as the field's type: whole numbers pass as floats, lists as tuples, all else as
    is."""
    kind = _TYPES[name]
    if typing.get_origin(kind) is not tuple:
        return _scalar(name, value, kind)
    (item, _) = typing.get_args(kind)
    if not isinstance(value, (tuple, list)):
        raise bad(name, value, f"a list of {item.__name__}")
    return tuple(_scalar(name, part, item) for part in value)


def _scalar(name: str, value, kind: type):
    may_be_all = _FIELDS[name].metadata["rule"] in (_ALL, _SOME)
    if may_be_all and isinstance(value, str) and value == "all":
        return 0
    if isinstance(value, bool) or (kind is not float and not isinstance(value, kind)):
        raise bad(name, value, f"of type {kind.__name__}")
    if kind is not float:
        return value
    if not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise bad(name, value, "of type float and finite")
    return float(value)


def meanings() -> dict[str, str]:
    """What each field means, by name."""
    return tomllib.loads(Path(__file__).with_name("fields.toml").read_text())


def _read_presets() -> dict[str, Experiment]:
    written = tomllib.loads(Path(__file__).with_name("presets.toml").read_text())
    for name, values in written.items():
        if like := values.pop("like", None):
            written[name] = written[like] | values
    return {name: Experiment(preset=name, **values) for name, values in written.items()}


PRESETS = _read_presets()
