"""Training: stochastic gradient descent from any step and state, within a mask."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import networks, pruning
from .data import Split
from .errors import UnmaskError
from .experiments import Experiment
from .networks import State

TOGETHER = 6  # replicates trained side by side; more gain nothing on a CPU, and results do not depend on it


def generator(*names) -> torch.Generator:
    """A random generator of its own for every purpose, seeded from the names: experiment seed, purpose, level, ..."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def learning_rate(experiment: Experiment, step: int) -> float:
    """The step schedule: `lr`, multiplied by `lr_decay` at each milestone passed."""
    passed = sum(step >= share * experiment.steps for share in experiment.milestones)
    return experiment.lr * experiment.lr_decay ** passed


class Start(NamedTuple):
    """Where a training starts from.

    `state`: the network's state. `mask`: boolean tensors under the names of the prunable weights. `order`: names that
    seed the data order; see `batches`.
    """

    state: State
    mask: pruning.Mask
    order: tuple


def batches(experiment: Experiment, split: Split, orders: Sequence[tuple], start: int, stop: int) -> Iterable[Split]:
    """The batches of steps `start` to `stop` for replicates that each have a data order of their own.

    Each epoch is one permutation of the samples, a pure function of (order, epoch); the incomplete last batch is
    dropped. A run that starts late sees what a run from step 0 would see from there on.

    Yields:
        Inputs (batch, replicates, length) and labels (replicates * batch).
    """
    size, count = experiment.batch_size, len(split.y) // experiment.batch_size
    for step in range(start, stop):
        epoch, batch = divmod(step, count)
        if batch == 0 or step == start:
            shuffled = [torch.randperm(len(split.y), generator=generator(*order, epoch)) for order in orders]
            x = torch.cat([split.x[permutation] for permutation in shuffled], 1)
            y = torch.stack([split.y[permutation] for permutation in shuffled])
        here = slice(batch * size, (batch + 1) * size)
        yield Split(x[here], y[:, here].flatten())


def train(experiment: Experiment, split: Split, replicates: Sequence[Start], start: int = 0,
          snapshots: Iterable[int] = (), lr: float | None = None) -> list[dict[int, State]]:
    """Train each replicate within its mask from step `start` to the end of the schedule, or to the last snapshot.

    A state is projected onto its mask's axial subspace first, and after every update, so pruned weights are exactly
    zero at all times. Momentum starts at zero, also when rewinding. Replicates do not influence each other: each gets,
    to the bit, what it would get alone.

    Args:
        split: training data, on the device to train on.
        replicates: states at step `start`, masks and data orders.
        snapshots: steps at which to record the states; the end of the schedule if none are given.
        lr: a constant learning rate, in place of the schedule's.

    Returns:
        For each replicate, its state at each snapshot, by step.

    Raises:
        UnmaskError: a snapshot is before `start` or beyond the end, or a replicate's weights are no longer finite.
    """
    e = experiment
    snapshots = sorted(set(snapshots)) or [e.steps]
    if not start <= snapshots[0] <= snapshots[-1] <= e.steps:
        raise UnmaskError(f"snapshots={snapshots}: must be between start ({start}) and steps ({e.steps})")

    count, orders = len(replicates), [replicate.order for replicate in replicates]
    network = networks.build(e, count).to(split.x.device)
    networks.load_state(network, networks.stack([pruning.apply(r.mask, r.state) for r in replicates]))
    weights, alive = _as_vector(network, networks.stack([r.mask for r in replicates]))
    parameters = list(network.parameters())
    velocity = torch.zeros_like(weights)
    recorded = {start: networks.state_of(network)}

    with native_kernels(), single_thread():
        for step, (x, y) in enumerate(batches(e, split, orders, start, snapshots[-1]), start):
            loss = F.cross_entropy(network(x), y, reduction="sum") / e.batch_size  # replicates' mean losses, added
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
            with torch.no_grad():
                velocity.mul_(e.momentum).add_(gradient).add_(weights, alpha=e.weight_decay)
                weights.sub_(velocity, alpha=learning_rate(e, step) if lr is None else lr).mul_(alive)
            if step + 1 in snapshots:
                recorded[step + 1] = networks.state_of(network)
    states = {step: networks.unstack(recorded[step], count) for step in snapshots}
    for replicate, state in zip(replicates, states[snapshots[-1]]):
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise UnmaskError(f"training diverged: weights are not finite after step {snapshots[-1]} with lr={e.lr} "
                              f"and data order {'/'.join(map(str, replicate.order))}")
    return [{step: states[step][i] for step in snapshots} for i in range(count)]


def train_all(experiment: Experiment, split: Split, replicates: Sequence[Start], start: int) -> list[State]:
    """The state of each replicate at the end of the schedule, `TOGETHER` side by side at a time; see `train`."""
    groups = (replicates[first:first + TOGETHER] for first in range(0, len(replicates), TOGETHER))
    return [states[experiment.steps] for group in groups for states in train(experiment, split, group, start)]


class Performance(NamedTuple):
    """Error: share of wrong predictions, in [0, 1]. Loss: mean cross-entropy, in nats."""

    error: float
    loss: float


@torch.no_grad()
def evaluate(network: nn.Module, split: Split) -> Performance:
    """Error and loss of the network as it is, with running batch-norm statistics."""
    network.eval()
    with native_kernels():
        logits = torch.cat([network(x) for x in split.x.split(1000)]).double()
    wrong = (logits.argmax(1) != split.y).double().mean()
    return Performance(float(wrong), float(F.cross_entropy(logits, split.y)))


def _as_vector(network: nn.Module, mask: pruning.Mask) -> tuple[Tensor, Tensor]:
    """Lay the parameters out in one vector, of which they become views, and the mask beside it.

    One update of one vector costs a tenth of one update for each of some thirty small tensors.
    """
    named = dict(network.named_parameters())
    weights = torch.cat([p.detach().flatten() for p in named.values()])
    alive = torch.cat([mask[n].flatten().to(p) if n in mask else torch.ones_like(p).flatten()
                       for n, p in named.items()])
    for parameter, part in zip(named.values(), weights.split([p.numel() for p in named.values()])):
        parameter.data = part.view_as(parameter)
    return weights, alive


@contextlib.contextmanager
def native_kernels():
    """On a CPU, convolve with torch's own kernels: for networks this small they are faster than oneDNN's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builds warn about TF32 whenever oneDNN's flags are touched
        with torch.backends.mkldnn.flags(enabled=False):
            yield


@contextlib.contextmanager
def single_thread():
    """One thread within, whatever the caller had: results must not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_device(name: str) -> torch.device:
    """The device a preset's `device` names; "auto" is the first GPU if there is one, else the CPU.

    Raises:
        UnmaskError: no such device on this machine.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"cuda:0 to cuda:{count - 1}" if count else "no GPU"
        raise UnmaskError(f"device={name!r}: this machine has {found}; use 'auto' or 'cpu'")
    return device
