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
from .train import Performance, Start, evaluate, generator, is_finite, learning_rate
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
        stored = self.store.tensors(name, lambda found: _kinds(found) == self._state_kinds)
        if stored is None:
            dense, e = self.start(chains.dense(seed)), self.experiment
            (trained,) = train_all(e, self.data.train, [dense], 0, [step], store=self.store)
            stored = trained.states[step]
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
        self._train([place for place, ticket in found.items() if ticket is None])
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
        state = {name: w for name, w in stored.items() if not name.startswith(("mask:", "course:"))}
        # ties and shuffles go by the network's order, not by the store's
        mask = {name: stored[f"mask:{name}"] for name in self.dense_mask}
        course = (stored.get(f"course:{what}", torch.empty(0)) for what in ("step", "below"))
        return Ticket(state, mask, dict(zip(*(numbers.tolist() for numbers in course))))

    @functools.cached_property
    def _state_kinds(self) -> dict:
        """Shape and type of every tensor of a state. (Its weights need not be finite: see
        `_train`.)"""
        return _kinds(networks.state_of(self.network))

    def _is_ticket(self, stored: dict) -> bool:
        """Is it a state of this network with a mask, and perhaps a course?"""
        masks = _kinds(Ticket({}, self.dense_mask).tensors())
        found = {name: t for name, t in stored.items() if not name.startswith("course:")}
        return _kinds(found) == self._state_kinds | masks

    def _put(self, place: Place, ticket: Ticket, seconds: float) -> None:
        tensors = ticket.tensors()
        if ticket.course:
            steps, below = zip(*ticket.course.items())
            tensors["course:step"] = torch.tensor(steps)
            tensors["course:below"] = torch.tensor(below, dtype=torch.float64)
        self.store.put_tensors(self.name(place), tensors, seconds)

    def _train(self, places: Sequence[Place]) -> None:
        """Train the networks at `places`, dense ones first, side by side where steps and learning
        rates are alike."""
        e, alike = self.experiment, defaultdict(list)
        for place in sorted(places, key=lambda place: place.level > 0):
            # fine-tuning keeps the schedule's last learning rate
            lr = learning_rate(e, e.steps - 1) if place.kind == "fine-tuned" else None
            alike[place.level == 0, place.first_step(), lr, place.kind in CHAINS].append(place)
        for (dense, step, lr, in_chains), group in alike.items():
            starts = [self.start(place) for place in group]  # may train what they start from
            began = time.perf_counter()
            # on the way: of a dense run the rewind points, of a chain its course
            kept = e.rewind_steps if dense else ()
            watched = _LOOKS if in_chains and not dense else ()
            looks = [step + round(share * (e.steps - step)) for share in watched]
            options = dict(lr=lr, store=self.store, observe=_below, observed_at=looks)
            trained = train_all(e, self.data.train, starts, step, [*kept, e.steps], **options)
            seconds = (time.perf_counter() - began) / len(group)
            diverged = []
            for place, start, (states, course) in zip(group, starts, trained):
                # A control that diverges is a result, and errs as by chance; from a chain's
                # network others would have to be made.
                if in_chains and not is_finite(states[e.steps]):
                    diverged.append(place)
                    continue
                for at in kept:
                    self.store.put_tensors(self._rewind_name(place.seed, at), states[at])
                self._put(place, Ticket(states[e.steps], start.mask, course), seconds)
            self.store.finish()
            if diverged:
                rate, names = e.lr if lr is None else lr, "; ".join(map(str, diverged))
                said = f"weights are not finite after step {e.steps} with lr={rate}"
                raise Degenerate(f"training diverged: {said} ({names})")

    def start(self, place: Place) -> Start:
        """Where the training of a network starts from."""
        kind, seed, rewind_step, level = place
        keep, order = self.survivors(level), (seed, "order", level)
        if level == 0:
            return Start(self.initial(seed), self.dense_mask, order)
        if kind in CHAINS:
            # Train: what the level before ended in.
            solution, mask, _ = self.ticket(kind, seed, rewind_step, level - 1)
            # Prune: of its survivors the smallest go, over all layers together.
            mask = pruning.prune_magnitude(solution, mask, keep)
            threshold = pruning.threshold(solution, mask)
            # Rewind: the others go back to the rewind step, or on from where they are.
            state = solution if kind in RETRAININGS else self.rewind_point(seed, rewind_step)
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


def _kinds(tensors: dict) -> dict:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
