"""Training: stochastic gradient descent from any step and state, within a mask."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import data, networks, processes, pruning
from .errors import UnmaskError
from .experiments import Experiment
from .networks import State
from .store import Store


def together(experiment: Experiment, device: torch.device) -> int:
    """How many replicates to train side by side.

    Several where each gets to the bit what it would get alone, so that results do not depend on who was with it: of
    networks for signals, on a CPU. More than six gain nothing there.
    """
    return 6 if experiment.network.startswith("resnet1d") and device.type == "cpu" else 1


def generator(*names) -> torch.Generator:
    """A random generator of its own for every purpose, seeded from the names: experiment seed, purpose, level, ..."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def learning_rate(experiment: Experiment, step: int) -> float:
    """The step schedule: `lr`, multiplied by `lr_decay` at each milestone passed; before, linear warm-up."""
    passed = sum(step >= round(share * experiment.steps, 6) for share in experiment.milestones)
    warmup = experiment.warmup * experiment.steps
    return experiment.lr * experiment.lr_decay ** passed * min(1.0, (step + 1) / warmup if warmup else 1.0)


class Start(NamedTuple):
    """Where a training starts from.

    `state`: the network's state. `mask`: boolean tensors under the names of the prunable weights. `order`: names that
    seed the data order; see `batches`. `threshold`: of the cut that made the mask from a solution, if there was one.
    """

    state: State
    mask: pruning.Mask
    order: tuple
    threshold: float = 0.0


def batches(experiment: Experiment, split: data.Split | data.Stream, orders: Sequence[tuple], start: int, stop: int,
            ) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of steps `start` to `stop` for replicates that each have a data order of their own.

    Each epoch is one permutation of the samples, a pure function of (order, epoch), and so is how each sample is
    augmented; the incomplete last batch is dropped. A run that starts late sees what a run from step 0 would see from
    there on. Of several processes each reads its share of every batch.

    Yields:
        Inputs (batch, replicates * channels, ...) and labels (replicates * batch).
    """
    return split.read(_epochs(experiment, len(split.y), orders, start, stop))


def _epochs(experiment: Experiment, samples: int, orders: Sequence[tuple], start: int, stop: int,
            ) -> Iterator[data.Batch]:
    size, share = experiment.batch_size, experiment.batch_size // processes.count()
    for step in range(start, stop):
        epoch, batch = divmod(step, samples // size)
        if batch == 0 or step == start:
            shuffled = torch.stack([torch.randperm(samples, generator=generator(*order, epoch)) for order in orders])
            draws = torch.zeros_like(shuffled) if experiment.augmentation == "none" else torch.stack([
                torch.randint(2**62, (samples,), generator=generator(*order, epoch, "augmentation")) for order in orders])
        here = slice(batch * size + processes.rank() * share, batch * size + (processes.rank() + 1) * share)
        yield data.Batch(shuffled[:, here], draws[:, here])


def train(experiment: Experiment, split: data.Split | data.Stream, replicates: Sequence[Start], start: int = 0,
          snapshots: Iterable[int] = (), lr: float | None = None, store: Store | None = None,
          look: Callable[[Start, State], State] | None = None) -> list[dict[int, State]]:
    """Train each replicate within its mask from step `start` to the end of the schedule, or to the last snapshot.

    A state is projected onto its mask's axial subspace first, and after every update, so pruned weights are exactly
    zero at all times. Momentum starts at zero, also when rewinding. Replicates do not influence each other: networks for
    signals get, to the bit, what they would get alone, others up to rounding.

    Under torchrun every process computes the gradient of its share of the batch; gradients are averaged by torch's
    DistributedDataParallel, and batch norm sees the whole batch.

    Args:
        split: training data, on the device to train on.
        replicates: states at step `start`, masks and data orders.
        snapshots: steps at which to record the states; the end of the schedule if none are given.
        lr: a constant learning rate, in place of the schedule's.
        store: where to keep the training once a minute, until what comes of it is stored and `Store.finish` is called;
            if it is there, it is resumed, to the same bits.
        look: what to record of each replicate at the snapshots but the last, tensors of one row; the state if not given.

    Returns:
        For each replicate, its state at each snapshot, by step.

    Raises:
        UnmaskError: a snapshot is before `start` or beyond the end, a replicate's weights are no longer finite, or
            several processes cannot share the batch equally, or not at all as the network is for signals.
    """
    e = experiment
    snapshots = sorted(set(snapshots)) or [e.steps]
    if not start <= snapshots[0] <= snapshots[-1] <= e.steps:
        raise UnmaskError(f"snapshots={snapshots}: must be between start ({start}) and steps ({e.steps})")
    if e.batch_size % processes.count():
        raise UnmaskError(f"batch_size={e.batch_size}: must be a multiple of the {processes.count()} processes")
    if processes.count() > 1 and e.network.startswith("resnet1d"):
        raise UnmaskError(f"network={e.network!r}: is trained by one process; run it without torchrun")

    count, orders = len(replicates), [replicate.order for replicate in replicates]
    network = networks.build(e, count).to(split.device)
    networks.load_state(network, networks.stack([pruning.apply(r.mask, r.state) for r in replicates]))
    weights, alive = _as_vector(network, networks.stack([r.mask for r in replicates]))
    parameters = list(network.parameters())
    velocity = torch.zeros_like(weights)
    logits_of = network if processes.count() == 1 else DistributedDataParallel(network)
    unfinished = Unfinished(store, e, replicates, start, snapshots, lr, look)

    def seen(step):
        state = networks.state_of(network)
        if look is None or step == snapshots[-1]:
            return state
        return networks.stack([look(*each) for each in zip(replicates, networks.unstack(state, count))])

    recorded = {start: seen(start)}
    begin = unfinished.load(network, velocity, recorded) or start

    with networks.kernels(network, e.precision), single_thread():
        for step, (x, y) in enumerate(batches(e, split, orders, begin, snapshots[-1]), begin):
            loss = F.cross_entropy(logits_of(x), y, reduction="sum") * count / len(y)  # replicates' mean losses, added
            network.zero_grad()
            loss.backward()
            with torch.no_grad():
                gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
                update = velocity.mul_(e.momentum).add_(gradient) if e.momentum else gradient
                if e.weight_decay:
                    update.add_(weights, alpha=e.weight_decay)
                weights.sub_(update, alpha=learning_rate(e, step) if lr is None else lr).mul_(alive)
            if step + 1 in snapshots:
                recorded[step + 1] = seen(step + 1)
            unfinished.save(step + 1, network, velocity, recorded, last=step + 1 == snapshots[-1])
    states = {step: networks.unstack(recorded[step], count) for step in snapshots}
    for replicate, state in zip(replicates, states[snapshots[-1]]):
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise UnmaskError(f"training diverged: weights are not finite after step {snapshots[-1]} with lr={e.lr} "
                              f"and data order {'/'.join(map(str, replicate.order))}")
    return [{step: states[step][i] for step in snapshots} for i in range(count)]


class Unfinished:
    """A training on its way, in the store once a minute, under names that follow from where and how it started.

    Of two names in turns, so that there is always one that is whole. A training of less than a minute leaves nothing.
    Replicates grouped in another way, as for another number of processes, start again.
    """

    SECONDS = 60.0

    def __init__(self, store: Store | None, experiment: Experiment, replicates: Sequence[Start], start: int,
                 snapshots: Sequence[int], lr: float | None, look: Callable | None):
        self.store, self.saved, self.names = store, time.monotonic(), []
        if store is not None:
            digest = hashlib.sha256(repr((start, snapshots, lr, look and look.__qualname__, [r.order for r in replicates])).encode())
            for replicate in replicates:
                for part in (replicate.state, replicate.mask):
                    for _, tensor in sorted(part.items()):
                        digest.update(tensor.numpy().tobytes())
            name = f"{experiment.recipe}/unfinished/{digest.hexdigest()[:16]}"
            self.names = [f"{name}-{turn}" for turn in "ab"]

    def load(self, network: nn.Module, velocity: Tensor, recorded: dict[int, State]) -> int | None:
        """Put network, velocity and snapshots where they were; the number of steps done, or None if there is nothing."""
        found = [tensors for name in self.names if (tensors := self.store.tensors(name))]
        if not found:
            return None
        self.store.unfinished.update(self.names)
        found = max(found, key=lambda tensors: int(tensors["step"]))
        parts = defaultdict(dict)
        for name, tensor in found.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        networks.load_state(network, parts["network"])
        velocity.copy_(found["velocity"])
        recorded |= {int(part): state for part, state in parts.items() if part.isdecimal()}
        return int(found["step"])

    def save(self, step: int, network: nn.Module, velocity: Tensor, recorded: dict[int, State], last: bool) -> None:
        """Store all this if the last time was a minute ago; at the end, if it was stored before."""
        if self.store is None or processes.rank() > 0:
            return
        stored_before = self.names[0] in self.store.unfinished
        if time.monotonic() - self.saved < self.SECONDS and not (last and stored_before):
            return
        states = {"network": networks.state_of(network)} | {str(at): state for at, state in recorded.items()}
        tensors = {f"{part}/{name}": tensor for part, state in states.items() for name, tensor in state.items()}
        self.store.unfinished.update(self.names)
        self.store.put_tensors(self.names[0], tensors | {"velocity": velocity.cpu(), "step": torch.tensor(step)}, wait=False)
        self.names.reverse()
        self.saved = time.monotonic()


def train_all(experiment: Experiment, split: data.Split | data.Stream, replicates: Sequence[Start], *arguments,
              **options) -> list[dict[int, State]]:
    """`train` for any number of replicates, as many side by side as go `together`."""
    size = together(experiment, split.device)
    groups = (replicates[first:first + size] for first in range(0, len(replicates), size))
    return [states for group in groups for states in train(experiment, split, group, *arguments, **options)]


class Performance(NamedTuple):
    """Error: share of wrong predictions, in [0, 1]. Loss: mean cross-entropy, in nats."""

    error: float
    loss: float


@torch.no_grad()
def evaluate(network: nn.Module, split: data.Split | data.Stream) -> Performance:
    """Error and loss of the network as it is, with running batch-norm statistics.

    Several processes evaluate a share of the samples each.
    """
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=split.device)
    with networks.kernels(network):
        for x, y in split.chunks(500, processes.rank(), processes.count()):
            logits = network(x).double()
            sums += torch.stack([(logits.argmax(1) != y).sum(), F.cross_entropy(logits, y, reduction="sum")])
    wrong, loss = (processes.mean(sums) * processes.count() / len(split.y)).tolist()
    return Performance(wrong, loss)


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
def single_thread():
    """One thread within, in torch and in SciPy's BLAS: results must not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def resolve_device(name: str) -> torch.device:
    """The device a preset's `device` names; "auto" is a GPU if there is one (under torchrun,
    each process's own), else the CPU.

    Raises:
        UnmaskError: no such device on this machine.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if count else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"cuda:0 to cuda:{count - 1}" if count else "no GPU"
        raise UnmaskError(f"device={name!r}: this machine has {found}; use 'auto' or 'cpu'")
    return device
