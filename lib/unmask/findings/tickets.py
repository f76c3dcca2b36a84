"""Finding 0: winning tickets exist."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

import unmask

from ..chains import CONTROLS, dense, place
from ..experiments import Experiment
from ..plots import LABELS, PERCENT, by_step, density_axis, error_axis, legend_beside
from ..plots import matching_line, mean_and_range, plain_log, styles
from ..tables import table
from ..verdicts import Claims, Tables, at_latest, barrier, by_seed, in_numbers, judge
from ..verdicts import retraining_spread, settings_in_numbers, where_imp_matches, with_matching


def _evaluations(e: Experiment, *keys) -> float:
    return (e.levels + 1) * sum(e.evaluated)


@table(("seed", "rewind_step"), reads=("levels", "train_measured"), passes=_evaluations)
def levels(lab, seed, rewind_step) -> pd.DataFrame:
    """Error at every level of one chain.

    Columns: level, density, survivors, test_error, train_error, train_loss, chance (the test error
    of always naming the most frequent class), tested (on how many samples)."""
    rows, of_all = [], (lab.chance, len(lab.data.test.y))
    for level in range(lab.experiment.levels + 1):
        state = lab.level(seed, rewind_step, level).state
        test, train = lab.evaluate(state), lab.evaluate(state, "train")
        sparsity = level, lab.density(level), lab.survivors(level)
        rows.append((*sparsity, test.error, train.error, train.loss, *of_all))
    columns = ["level", "density", "survivors", "test_error", "train_error", "train_loss"]
    return pd.DataFrame(rows, columns=[*columns, "chance", "tested"])


AGAIN = 2  # times that the dense network is retrained


@table(
    ("seed",),
    reads=("rewind_steps",),
    steps=lambda e, seed: AGAIN * (e.steps - e.latest),
    passes=lambda e, seed: AGAIN * e.evaluated[0],
    needs=lambda e, seed: [dense(seed)],
)
def references(lab, seed) -> pd.DataFrame:
    """What retraining from the last rewind point gives where nothing is pruned: as a level is
    trained, with the momentum at zero and a data order of its own.

    Columns: again (which retraining), test_error."""
    e, Start = lab.experiment, unmask.train.Start
    rewound, whole = lab.rewind_point(seed, e.latest), lab.dense_mask
    starts = [Start(rewound, whole, (seed, "order", 0, "again", i)) for i in range(AGAIN)]
    errors = [lab.evaluate(state).error for state in lab.trained(starts, e.latest)]
    return pd.DataFrame({"again": range(AGAIN), "test_error": errors})


@table(("seed", "rewind_step"), reads=("levels",))
def layers(lab, seed, rewind_step) -> pd.DataFrame:
    """How many weights each layer keeps at every level of one chain; a layer that keeps none passes
    nothing on.

    Columns: level, layer, weights, survivors."""
    rows = []
    for level in range(lab.experiment.levels + 1):
        for name, kept in lab.level(seed, rewind_step, level).mask.items():
            layer = name.removesuffix(".weight")
            rows.append((level, layer, kept.numel(), int(kept.sum())))
    return pd.DataFrame(rows, columns=["level", "layer", "weights", "survivors"])


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
            state = lab.ticket(kind, seed, e.latest, level).state
            path = lab.path(previous, state)
            train = lab.evaluate(state, "train")
            before, error = path.test_error.iloc[[0, -1]]
            errors = error, train.error, train.loss, before
            rows.append((kind, level, lab.density(level), *errors, barrier(path)))
    columns = ["kind", "level", "density", "test_error", "train_error", "train_loss"]
    return pd.DataFrame(rows, columns=[*columns, "previous_error", "barrier"])


# Judging


def sparsest_matching(tables: Tables, e: Experiment) -> pd.Series:
    """By seed, the least density of a level that matches, from the last rewind step: 1 where only
    the dense network does. Where the chain's last level matches, the chain ends too early to tell:
    it is a bound."""
    late = at_latest(with_matching(tables, e), e)
    return late[late.matching | (late.level == 0)].groupby("seed").density.min()


def excess_where_late_matches(tables: Tables, e: Experiment, step: int) -> pd.Series:
    """By seed, the mean error above the matching limit of a chain from another rewind step, in
    points, at the sparse levels (density at most `ticket_density`) at which that from the last
    one matches."""
    judged = with_matching(tables, e)
    sparse = judged[(judged.level > 0) & (judged.density <= e.ticket_density)]
    late = at_latest(sparse, e)
    compared = sparse[sparse.rewind_step == step].merge(late[late.matching][["seed", "level"]])
    return by_seed(compared, 100 * (compared.excess - e.epsilon))


CLAIMED = {
    "random": "a random mask",
    "shuffled": "a layer-wise shuffled IMP mask",
    "reinitialized": "the IMP mask on new weights",
    "one-shot": "one-shot pruning",
}


@judge("0", needs=("levels",))
def verdicts(claims: Claims, tables: Tables, e: Experiment) -> None:
    """Without the table of controls, only what IMP's chains tell."""
    density = sparsest_matching(tables, e)
    ended = density.index[density <= tables["levels"].density.min()]
    few = f"{e.ticket_density:.0%} of the weights"
    claim = f"from the last rewind step, IMP finds a matching network with less than {few}"
    unit, values = "log of how many times sparser", np.log(e.ticket_density / density)
    claims.add("fig-errors", claim, unit, values, bounds=ended)
    for step in e.rewind_steps[:-1]:
        # the first is what the paper is about; the others show where it turns
        first = step == e.earliest
        where = "from the first rewind step" if first else f"from step {step}"
        claim = f"{where}, the error is above the matching limit where that from the last is not"
        values = excess_where_late_matches(tables, e, step)
        claims.add("fig-errors", claim, "points", values, judged=first)
    if "controls" not in tables:
        return
    compared = where_imp_matches(tables, e)
    compared = compared.pivot(index=["seed", "level"], columns="kind", values="test_error")
    compared = compared.reindex(columns=["imp", *CLAIMED])
    for kind, what in CLAIMED.items():
        worse = 100 * (compared[kind] - compared["imp"] - e.epsilon)
        claim = f"where IMP matches with at most {few}, {what} is worse by more than epsilon"
        values = worse.groupby("seed").mean()
        claims.add("fig-controls", claim, "points", values, spread=claims.spread)


# The numbers of its prose


def numbers(tables: Tables, e: Experiment) -> dict[str, float]:
    """By name; shares in percent, NaN where there is none. `ticket_limit` is a preset's,
    `ticket_density` what was found."""
    dense = tables["levels"].query("level == 0").groupby("seed").test_error.first()
    density = np.log(sparsest_matching(tables, e))
    early = excess_where_late_matches(tables, e, e.earliest)
    found = {"dense_error": 100 * dense.mean(), "dense_spread": 100 * dense.std()}
    found["retraining_spread"] = 100 * retraining_spread(tables)
    if "controls" in tables:
        found["diverged"] = tables["controls"].train_loss.isna().sum()
        found["controls"] = (tables["controls"].kind != "imp").sum()
    found |= in_numbers("ticket_density", density, lambda value: 100 * np.exp(value))
    found |= in_numbers("early_excess", early + 100 * e.epsilon)
    return settings_in_numbers(e) | {"ticket_limit": 100 * e.ticket_density} | found


def error_table(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Test error in percent by level (rows) and rewind step (columns), as "mean (standard
    deviation over seeds)"."""

    def cell(errors):
        spread = f" ({100 * errors.std():.2f})" if len(errors) > 1 else ""
        return f"{100 * errors.mean():.2f}{spread}"

    levels = tables["levels"].assign(weights=(100 * tables["levels"].density).round(1))
    table = levels.groupby(["level", "weights", "rewind_step"]).test_error.apply(cell).unstack()
    return table.rename_axis(["level", "weights (%)"]).rename(columns="from step {}".format)


# Its figures


def errors_by_level(tables: Tables, e: Experiment) -> Figure:
    """Test error against density, one curve for each rewind step: mean and range over seeds."""
    figure, ax = plt.subplots(figsize=(7.5, 4.2))
    for label, style, chain in by_step(tables["levels"], e):
        mean_and_range(ax, chain, "density", "test_error", label=label, **style)
    return _finished(figure, ax, tables["levels"], tables, e)


def errors_of_controls(tables: Tables, e: Experiment) -> Figure:
    """Test error against density for IMP and its controls: mean and range over seeds."""
    figure, ax = plt.subplots(figsize=(7.5, 4.2))
    for kind, style in styles(LABELS).items():
        here = tables["controls"][tables["controls"].kind == kind]
        mean_and_range(ax, here, "density", "test_error", label=LABELS[kind], **style)
    return _finished(figure, ax, tables["controls"], tables, e)


def _finished(figure, ax, shown, tables, e) -> Figure:
    matching_line(ax, tables, e)
    density_axis(ax, shown.density)
    error_axis(ax, "test error (%)")
    ax.legend()
    return figure


def layers_by_level(tables: Tables, e: Experiment) -> Figure:
    """Share of the weights that each layer keeps, by level, from the last rewind step: mean over
    seeds; a cross where a layer has none left in some seed."""
    table = at_latest(tables["layers"], e)
    table = table.assign(kept=table.survivors / table.weights)
    names = list(dict.fromkeys(table.layer))
    figure, ax = plt.subplots(figsize=(7.5, 4.2))
    colors = sns.color_palette("viridis", len(names))
    for name, color in zip(names, colors):
        rows = table[table.layer == name].groupby("level").kept
        mean, gone = PERCENT * rows.mean(), rows.min() == 0
        ax.plot(mean.index, mean, color=color, label=name, lw=1.4)
        ax.plot(mean.index[gone], mean[gone], "x", color=color, ms=7)
    ax.set(xlabel="pruning level", ylabel="weights that the layer keeps (%)", yscale="symlog")
    ax.set_ylim(0, 100)
    plain_log(ax.yaxis)
    legend_beside(ax, fontsize="x-small")
    return figure
