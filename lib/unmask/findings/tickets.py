"""Finding 0: winning tickets exist."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..chains import CONTROLS, place
from ..experiments import Experiment
from ..plots import LABELS, by_step, density_axis, error_axis, matching_line, mean_and_range, styles
from ..tables import table
from ..verdicts import Claims, Tables, at_latest, barrier, dense_errors, is_at_most, judge
from ..verdicts import settings_in_numbers, where_imp_matches, with_matching


def _evaluations(e: Experiment, *keys) -> float:
    return (e.levels + 1) * sum(e.evaluated)


@table(("seed", "rewind_step"), reads=("levels", "train_measured"), passes=_evaluations)
def levels(lab, seed, rewind_step) -> pd.DataFrame:
    """Error at every level of one chain.

    Columns: level, density, survivors, test_error, train_error, train_loss."""
    rows = []
    for level in range(lab.experiment.levels + 1):
        state = lab.level(seed, rewind_step, level).state
        test, train = lab.evaluate(state), lab.evaluate(state, "train")
        sparsity = level, lab.density(level), lab.survivors(level)
        rows.append((*sparsity, test.error, train.error, train.loss))
    columns = ["level", "density", "survivors", "test_error", "train_error", "train_loss"]
    return pd.DataFrame(rows, columns=columns)


_READS = ("levels", "barrier_points", "control_every", "rewind_steps", "train_measured")


def _paths(e: Experiment, seed: int) -> float:
    test, train = e.evaluated
    each = e.barrier_points * test + train
    return len(e.control_levels) * (1 + len(CONTROLS)) * each


def _compared(e: Experiment, seed: int):
    for level in e.control_levels:
        yield place(e, "imp", seed, e.latest, level - 1)
        for kind in ("imp", *CONTROLS):
            yield place(e, kind, seed, e.latest, level)


@table(("seed",), reads=_READS, passes=_paths, needs=_compared)
def controls(lab, seed) -> pd.DataFrame:
    """IMP and its controls from the last rewind step, each against the IMP solution one level
    before.

    Columns: kind ("imp" or a control), level, density, the metrics, previous_error (test error of
    the IMP solution at level - 1), barrier (test error, between the two)."""
    e, rows = lab.experiment, []
    for level in e.control_levels:
        previous = lab.level(seed, e.latest, level - 1).state
        for kind in ("imp", *CONTROLS):
            state = lab.control(kind, seed, level).state
            path = lab.path(previous, state)
            train = lab.evaluate(state, "train")
            before, error = path.test_error.iloc[[0, -1]]
            errors = error, train.error, train.loss, before
            rows.append((kind, level, lab.density(level), *errors, barrier(path)))
    columns = ["kind", "level", "density", "test_error", "train_error", "train_loss"]
    return pd.DataFrame(rows, columns=[*columns, "previous_error", "barrier"])


# Judging


@judge("0", needs=("levels",))
def verdicts(claims: Claims, tables: Tables, e: Experiment) -> None:
    """Without the table of controls, only what IMP's chains tell."""
    judged = with_matching(tables["levels"], e)
    sparse = judged[(judged.level > 0) & (judged.density <= e.ticket_density)]
    late = at_latest(sparse, e)
    few = f"at most {e.ticket_density:.0%} of the weights"
    claims.add(
        "fig-errors",
        "from the last rewind step, IMP finds a matching network that keeps "
        f"{few} (share of seeds)",
        late.groupby("seed").matching.any(),
        needed=1,
    )
    reached = late[late.matching][["seed", "level"]]
    for step in e.rewind_steps[:-1]:
        claim = f"where it does, the network rewound to step {step} does not match"
        early = sparse[sparse.rewind_step == step].merge(reached)
        claims.add("fig-errors", claim, ~early.matching)
    if "controls" not in tables:
        return
    compared = where_imp_matches(tables, e)
    words = {
        "random": "random masks",
        "shuffled": "layer-wise shuffled masks",
        "reinitialized": "IMP masks on new weights",
        "one-shot": "one-shot masks",
    }
    for kind, name in words.items():
        claim = f"where IMP matches with {few}, {name} do not"
        claims.add("fig-controls", claim, ~compared[compared.kind == kind].matching)


# The numbers of its prose


def numbers(tables: Tables, e: Experiment) -> dict[str, float]:
    """By name; shares in percent, NaN where there is none."""
    dense = dense_errors(tables["levels"])
    judged = with_matching(tables["levels"], e)
    mean = judged.groupby(["rewind_step", "level"])[["excess", "density"]].mean()
    late, early = mean.loc[e.latest], mean.loc[e.earliest]
    lost = late.index[~is_at_most(late.excess, e.epsilon)]
    kept = late[late.index < lost.min()] if len(lost) else late
    early_lost = early[~is_at_most(early.excess, e.epsilon)]
    return settings_in_numbers(e) | {
        "dense_error": 100 * dense.mean(),
        "dense_spread": 100 * dense.std(),
        "ticket_density": 100 * kept.density.min(),
        "early_lost_density": 100 * early_lost.density.max(),
    }


def error_table(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Test error in percent by level (rows) and rewind step (columns), as "mean (standard
    deviation over seeds)"."""

    def cell(errors):
        spread = f" ({100 * errors.std():.2f})" if len(errors) > 1 else ""
        return f"{100 * errors.mean():.2f}{spread}"

    levels = tables["levels"].rename(columns={"rewind_step": "rewound to step"})
    levels = levels.assign(weights=(100 * levels.density).round(1))
    keys = ["level", "weights", "rewound to step"]
    return levels.groupby(keys).test_error.apply(cell).unstack()


# Its figures


def errors_by_level(tables: Tables, e: Experiment) -> Figure:
    """Test error against density, one curve for each rewind step: mean and range over seeds."""
    figure, ax = plt.subplots(figsize=(7.5, 4.2))
    for label, style, chain in by_step(tables["levels"], e):
        mean_and_range(ax, chain, "density", "test_error", label=label, **style)
    return _finished(figure, ax, tables["levels"], tables["levels"], e)


def errors_of_controls(tables: Tables, e: Experiment) -> Figure:
    """Test error against density for IMP and its controls: mean and range over seeds."""
    figure, ax = plt.subplots(figsize=(7.5, 4.2))
    for kind, style in styles(LABELS).items():
        here = tables["controls"][tables["controls"].kind == kind]
        mean_and_range(ax, here, "density", "test_error", label=LABELS[kind], **style)
    return _finished(figure, ax, tables["controls"], tables["levels"], e)


def _finished(figure, ax, shown, levels, e) -> Figure:
    matching_line(ax, levels, e)
    density_axis(ax, shown.density)
    error_axis(ax, "test error (%)")
    ax.legend()
    return figure
