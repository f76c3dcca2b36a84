"""The lab: an experiment with its network, its data and its store, where networks are trained and
measured.

Every state is a function of the experiment's recipe, the seed and the place in a chain; each is
computed once and then read from the store.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch

from . import chains, data, networks, own, pruning
from .barriers import grid, segment
from .chains import CHAINS, RETRAININGS, Place
from .errors import Degenerate
from .experiments import Experiment
from .networks import State
from .pruning import Mask
from .store import Store
from .train import Performance, Start, Trained, evaluate, generator, is_finite, learning_rate
from .train import resolve_device, single_thread, train_all

# Shares of a retraining at which to look at its weights: densely at first, where most happens.
_LOOKS = (0, 0.01, 0.02, 0.03, 0.05, 0.075, *(i / 20 for i in range(2, 21)))


class Ticket(NamedTuple):
    """A trained sparse network: its final state, zero where pruned, its mask, and of a chain its
    course, the share of survivors below the cut's threshold by step of the retraining."""

    state: State
    mask: Mask
    course: dict[int, float] = {}

    def tensors(self) -> State:
        """State and mask in one dict, the mask's names after `mask:`."""
        return self.state | {f"mask:{name}": kept for name, kept in self.mask.items()}


class Lab:
    """Access to everything the experiment trains. Levels count from 0 (dense).
    Raises UnmaskError: the device does not exist, the store cannot be written, the network is too
    large for this machine, or the levels would leave no weight."""

    def __init__(self, experiment: Experiment, store: Store):
        self.experiment, self.store = experiment, store
        self.device = resolve_device(experiment.device)
        networks.check_size(experiment)
        self.network = networks.build(experiment).to(self.device)
        self.dense_mask = pruning.dense_mask(self.network, experiment.never_pruned)
        self.total = pruning.survivors(self.dense_mask)
        self.survivors(experiment.levels)  # raises where there would be none

    @functools.cached_property
    def data(self) -> data.Data:
        """The data set, on the device."""
        with single_thread():  # the mean of the pixels is a sum
            loaded = data.load(self.experiment, self.store)
            found = data.Data(*(split.to(self.device) for split in loaded))
        if own.is_own(self.experiment.network):
            networks.check_own(self.experiment, self.network, found.train.as_inputs(2).x)
        return found

    @functools.cached_property
    def measured(self) -> data.Data:
        """What to measure on: all test samples, and the experiment's `train_measured` others."""
        train, wanted = self.data.train, self.experiment.train_measured
        return self.data._replace(train=train.take(wanted) if wanted else train)

    @property
    def chance(self) -> float:
        """The test error of always naming the most frequent class."""
        labels = self.measured.test.y
        return 1 - float(labels.bincount().max()) / len(labels)

    def survivors(self, level: int) -> int:
        """How many prunable weights a level keeps."""
        return pruning.survivors_at(self.total, self.experiment.prune_fraction, level)

    def density(self, level: int) -> float:
        """Which share of the prunable weights a level keeps."""
        return self.survivors(level) / self.survivors(0)

    def evaluate(self, state: State, split: str = "test") -> Performance:
        """Error and loss of a state on the "test" or "train" split."""
        networks.load_state(self.network, state)
        return evaluate(self.network, getattr(self.measured, split))

    def path(self, one: State, other: State, weights=None, **options) -> pd.DataFrame:
        """Test error along the segment between two states, by default on the experiment's grid;
        see `barriers.segment`."""
        weights = grid(self.experiment.barrier_points) if weights is None else weights
        return segment(self.network, one, other, weights, self.measured, **options)

    def initial(self, seed: int) -> State:
        """The network's state at initialisation."""
        return networks.initial_state(self.experiment, generator(seed, "initialisation"))

    def rewind_point(self, seed: int, step: int) -> State:
        """`w_tau`: the dense run's state at a step before the end."""
        name = self._rewind_name(seed, step)
        stored = self.store.tensors(name, self._is_state)
        if stored is None:
            stored = self._train_dense([seed], [step])[0].states[step]
            self.store.put_tensors(name, stored)
        return stored

    def level(self, seed: int, rewind_step: int, level: int) -> Ticket:
        """`w^(L)` of iterative magnitude pruning with rewinding."""
        return self.ticket("imp", seed, rewind_step, level)

    def ticket(self, kind: str, seed: int, rewind_step: int, level: int) -> Ticket:
        """The trained network at one place.
        Raises UnmaskError: as `chains.place`."""
        return self.tickets([chains.place(self.experiment, kind, seed, rewind_step, level)])[0]

    def tickets(self, places: Sequence[Place]) -> list[Ticket]:
        """The trained networks at places; those not in the store are trained, side by side where
        they can be."""
        found = {place: self._read(place) for place in places}
        missing = [place for place, ticket in found.items() if ticket is None]
        if seeds := sorted({place.seed for place in missing if place.level == 0}):
            self._store_dense(seeds)
        self._store_sparse([place for place in missing if place.level > 0])
        return [found[place] or self._read(place) for place in places]

    def trained(self, starts: Sequence[Start], step: int, fine_tune: bool = False) -> list[State]:
        """What each start trains to, from `step` on; with `fine_tune`, at the schedule's last
        learning rate. What diverges errs as by chance."""
        e = self.experiment
        lr = learning_rate(e, e.steps - 1) if fine_tune else None
        ends = train_all(e, self.data.train, starts, step, lr=lr, store=self.store)
        return [states[e.steps] for states, _ in ends]

    def name(self, place: Place) -> str:
        """The place's name in the store."""
        folder = f"{self.experiment.recipe}/seed{place.seed}"
        if place.level == 0:
            return f"{folder}/dense"
        return f"{folder}/rewind{place.rewind_step:05d}/{place.kind}/level{place.level:02d}"

    def _rewind_name(self, seed: int, step: int) -> str:
        return f"{self.experiment.recipe}/seed{seed}/rewind{step:05d}/rewind_point"

    def _read(self, place: Place) -> Ticket | None:
        stored = self.store.tensors(self.name(place), self._is_ticket)
        if stored is None:
            return None
        state = {name: tensor for name, tensor in stored.items() if ":" not in name}
        # ties and shuffles go by the network's order, not by the store's
        mask = {name: stored[f"mask:{name}"] for name in self.dense_mask}
        course = (stored.get(f"course:{what}", torch.empty(0)) for what in ("step", "below"))
        return Ticket(state, mask, dict(zip(*(numbers.tolist() for numbers in course))))

    @functools.cached_property
    def _shapes(self) -> dict:
        """Shape and kind of every tensor of a state."""
        return {name: (t.shape, t.dtype) for name, t in networks.state_of(self.network).items()}

    def _is_state(self, stored: dict) -> bool:
        """Is it a state of this network? (Its weights need not be finite: see `_store_sparse`.)"""
        return {n: (t.shape, t.dtype) for n, t in stored.items()} == self._shapes

    def _is_ticket(self, stored: dict) -> bool:
        """The same, with a mask, and perhaps a course."""
        mask = {name: stored.get(f"mask:{name}") for name in self.dense_mask}
        fits = (
            kept is not None and kept.dtype == torch.bool and kept.shape == self._shapes[name][0]
            for name, kept in mask.items()
        )
        state = {name: tensor for name, tensor in stored.items() if ":" not in name}
        return all(fits) and self._is_state(state)

    def _put(self, place: Place, ticket: Ticket, seconds: float) -> None:
        tensors = ticket.tensors()
        if ticket.course:
            steps, below = zip(*ticket.course.items())
            tensors["course:step"] = torch.tensor(steps)
            tensors["course:below"] = torch.tensor(below, dtype=torch.float64)
        self.store.put_tensors(self.name(place), tensors, seconds)

    def _train_dense(self, seeds: Sequence[int], snapshots: Sequence[int]) -> list[Trained]:
        starts = [Start(self.initial(seed), self.dense_mask, (seed, "order", 0)) for seed in seeds]
        split = self.data.train
        return train_all(self.experiment, split, starts, snapshots=snapshots, store=self.store)

    def _store_dense(self, seeds: Sequence[int]) -> None:
        """Train dense runs to the end, and keep the experiment's rewind points on the way."""
        began, e = time.perf_counter(), self.experiment
        trained = self._train_dense(seeds, [*e.rewind_steps, e.steps])
        seconds = (time.perf_counter() - began) / len(seeds)
        diverged = []
        for seed, (states, _) in zip(seeds, trained):
            if not is_finite(states[e.steps]):
                diverged.append(chains.dense(seed))
                continue
            for step in e.rewind_steps:
                self.store.put_tensors(self._rewind_name(seed, step), states[step])
            self._put(chains.dense(seed), Ticket(states[e.steps], self.dense_mask), seconds)
        self.store.finish()
        self._refuse(diverged, e.lr)

    def _store_sparse(self, places: Sequence[Place]) -> None:
        """Train the networks at `places`, side by side where steps and learning rates are alike."""
        e, alike = self.experiment, defaultdict(list)
        for place in places:
            # fine-tuning keeps the schedule's last learning rate
            lr = learning_rate(e, e.steps - 1) if place.kind == "fine-tuned" else None
            alike[place.first_step(), lr, place.kind in CHAINS].append(place)
        for (step, lr, watched), group in alike.items():
            starts = [self.start(place) for place in group]  # may train what they start from
            began = time.perf_counter()
            looks = [step + round(share * (e.steps - step)) for share in _LOOKS]
            options = dict(observe=_below, observed_at=looks) if watched else {}
            split = self.data.train
            trained = train_all(e, split, starts, step, lr=lr, store=self.store, **options)
            seconds = (time.perf_counter() - began) / len(group)
            diverged = []
            for place, start, (states, course) in zip(group, starts, trained):
                # A control that diverges is a result, and errs as by chance; from a chain's
                # network others would have to be made.
                if place.kind in CHAINS and not is_finite(states[e.steps]):
                    diverged.append(place)
                else:
                    self._put(place, Ticket(states[e.steps], start.mask, course), seconds)
            self.store.finish()
            self._refuse(diverged, e.lr if lr is None else lr)

    def _refuse(self, diverged: Sequence[Place], lr: float) -> None:
        if diverged:
            names = "; ".join(map(str, diverged))
            said = f"weights are not finite after step {self.experiment.steps} with lr={lr}"
            raise Degenerate(f"training diverged: {said} ({names})")

    def start(self, place: Place) -> Start:
        """Where the training of a sparse network (level 1 or more) starts from."""
        kind, seed, rewind_step, level = place
        keep, order = self.survivors(level), (seed, "order", level)
        if kind in CHAINS:
            # Train: what the level before ended in.
            solution, mask, _ = self.ticket(kind, seed, rewind_step, level - 1)
            # Prune: of its survivors the smallest go, over all layers together.
            mask = pruning.prune_magnitude(solution, mask, keep)
            threshold = pruning.threshold(solution, mask)
            # Rewind: the others go back to the rewind step, or on from where they are.
            rewinds = kind not in RETRAININGS
            state = self.rewind_point(seed, rewind_step) if rewinds else solution
            return Start(state, mask, order, threshold)
        if kind == "random":
            mask = pruning.prune_random(self.dense_mask, keep, generator(seed, "random mask"))
        elif kind == "one-shot":
            solution = self.level(seed, rewind_step, 0).state
            mask = pruning.prune_magnitude(solution, self.dense_mask, keep)
        else:
            mask = self.level(seed, rewind_step, level).mask
        if kind == "shuffled":
            mask = pruning.shuffle_layerwise(mask, generator(seed, "shuffle"))
        if kind == "reinitialized":
            draws = generator(seed, "reinitialisation")
            return Start(networks.initial_state(self.experiment, draws), mask, order)
        return Start(self.rewind_point(seed, rewind_step), mask, order)


def _below(start: Start, state: State) -> float:
    return pruning.share_below(state, start.mask, start.threshold)
