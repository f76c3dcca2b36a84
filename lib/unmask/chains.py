"""Chains: which networks an experiment trains, and which it needs for which.

Iterative magnitude pruning with rewinding (IMP), two chains that retrain in another way, and four
controls. Here is what they are; `lab` trains them. Nothing here imports torch.
"""

from typing import NamedTuple

from .errors import UnmaskError
from .experiments import Experiment

# IMP rewinds the weights that survive a cut; two chains go on from them as the cut leaves them
# (Renda et al. 2020): with the learning rates from the rewind step on, or the schedule's last one.
RETRAININGS = ("lr-rewound", "fine-tuned")
CHAINS = ("imp", *RETRAININGS)
# As sparse as an IMP level: a random mask, the IMP mask permuted within each layer, the IMP mask on
# newly drawn weights, and the dense solution pruned at once.
CONTROLS = ("random", "shuffled", "reinitialized", "one-shot")
KINDS = (*CHAINS, *CONTROLS)


class Place(NamedTuple):
    """A network to train: of a kind, for a seed, from a rewind step, as sparse as a level.

    Level 0 is the dense run, the same for all kinds and rewind steps."""

    kind: str
    seed: int
    rewind_step: int
    level: int

    def __str__(self) -> str:
        if self.level == 0:
            return f"seed {self.seed}, dense"
        return f"{self.kind}, seed {self.seed}, rewind step {self.rewind_step}, level {self.level}"

    def first_step(self) -> int:
        """The step at which its training starts."""
        return 0 if self.level == 0 or self.kind == "reinitialized" else self.rewind_step


def dense(seed: int) -> Place:
    return Place("imp", seed, 0, 0)


def place(e: Experiment, kind: str, seed: int, rewind_step: int, level: int) -> Place:
    """A place by the one name that all have for it.
    Raises UnmaskError: the experiment has no such kind, level or rewind step, or nothing has such a
    seed."""
    if kind not in KINDS:
        raise UnmaskError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
    if seed < 0:
        raise UnmaskError(f"seed={seed!r}: must be 0 or more")
    if rewind_step not in e.rewind_steps:
        raise UnmaskError(f"rewind_step={rewind_step!r}: the experiment has {list(e.rewind_steps)}")
    if not 0 <= level <= e.levels:
        raise UnmaskError(f"level={level!r}: the experiment has levels 0 to {e.levels}")
    if level == 0:
        return dense(seed)
    # where the learning rate is constant from the rewind step on, the two are one training
    falls = e.schedule != "step" or any(share * e.steps > rewind_step for share in e.milestones)
    if kind == "fine-tuned" and not falls and not e.warmup:
        kind = "lr-rewound"
    return Place(kind, seed, rewind_step, level)


def parents(e: Experiment, child: Place) -> list[Place]:
    """The networks that a training starts from."""
    kind, seed, rewind_step, level = child
    if level == 0:
        return []
    if kind in CHAINS:
        return [dense(seed), place(e, kind, seed, rewind_step, level - 1)]
    if kind in ("shuffled", "reinitialized"):
        return [dense(seed), place(e, "imp", seed, rewind_step, level)]
    return [dense(seed)]


def chain(e: Experiment, seed: int, rewind_step: int, kind: str = "imp") -> list[Place]:
    """All levels of one chain, dense first."""
    return [place(e, kind, seed, rewind_step, level) for level in range(e.levels + 1)]


def both_levels(e: Experiment, seed: int, rewind_step: int, level: int) -> list[Place]:
    """A level of IMP and the next."""
    return [place(e, "imp", seed, rewind_step, at) for at in (level, level + 1)]
