"""What retraining does: it makes new small weights to prune (Finding 4).

Everything here goes by `level`, the level that a cut leads to: pruning takes the solution of `level - 1` to the mask of
`level`, rewinding and retraining to the solution of `level`. The cut's *threshold* is the smallest magnitude it keeps;
magnitudes are given in units of it. Shares and errors are in [0, 1], losses in nats.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from . import pruning
from .barriers import barrier, grid, segment
from .chains import CHAINS, Place, Runs
from .curvature import surviving
from .networks import State
from .pruning import Mask

SOLUTION, PRUNED, REWOUND, RETRAINED = STAGES = ("solution", "pruned", "rewound", "retrained")
RETRAINED_CUT, CONTINUED_CUT, ONE_SHOT_CUT = CUTS = ("retrained", "continued", "one-shot")

# Edges of the histogram, in thresholds: 1 is among them, so that the gap is a whole number of bins, and the last bin
# takes all that is larger.
EDGES = np.append(np.arange(0, 61) / 10, np.inf)


def stages(runs: Runs, seed: int, rewind_step: int, level: int) -> tuple[dict[str, tuple[State, Mask]], float]:
    """Weights, and the mask of those to count, at each of `STAGES` on the way to `level`; and the cut's threshold.

    The solution is counted with the survivors of the level before, all else with those of `level`.
    """
    before, after = (runs.level(seed, rewind_step, reached) for reached in (level - 1, level))
    rewound = runs.rewind_point(seed, rewind_step)
    states = (before.state, before.state, rewound, after.state)
    masks = (before.mask, after.mask, after.mask, after.mask)
    return dict(zip(STAGES, zip(states, masks))), pruning.threshold(before.state, after.mask)


def magnitudes(runs: Runs, seed: int) -> pd.DataFrame:
    """Histograms of surviving magnitudes through prune, rewind, retrain, from the last rewind step.

    Columns: level, stage (of `STAGES`), low and high (edges of the bin, in thresholds; low belongs to it), count.
    """
    e = runs.experiment
    parts = []
    for level in e.control_levels:
        ways, limit = stages(runs, seed, e.rewind_steps[-1], level)
        for stage, (state, mask) in ways.items():
            counts, _ = np.histogram(np.abs(surviving(state, mask)) / limit, EDGES)
            parts.append(pd.DataFrame({"level": level, "stage": stage, "low": EDGES[:-1], "high": EDGES[1:],
                                       "count": counts}))
    return pd.concat(parts, ignore_index=True)


def gaps(runs: Runs, seed: int, rewind_step: int) -> pd.DataFrame:
    """How many survivors are below the cut's threshold. Columns: level, density, stage (of `STAGES`), below (share)."""
    rows = []
    for level in range(1, runs.experiment.levels + 1):
        ways, limit = stages(runs, seed, rewind_step, level)
        rows += [{"level": level, "density": runs.density(level), "stage": stage,
                  "below": pruning.share_below(state, mask, limit)} for stage, (state, mask) in ways.items()]
    return pd.DataFrame(rows)


def refill(runs: Runs, seed: int) -> pd.DataFrame:
    """How many survivors are below the cut's threshold during retraining, by each method, from the last rewind step.

    Columns: kind (of `chains.CHAINS`), level, step, share (of the retraining), below (share of the survivors).
    """
    e, start = runs.experiment, runs.experiment.rewind_steps[-1]
    rows = []
    for kind in CHAINS:
        places = [Place(kind, seed, start, level) for level in e.control_levels]
        for place, course in zip(places, runs.courses(places)):
            rows += [{"kind": kind, "level": place.level, "step": step, "share": (step - start) / (e.steps - start),
                      "below": below} for step, below in course.items()]
    return pd.DataFrame(rows)


def next_cuts(runs: Runs, seed: int) -> pd.DataFrame:
    """The cut to each level with and without retraining before it; from the last rewind step, nothing retrained after.

    `cut` says what is cut to the level's density, by magnitude:

    * "retrained": the solution of `level - 1`; the result is the level-(level - 1) projection.
    * "continued": the solution of `level - 2`, whose last retraining is left out; from level 2 on.
    * "one-shot": the dense solution; no retraining at all.

    Columns: level, density, cut, length (norm of the weights that the last cut removes, those between the density
    before and this one), test_error and train_loss of what is left.
    """
    e = runs.experiment
    tickets = [runs.level(seed, e.rewind_steps[-1], level) for level in range(e.levels)]
    rows = []
    for level in range(1, e.levels + 1):
        for cut, source in zip(CUTS, (level - 1, level - 2, 0)):
            if source < 0:
                continue
            state, mask = tickets[source]
            wider = pruning.prune_magnitude(state, mask, runs.survivors(level - 1))
            mask = pruning.prune_magnitude(state, wider, runs.survivors(level))
            left = pruning.apply(mask, state)
            rows.append({"level": level, "density": runs.density(level), "cut": cut,
                         "length": removed_length(state, wider, mask), "test_error": runs.evaluate(left).error,
                         "train_loss": runs.evaluate(left, "train").loss})
    return pd.DataFrame(rows)


def removed_length(state: State, mask: Mask, sparser: Mask) -> float:
    """Projection length `|| m * w - m' * w ||`, for m' within m: the norm of the weights that only m keeps."""
    return float(np.linalg.norm(surviving(state, {name: kept & ~sparser[name] for name, kept in mask.items()})))


def retraining_methods(runs: Runs, seed: int) -> pd.DataFrame:
    """Weight rewinding ("imp"), learning-rate rewinding and fine-tuning: chains of their own, from the last rewind step.

    Columns: kind (of `chains.CHAINS`), level, density, previous_error (test error of the same chain one level before),
    cut_error (of that network after pruning), test_error (after retraining), barrier (test error, to the level
    before), below (share of survivors below the cut's threshold after retraining).
    """
    e = runs.experiment
    rows = []
    for level in e.control_levels:
        for kind in CHAINS:
            before, after = runs.tickets([Place(kind, seed, e.rewind_steps[-1], reached)
                                          for reached in (level - 1, level)])
            path = segment(runs.network, before.state, after.state, grid(e.barrier_points), runs.measured,
                           ("test_error",))
            limit = pruning.threshold(before.state, after.mask)
            rows.append({"kind": kind, "level": level, "density": runs.density(level),
                         "previous_error": path["test_error"].iloc[0],
                         "cut_error": runs.evaluate(pruning.apply(after.mask, before.state)).error,
                         "test_error": path["test_error"].iloc[-1], "barrier": barrier(path),
                         "below": pruning.share_below(after.state, after.mask, limit)})
    return pd.DataFrame(rows)
