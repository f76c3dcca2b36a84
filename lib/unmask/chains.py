"""The trainings of an experiment: iterative magnitude pruning with rewinding, and its controls.

Every state is a function of the experiment's recipe, the seed and the place in the chain; each is computed once and
then read from the store.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

from . import data, networks, pruning
from .errors import UnmaskError
from .experiments import Experiment
from .networks import State
from .pruning import Mask
from .store import Store
from .train import generator, resolve_device, train

CONTROLS = ("random", "shuffled", "reinitialized", "one-shot")


class Ticket(NamedTuple):
    """A trained sparse network: its final state, zero where pruned, and its mask."""

    state: State
    mask: Mask


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
        return data.Data(*(split.to(self.device) for split in data.load(self.experiment, self.store)))

    def survivors(self, level: int) -> int:
        """How many prunable weights a level keeps."""
        return pruning.survivors_at(pruning.survivors(self.dense_mask), self.experiment.prune_fraction, level)

    def initial(self, seed: int) -> State:
        """The network's state at initialisation."""
        return networks.initial_state(self.experiment, generator(seed, "initialisation"))

    def rewind_point(self, seed: int, step: int) -> State:
        """`w_tau`: the dense run's state at a step before the end."""
        return self.store.tensors(self.rewind_name(seed, step), lambda: self._dense_run(seed, [step])[step])

    def dense(self, seed: int) -> Ticket:
        """Level 0: the dense run, trained to the end. Stores the experiment's rewind points on its way."""
        return self._ticket(self.dense_name(seed), lambda: self._dense(seed))

    def level(self, seed: int, rewind_step: int, level: int) -> Ticket:
        """`w^(L)`: iterative magnitude pruning with rewinding.

        Prune the solution of the level before by global magnitude, rewind the survivors to their values at
        `rewind_step`, and retrain from there to the end. The data order is fresh at each level.

        Raises:
            UnmaskError: the experiment has no such level or rewind step.
        """
        self._check(rewind_step, level)
        if level == 0:
            return self.dense(seed)

        def prune_rewind_retrain() -> Ticket:
            solution, mask = self.level(seed, rewind_step, level - 1)
            mask = pruning.prune_magnitude(solution, mask, self.survivors(level))
            return self._retrain(seed, level, mask, self.rewind_point(seed, rewind_step), rewind_step)

        return self._ticket(self.level_name(seed, rewind_step, level), prune_rewind_retrain)

    def control(self, kind: str, seed: int, level: int) -> Ticket:
        """A network as sparse as `level`, whose mask or weights lack what iterative magnitude pruning found.

        All are trained like IMP from the experiment's last rewind step, but for "reinitialized".

        * "random": survivors drawn at random over all layers.
        * "shuffled": the IMP mask permuted within each layer.
        * "reinitialized": the IMP mask on newly drawn weights, trained from step 0.
        * "one-shot": the dense solution pruned at once to the level's density.

        Raises:
            UnmaskError: no such kind, level or rewind step.
        """
        rewind_step = self.experiment.rewind_steps[-1]
        self._check(rewind_step, level)
        if kind not in CONTROLS:
            raise UnmaskError(f"control={kind!r}: must be one of {', '.join(CONTROLS)}")

        def mask_rewind_retrain() -> Ticket:
            keep = self.survivors(level)
            if kind == "random":
                mask = pruning.prune_random(self.dense_mask, keep, generator(seed, "random mask"))
            elif kind == "one-shot":
                mask = pruning.prune_magnitude(self.dense(seed).state, self.dense_mask, keep)
            else:
                mask = self.level(seed, rewind_step, level).mask
            if kind == "shuffled":
                mask = pruning.shuffle_layerwise(mask, generator(seed, "shuffle"))
            if kind == "reinitialized":
                fresh = networks.initial_state(self.experiment, generator(seed, "reinitialisation"))
                return self._retrain(seed, level, mask, fresh, 0)
            return self._retrain(seed, level, mask, self.rewind_point(seed, rewind_step), rewind_step)

        return self._ticket(self.control_name(kind, seed, level), mask_rewind_retrain)

    # Names in the store.

    def dense_name(self, seed: int) -> str:
        return f"{self.experiment.recipe}/seed{seed}/dense"

    def rewind_name(self, seed: int, step: int) -> str:
        return f"{self.experiment.recipe}/seed{seed}/rewind{step:05d}/rewind_point"

    def level_name(self, seed: int, rewind_step: int, level: int) -> str:
        if level == 0:
            return self.dense_name(seed)
        return f"{self.experiment.recipe}/seed{seed}/rewind{rewind_step:05d}/imp/level{level:02d}"

    def control_name(self, kind: str, seed: int, level: int) -> str:
        rewind_step = self.experiment.rewind_steps[-1]
        return f"{self.experiment.recipe}/seed{seed}/rewind{rewind_step:05d}/{kind}/level{level:02d}"

    # How they are computed.

    def _retrain(self, seed: int, level: int, mask: Mask, state: State, start: int) -> Ticket:
        end = self.experiment.steps
        order = (seed, "order", level)
        return Ticket(train(self.experiment, self.data.train, state, mask, order, start)[end], mask)

    def _dense_run(self, seed: int, snapshots: list[int]) -> dict[int, State]:
        return train(self.experiment, self.data.train, self.initial(seed), self.dense_mask, (seed, "order", 0),
                     snapshots=snapshots)

    def _dense(self, seed: int) -> Ticket:
        began, end = time.perf_counter(), self.experiment.steps
        states = self._dense_run(seed, [*self.experiment.rewind_steps, end])
        for step in self.experiment.rewind_steps:
            self.store.put_tensors(self.rewind_name(seed, step), states[step], time.perf_counter() - began)
        return Ticket(states[end], self.dense_mask)

    def _ticket(self, name: str, compute) -> Ticket:
        def as_tensors():
            state, mask = compute()
            return state | {f"mask:{key}": kept for key, kept in mask.items()}

        tensors = self.store.tensors(name, as_tensors)
        # Names come back in no particular order, but ties and shuffles go by the network's.
        return Ticket({key: t for key, t in tensors.items() if not key.startswith("mask:")},
                      {key: tensors[f"mask:{key}"] for key in self.dense_mask})

    def _check(self, rewind_step: int, level: int) -> None:
        e = self.experiment
        if rewind_step not in e.rewind_steps:
            raise UnmaskError(f"rewind_step={rewind_step!r}: the experiment has {list(e.rewind_steps)}")
        if not 0 <= level <= e.levels:
            raise UnmaskError(f"level={level!r}: the experiment has levels 0 to {e.levels}")
