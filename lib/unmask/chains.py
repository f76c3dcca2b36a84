"""The trainings of an experiment: iterative magnitude pruning with rewinding, and its controls.

Every state is a function of the experiment's recipe, the seed and the place in the chain; each is computed once and
then read from the store.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import data, networks, pruning
from .errors import UnmaskError
from .experiments import Experiment
from .networks import State
from .pruning import Mask
from .store import TENSORS, Store
from .train import Performance, Start, evaluate, generator, learning_rate, resolve_device, single_thread, train_all

CONTROLS = ("random", "shuffled", "reinitialized", "one-shot")
RETRAININGS = ("lr-rewound", "fine-tuned")  # chains like IMP's, which go on from the pruned weights without rewinding
CHAINS = ("imp", *RETRAININGS)

# Shares of a retraining at which to look at its weights: densely at first, where most of it happens.
_LOOKS = (0, 0.01, 0.02, 0.03, 0.05, 0.075, *(i / 20 for i in range(2, 21)))


class Place(NamedTuple):
    """What to train: `kind` is one of `CHAINS` or `CONTROLS`. Level 0 is the dense run, whatever the rewind step."""

    kind: str
    seed: int
    rewind_step: int
    level: int


class Ticket(NamedTuple):
    """A trained sparse network: its final state, zero where pruned, and its mask."""

    state: State
    mask: Mask


def _below(start: Start, state: State) -> State:
    return {"below": torch.tensor([pruning.share_below(state, start.mask, start.threshold)], dtype=torch.float64)}


class Runs:
    """Access to everything the experiment trains. Seeds count from 0, levels from 0 (dense).

    Raises:
        UnmaskError: the device does not exist, the store cannot be written, or the levels would leave no weight.
    """

    def __init__(self, experiment: Experiment, store: Store):
        self.experiment, self.store = experiment, store
        self.device = resolve_device(experiment.device)
        self.network = networks.build(experiment).to(self.device)
        self.dense_mask = pruning.dense_mask(self.network)
        pruning.survivors_at(pruning.survivors(self.dense_mask), experiment.prune_fraction, experiment.levels)

    @functools.cached_property
    def data(self) -> data.Data:
        """The data set, on the device."""
        with single_thread():  # the mean of the pixels is a sum
            return data.Data(*(split.to(self.device) for split in data.load(self.experiment, self.store)))

    @functools.cached_property
    def measured(self) -> data.Data:
        """What to measure performance on: all test samples, and of the training samples the experiment's `train_measured`."""
        train, wanted = self.data.train, self.experiment.train_measured
        return self.data._replace(train=train.head(wanted) if wanted else train)

    def survivors(self, level: int) -> int:
        """How many prunable weights a level keeps."""
        return pruning.survivors_at(pruning.survivors(self.dense_mask), self.experiment.prune_fraction, level)

    def density(self, level: int) -> float:
        """Which share of the prunable weights a level keeps."""
        return self.survivors(level) / self.survivors(0)

    def evaluate(self, state: State, split: str = "test") -> Performance:
        """Error and loss of a state on the "test" or "train" split."""
        networks.load_state(self.network, state)
        return evaluate(self.network, getattr(self.measured, split))

    def initial(self, seed: int) -> State:
        """The network's state at initialisation."""
        return networks.initial_state(self.experiment, generator(seed, "initialisation"))

    def rewind_point(self, seed: int, step: int) -> State:
        """`w_tau`: the dense run's state at a step before the end."""
        name = self._rewind_name(seed, step)
        stored = self.store.tensors(name)
        if stored is None:
            stored = self._train_dense([seed], [step])[0][step]
            self.store.put_tensors(name, stored)
        return stored

    def level(self, seed: int, rewind_step: int, level: int) -> Ticket:
        """`w^(L)`: iterative magnitude pruning with rewinding; see `tickets`."""
        return self.tickets([Place("imp", seed, rewind_step, level)])[0]

    def control(self, kind: str, seed: int, level: int) -> Ticket:
        """A control as sparse as `level`, from the experiment's last rewind step; see `tickets`."""
        return self.tickets([Place(kind, seed, self.experiment.rewind_steps[-1], level)])[0]

    def tickets(self, places: Sequence[Place]) -> list[Ticket]:
        """The trained networks at these places; those not in the store are trained, side by side where they can be.

        * "imp", level L: prune the solution of level L - 1 by global magnitude, rewind the survivors to their values
          at the rewind step, and retrain from there to the end. Every level has a data order of its own.

        Two more kinds are chains of their own, each level pruned from its own kind's level before. Both take the
        weights as pruning leaves them, and train for as many steps as "imp":

        * "lr-rewound": with the learning rates from the rewind step on (Renda et al. 2020).
        * "fine-tuned": with the last learning rate of the schedule throughout.

        The other kinds are as sparse as "imp" at that level and trained like it, but for "reinitialized":

        * "random": survivors drawn at random over all layers.
        * "shuffled": the IMP mask permuted within each layer.
        * "reinitialized": the IMP mask on newly drawn weights, trained from step 0.
        * "one-shot": the dense solution pruned at once to the level's density.

        Raises:
            UnmaskError: the experiment has no such kind, level or rewind step.
        """
        for place in places:
            self._check(place)
        found = {place: self._read(place) for place in places}
        missing = [place for place, ticket in found.items() if ticket is None]
        if dense := [place for place in missing if place.level == 0]:
            self._store_dense(sorted({place.seed for place in dense}))
        sparse = [place for place in missing if place.level > 0]
        self._store_sparse(sparse, watched=[place for place in sparse if self._is_watched(place)])
        return [found[place] or self._read(place) for place in places]

    def courses(self, places: Sequence[Place]) -> list[dict[int, float]]:
        """How many survivors are below the cut's threshold during retraining: for each place, their share by step.

        For places in `CHAINS`. Those of the control levels from the last rewind step are noted when they are trained;
        for others the training is done once more.

        Raises:
            UnmaskError: a place that is not retrained after a cut.
        """
        for place in places:
            self._check(place)
            if place.kind not in CHAINS or place.level == 0:
                raise UnmaskError(f"kind={place.kind!r}, level={place.level}: is not retrained after a cut")
        found = {place: self._read_course(place) for place in places}
        missing = [place for place, course in found.items() if course is None]
        self._store_sparse(missing, watched=missing)
        return [found[place] or self._read_course(place) for place in places]

    def name(self, place: Place) -> str:
        """The place's name in the store."""
        folder = f"{self.experiment.recipe}/seed{place.seed}"
        if place.level == 0:
            return f"{folder}/dense"
        return f"{folder}/rewind{place.rewind_step:05d}/{place.kind}/level{place.level:02d}"

    def constant_lr(self, kind: str) -> float | None:
        """The learning rate of a kind that is trained at one throughout; None for those that follow the schedule."""
        return learning_rate(self.experiment, self.experiment.steps - 1) if kind == "fine-tuned" else None

    def _rewind_name(self, seed: int, step: int) -> str:
        return f"{self.experiment.recipe}/seed{seed}/rewind{step:05d}/rewind_point"

    def _read(self, place: Place) -> Ticket | None:
        stored = self.store.tensors(self.name(place))
        if stored is None:
            return None
        # Names come back in no particular order, but ties and shuffles go by the network's.
        return Ticket({name: tensor for name, tensor in stored.items() if not name.startswith("mask:")},
                      {name: stored[f"mask:{name}"] for name in self.dense_mask})

    def _put(self, place: Place, ticket: Ticket, seconds: float) -> None:
        masks = {f"mask:{name}": kept for name, kept in ticket.mask.items()}
        self.store.put_tensors(self.name(place), ticket.state | masks, seconds)

    def _train_dense(self, seeds: Sequence[int], snapshots: Sequence[int]) -> list[dict[int, State]]:
        starts = [Start(self.initial(seed), self.dense_mask, (seed, "order", 0)) for seed in seeds]
        return train_all(self.experiment, self.data.train, starts, snapshots=snapshots, store=self.store)

    def _store_dense(self, seeds: Sequence[int]) -> None:
        """Train dense runs to the end, and keep the experiment's rewind points on the way."""
        began, end, rewind_steps = time.perf_counter(), self.experiment.steps, self.experiment.rewind_steps
        trained = self._train_dense(seeds, [*rewind_steps, end])
        seconds = (time.perf_counter() - began) / len(seeds)
        for seed, states in zip(seeds, trained):
            for step in rewind_steps:
                self.store.put_tensors(self._rewind_name(seed, step), states[step])
            self._put(Place("imp", seed, 0, 0), Ticket(states[end], self.dense_mask), seconds)
        self.store.finish()

    def _is_watched(self, place: Place) -> bool:
        e = self.experiment
        return place.kind in CHAINS and place.rewind_step == e.rewind_steps[-1] and place.level in e.control_levels

    def _course_name(self, place: Place) -> str:
        return f"{self.name(place)}-course"

    def _read_course(self, place: Place) -> dict[int, float] | None:
        stored = self.store.tensors(self._course_name(place))
        return stored and dict(zip(stored["step"].tolist(), stored["below"].tolist()))

    def _put_course(self, place: Place, start: Start, states: dict[int, State]) -> None:
        *steps, end = states
        below = [*(states[step]["below"] for step in steps), _below(start, states[end])["below"]]
        self.store.put_tensors(self._course_name(place), {"step": torch.tensor([*steps, end]), "below": torch.cat(below)})

    def _store_sparse(self, places: Sequence[Place], watched: Sequence[Place]) -> None:
        """Train the networks at `places`, side by side where they can be; of those `watched`, keep their course as well."""
        alike = defaultdict(list)
        for place in places:
            step = 0 if place.kind == "reinitialized" else place.rewind_step
            alike[step, self.constant_lr(place.kind)].append(place)
        for (step, lr), group in alike.items():
            starts = [self.start(place) for place in group]
            began, end = time.perf_counter(), self.experiment.steps
            shares = _LOOKS if set(group) & set(watched) else (1,)
            looks = [step + round(share * (end - step)) for share in shares]
            trained = train_all(self.experiment, self.data.train, starts, step, looks, lr, self.store, _below)
            seconds = (time.perf_counter() - began) / len(group)
            for place, start, states in zip(group, starts, trained):
                if place in watched:
                    self._put_course(place, start, states)
                if self.name(place) + TENSORS not in self.store:
                    self._put(place, Ticket(states[end], start.mask), seconds)
            self.store.finish()

    def start(self, place: Place) -> Start:
        """Where the training of a sparse network (level 1 or more) starts from."""
        kind, seed, rewind_step, level = place
        keep, threshold = self.survivors(level), 0.0
        if kind in CHAINS:
            solution, mask = self.tickets([Place(kind, seed, rewind_step, level - 1)])[0]
            mask = pruning.prune_magnitude(solution, mask, keep)
            threshold = pruning.threshold(solution, mask)
        elif kind == "random":
            mask = pruning.prune_random(self.dense_mask, keep, generator(seed, "random mask"))
        elif kind == "one-shot":
            mask = pruning.prune_magnitude(self.level(seed, rewind_step, 0).state, self.dense_mask, keep)
        else:
            mask = self.level(seed, rewind_step, level).mask
        if kind == "shuffled":
            mask = pruning.shuffle_layerwise(mask, generator(seed, "shuffle"))
        if kind == "reinitialized":
            state = networks.initial_state(self.experiment, generator(seed, "reinitialisation"))
        elif kind in RETRAININGS:
            state = solution
        else:
            state = self.rewind_point(seed, rewind_step)
        return Start(state, mask, (seed, "order", level), threshold)

    def _check(self, place: Place) -> None:
        e = self.experiment
        if place.kind not in (*CHAINS, *CONTROLS):
            raise UnmaskError(f"kind={place.kind!r}: must be one of {', '.join((*CHAINS, *CONTROLS))}")
        if place.rewind_step not in e.rewind_steps:
            raise UnmaskError(f"rewind_step={place.rewind_step!r}: the experiment has {list(e.rewind_steps)}")
        if not 0 <= place.level <= e.levels:
            raise UnmaskError(f"level={place.level!r}: the experiment has levels 0 to {e.levels}")
