"""Training: stochastic gradient descent from any step and state, within a mask."""

import contextlib
import functools
import hashlib
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import graphs, networks, own, processes, pruning
from .data import Batch, Samples
from .errors import UnmaskError
from .experiments import Experiment, bad
from .networks import State
from .store import Store


class Start(NamedTuple):
    """Where a training starts from.

    `state`: the network's state. `mask`: boolean tensors under the names of the prunable weights.
    `order`: names that seed the data order; see `batches`. `threshold`: of the cut that made the
    mask from a solution, if there was one."""

    state: State
    mask: pruning.Mask
    order: tuple
    threshold: float = 0.0


class Trained(NamedTuple):
    """What a training leaves, by step: states, and numbers that were observed on the way."""

    states: dict[int, State]
    observed: dict[int, float]


def train(
    experiment: Experiment,
    split: Samples,
    replicates: Sequence[Start],
    start: int = 0,
    snapshots: Iterable[int] = (),
    lr: float | None = None,
    store: Store | None = None,
    observe: Callable[[Start, State], float] | None = None,
    observed_at: Iterable[int] = (),
) -> list[Trained]:
    """Train each replicate within its mask from step `start` to the last snapshot.

    A state is projected onto its mask's axial subspace first, and after every update, so pruned
    weights are exactly zero at all times. Momentum starts at zero, also when rewinding. Each
    replicate gets, to the bit, what it would get alone.

    Under torchrun every process computes the gradient of its share of the batch; gradients are
    averaged by torch's DistributedDataParallel, and batch norm sees the whole batch.

    Args:
        split: training data, on the device to train on.
        replicates: states at step `start`, masks and data orders.
        snapshots: steps at which to record the states; the end of the schedule if none are given.
        lr: a constant learning rate, in place of the schedule's.
        store: where to keep the training once a minute, until what comes of it is stored and
            `Store.finish` is called; if it is there, it is resumed, to the same bits.
        observe: a number of a replicate to record at the steps `observed_at`.

    Returns:
        For each replicate, its states at the snapshots and what was observed. A training that
        diverges ends in weights that are not finite; see `is_finite`.
    Raises UnmaskError: a snapshot is before `start` or beyond the end, or several processes cannot
    share the batch equally, or not at all as the network is for signals or a user's own."""
    e, shared = experiment, processes.count()
    snapshots = sorted(set(snapshots)) or [e.steps]
    if not start <= snapshots[0] <= snapshots[-1] <= e.steps:
        raise bad("snapshots", snapshots, f"between start ({start}) and steps ({e.steps})")
    noisy = own.is_own(e.network)  # it may have dropout, or the like
    if noisy and len(replicates) > 1:
        raise UnmaskError(f"network={e.network!r}: is trained one at a time")
    if e.batch_size % shared:
        raise bad("batch_size", e.batch_size, f"a multiple of the {shared} processes")
    if shared > 1 and (e.known_network.signals or noisy):
        said = f"network={e.network!r}: is trained by one process; run it without torchrun"
        raise UnmaskError(said)

    # On a GPU every replicate is a branch of one graph; on a CPU those for signals are one network.
    recorded = is_recorded(e, split.device)
    grouped = e.known_network.signals and not recorded
    groups = [list(replicates)] if grouped else [[replicate] for replicate in replicates]
    runs = [Run(e, group, split.device, recorded) for group in groups]
    unfinished = Unfinished(runs, snapshots, observe, sorted(observed_at))
    begin = unfinished.resume(store, e, start, lr)

    orders = [replicate.order for replicate in replicates]
    kernels = networks.kernels(runs[0].network, e.precision)
    # Streams and graphs are those of the current device; a user's network draws from the global
    # generators, which stay as they were.
    current = torch.cuda.device_of(runs[0].weights)
    drawn_from = [split.device] if split.device.type == "cuda" else []
    forked = torch.random.fork_rng(drawn_from, enabled=noisy)
    with kernels, single_thread(), forked, own.global_draws(), current:
        advance = graphs.Graph(e, runs) if recorded else graphs.Loop(e, runs)
        for step, (x, y) in enumerate(batches(e, split, orders, begin, snapshots[-1]), begin):
            if noisy:  # a pure function of order and step, as the batch is
                seed = generator(*orders[0], "noise", step).initial_seed()
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % 2**32)
            advance(x, y, learning_rate(e, step) if lr is None else lr)
            unfinished.record(step + 1)
            unfinished.keep(step + 1)
    return unfinished.by_replicate()


class Run:
    """Replicates on their way, as one network, all its parameters in one vector; to be `recorded`
    or not."""

    def __init__(self, e: Experiment, replicates: Sequence[Start], device, recorded=False):
        self.experiment, self.replicates, self.count = e, replicates, len(replicates)
        self.network = networks.build(e, self.count).to(device)
        if recorded:
            networks.prepare_recording(self.network, e)
        else:
            for parameter in self.network.parameters():  # a user's may lie in memory anyhow
                parameter.data = parameter.data.contiguous()
        projected = [pruning.apply(replicate.mask, replicate.state) for replicate in replicates]
        networks.load_state(self.network, networks.stack(projected))
        masks = networks.stack([replicate.mask for replicate in replicates])
        self.weights, self.alive = _as_vector(self.network, masks)
        self.velocity = torch.zeros_like(self.weights)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        distributed = processes.count() > 1
        self.logits_of = DistributedDataParallel(self.network) if distributed else self.network

    def advance(self, x: Tensor, y: Tensor, rate: float | Tensor) -> None:
        """One step of stochastic gradient descent with momentum, within the masks."""
        e = self.experiment
        # The sum of the replicates' mean losses: each gets the gradient of its own.
        loss = F.cross_entropy(self.logits_of(x), y, reduction="sum") * self.count / len(y)
        self.network.zero_grad()
        loss.backward()
        with torch.no_grad():
            # As torch.optim.SGD, all in one vector; zero for a parameter that the loss ignores.
            pairs = ((p, p.grad) for p in self.parameters)
            gradients = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in pairs]
            gradient = torch.cat(list(map(_flat, gradients, self.parameters)))
            update = self.velocity.mul_(e.momentum).add_(gradient) if e.momentum else gradient
            if e.weight_decay:
                update.add_(self.weights, alpha=e.weight_decay)
            if torch.is_tensor(rate):  # of a graph, to which a number is a constant
                self.weights.addcmul_(update, rate, value=-1)
            else:
                self.weights.sub_(update, alpha=rate)
            # Back into the axial subspace: pruned weights stay exactly zero.
            self.weights.mul_(self.alive)

    def changing(self) -> list[Tensor]:
        """All that a step changes."""
        return [self.weights, self.velocity, *self.network.buffers()]

    def states(self) -> list[State]:
        """A copy of each replicate's state."""
        return networks.unstack(networks.state_of(self.network), self.count)


def is_finite(state: State) -> bool:
    """Has the training not diverged?"""
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


def learning_rate(experiment: Experiment, step: int) -> float:
    """The schedule: `lr`, multiplied by `lr_decay` at each milestone passed, or falling to
    `lr * lr_decay` at the last step along a line or half a cosine; before, linear warm-up."""
    e, share = experiment, step / max(1, experiment.steps - 1)
    passed = sum(step >= round(milestone * e.steps, 6) for milestone in e.milestones)
    left = {"step": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
    rate = e.lr * (left[e.schedule] + (1 - left[e.schedule]) * e.lr_decay) * e.lr_decay**passed
    warmup = e.warmup * e.steps
    return rate * min(1.0, (step + 1) / warmup if warmup else 1.0)


def batches(
    experiment: Experiment, split: Samples, orders: Sequence[tuple], start: int, stop: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of steps `start` to `stop` for replicates that each have their own data order.

    Each epoch is one permutation of the samples, a pure function of (order, epoch), and so is how
    each sample is augmented; the incomplete last batch is dropped. A run that starts late sees what
    a run from step 0 would see from there on. Of several processes each reads its share.

    Yields:
        Inputs (batch, replicates * channels, ...) and labels (replicates * batch)."""
    e, samples = experiment, len(split.y)
    share = e.batch_size // processes.count()

    def drawn() -> Iterator[Batch]:
        for step in range(start, stop):
            epoch, batch = divmod(step, samples // e.batch_size)
            if batch == 0 or step == start:
                draws = [_epoch(e, samples, (*order, epoch)) for order in orders]
                shuffled, augmented = (torch.stack(parts) for parts in zip(*draws))
                if not e.streamed:  # all of an epoch at once, as every copy to a GPU waits for it
                    shuffled, augmented = shuffled.to(split.device), augmented.to(split.device)
            first = batch * e.batch_size + processes.rank() * share
            here = slice(first, first + share)
            yield shuffled[:, here], augmented[:, here]

    return split.read(drawn())


def _epoch(e: Experiment, samples: int, names: tuple) -> tuple[Tensor, Tensor]:
    """One replicate's order of the samples, and a draw for how each is augmented."""
    shuffled = torch.randperm(samples, generator=generator(*names))
    if e.augmentation == "none":
        return shuffled, torch.zeros_like(shuffled)
    return shuffled, torch.randint(2**62, (samples,), generator=generator(*names, "augmentation"))


def generator(*names) -> torch.Generator:
    """A random generator of its own for every purpose, seeded from the names: experiment seed,
    purpose, level, ..."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _as_vector(network: nn.Module, mask: pruning.Mask) -> tuple[Tensor, Tensor]:
    """Lay the parameters out in one vector, of which they become views, and the mask beside it.

    One update of one vector costs a tenth of one update for each of some thirty small tensors."""
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    weights = torch.cat([_flat(p.detach(), p) for p in named.values()])
    kept = [_flat(mask.get(name, torch.ones_like(p)), p) for name, p in named.items()]
    alive = torch.cat([part.to(weights) for part in kept])
    for parameter, part in zip(named.values(), weights.split([p.numel() for p in named.values()])):
        parameter.data = part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
    return weights, alive


def _flat(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor's elements in the order in which those of one `like` it are in memory."""
    if like.is_contiguous():
        return tensor.flatten()
    return tensor.permute(0, 2, 3, 1).flatten()  # channels last


class Unfinished:
    """A training on its way: network and velocity as they are, and what was recorded until now.

    It is kept in the store once a minute, named after where and how it started: by two names in
    turns, so that there is always one that is whole. A training of less than a minute leaves
    nothing. Replicates grouped in another way, as for another number of processes, start again."""

    SECONDS = 60.0

    def __init__(self, runs, snapshots, observe, observed_at):
        self.runs, self.replicates = runs, [start for run in runs for start in run.replicates]
        self.snapshots, self.observe, self.observed_at = snapshots, observe, observed_at
        self.states: dict[int, list[State]] = {}
        self.observed: dict[int, list[float]] = {}
        self.saved, self.names, self.store = time.monotonic(), [], None

    def resume(self, store: Store | None, e: Experiment, start: int, lr: float | None) -> int:
        """Go on where it was kept last, or else at `start`: the number of steps done."""
        if store is not None:
            self.store, name = store, f"{e.recipe}/unfinished/{self._digest(start, lr)}"
            self.names = [f"{name}-{turn}" for turn in "ab"]
        found = {name: tensors for name in self.names if (tensors := store.tensors(name))}
        if not found:
            self.record(start)
            return start
        store.unfinished.update(self.names)
        parts = defaultdict(dict)
        latest = max(found, key=lambda name: int(found[name]["step/"]))
        self.names.sort(key=latest.__eq__)  # the other one is written next
        for name, tensor in found[latest].items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        step, count = int(parts.pop("step")[""]), len(self.replicates)
        states = networks.unstack(parts.pop("network"), len(self.runs))
        velocities = parts.pop("velocity")[""].chunk(len(self.runs))
        for run, state, velocity in zip(self.runs, states, velocities):
            networks.load_state(run.network, state)
            run.velocity.copy_(velocity)
        observed = parts.pop("observed", {}).items()
        self.observed = {int(at): numbers.tolist() for at, numbers in observed}
        self.states = {int(at): networks.unstack(state, count) for at, state in parts.items()}
        return step

    def _digest(self, *about) -> str:
        orders = [replicate.order for replicate in self.replicates]
        layouts = [parameter.stride() for parameter in self.runs[0].parameters]
        about = *about, self.snapshots, self.observed_at, orders, layouts
        digest = hashlib.sha256(repr(about).encode())
        for replicate in self.replicates:
            for part in (replicate.state, replicate.mask):
                for _, tensor in sorted(part.items()):
                    digest.update(tensor.flatten().view(torch.uint8).numpy())  # also of bfloat16
        return digest.hexdigest()[:16]

    def record(self, step: int) -> None:
        """Record what is wanted of this step."""
        if step in self.snapshots or step in self.observed_at:
            states = [state for run in self.runs for state in run.states()]
            if step in self.snapshots:
                self.states[step] = states
            if step in self.observed_at:
                self.observed[step] = list(map(self.observe, self.replicates, states))

    def keep(self, step: int) -> None:
        """Store it if the last time was a minute ago; at the end, if it was stored before."""
        if self.store is None or processes.rank() > 0:
            return
        last = step == self.snapshots[-1] and self.names[0] in self.store.unfinished
        if time.monotonic() - self.saved < self.SECONDS and not last:
            return
        velocity = torch.cat([run.velocity for run in self.runs]).cpu()
        parts = {"velocity": {"": velocity}, "step": {"": torch.tensor(step)}}
        parts["network"] = networks.stack([networks.state_of(run.network) for run in self.runs])
        parts |= {str(at): networks.stack(states) for at, states in self.states.items()}
        numbers = {str(at): torch.tensor(n, dtype=torch.double) for at, n in self.observed.items()}
        parts["observed"] = numbers
        tensors = {f"{part}/{n}": w for part, state in parts.items() for n, w in state.items()}
        self.store.unfinished.update(self.names)
        self.store.put_tensors(self.names[0], tensors, wait=False)
        self.names.reverse()
        self.saved = time.monotonic()

    def by_replicate(self) -> list[Trained]:
        """What was recorded of each."""
        each = []
        for i in range(len(self.replicates)):
            states = {step: states[i] for step, states in self.states.items()}
            numbers = {step: numbers[i] for step, numbers in sorted(self.observed.items())}
            each.append(Trained(states, numbers))
        return each


def is_recorded(e: Experiment, device: torch.device) -> bool:
    """Are steps recorded? On a GPU, but for streams, a user's own and several processes."""
    alone = e.streamed or own.is_own(e.network) or processes.count() > 1
    return device.type == "cuda" and not alone


def replicates_at_once(experiment: Experiment, device: torch.device) -> int:
    """How many replicates to train side by side.

    Several where each gets to the bit what it would get alone, so that results do not depend on who
    was with it: of networks for signals on a CPU, where more than 16 gain little; of all but
    streams and a user's own on a GPU."""
    if is_recorded(experiment, device):
        return graphs.BRANCHES
    return 16 if experiment.known_network.signals and device.type == "cpu" else 1


def train_all(
    experiment: Experiment, split: Samples, replicates: Sequence[Start], *arguments, **options
) -> list[Trained]:
    """`train` for any number of replicates, as many side by side as `replicates_at_once`, or as the
    memory of a GPU allows."""
    size, trained = replicates_at_once(experiment, split.device), []
    while len(trained) < len(replicates):
        group = replicates[len(trained) : len(trained) + size]
        try:
            trained += train(experiment, split, group, *arguments, **options)
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            size = len(group) // 2
            torch.cuda.empty_cache()
    return trained


def step_seconds(e: Experiment, split: Samples, state: State, mask) -> float:
    """How long a step takes, for each of as many seeds as are trained side by side: the fastest of
    three, without what is set up once."""
    together = min(replicates_at_once(e, split.device), e.seeds)
    replicates = [Start(state, mask, ("timed",))] * together

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        train(e, split, replicates, snapshots=[steps])
        return time.perf_counter() - began

    # a GPU's graph is recorded in the first step, and then is much faster
    last = min(e.steps, 5 if split.device.type == "cpu" else 200)
    first = 0 if split.device.type == "cpu" else last // 10
    least = min(seconds(last) - seconds(first) for _ in range(3))
    return max(least, 1e-6) / (last - first) / together


class Performance(NamedTuple):
    """Error: share of wrong predictions, in [0, 1]. Loss: mean cross-entropy, in nats."""

    error: float
    loss: float


@torch.no_grad()
def evaluate(network: nn.Module, split: Samples) -> Performance:
    """Error and loss of the network as it is, with running batch-norm statistics.

    Several processes evaluate a share of the samples each."""
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=split.device)
    with networks.kernels(network):
        for x, y in split.chunks(500, processes.rank(), processes.count()):
            logits = network(x).double()
            wrong = (logits.argmax(1) != y).sum()
            sums += torch.stack([wrong, F.cross_entropy(logits, y, reduction="sum")])
    return Performance(*(processes.mean(sums) * processes.count() / len(split.y)).tolist())


@contextlib.contextmanager
def single_thread():
    """One thread within, in torch and in SciPy's BLAS: results must not depend on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _blas().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _blas() -> ThreadpoolController:
    """NumPy's and SciPy's, looked for once: that takes longer than a small task."""
    import scipy.linalg  # noqa: F401, which loads its own

    return ThreadpoolController().select(user_api="blas")


def resolve_device(name: str) -> torch.device:
    """The device a preset's `device` names; "auto" is a GPU if there is one (under torchrun, each
    process's own), else the CPU.
    Raises UnmaskError: no such device on this machine."""
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if count else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"cuda:0 to cuda:{count - 1}" if count else "no GPU"
        raise UnmaskError(f"device={name!r}: this machine has {found}; use 'auto' or 'cpu'")
    return device
