"""Finding 4: retraining makes new small weights to prune.

Everything here goes by `level`, the level that a cut leads to: pruning takes the solution of
`level - 1` to the mask of `level`, rewinding and retraining to the solution of `level`. The cut's
*threshold* is the smallest magnitude it keeps; magnitudes are given in units of it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import unmask

from .. import plots
from ..chains import CHAINS, chain
from ..experiments import Experiment
from ..plots import PERCENT, by_step, mean_and_range, styles, threshold_line
from ..tables import table
from ..verdicts import Claims, Tables, at_latest, barrier, by_seed, in_numbers, is_matching, judge
from ..verdicts import settings_in_numbers

STAGES = ("solution", "pruned", "rewound", "retrained")
CUTS = ("retrained", "continued", "one-shot")
METHODS = {
    "imp": "weight rewinding (IMP)",
    "lr-rewound": "learning-rate rewinding",
    "fine-tuned": "fine-tuning",
}
# Edges of the histogram, in thresholds: 1 is among them, so that the gap is a whole number of bins,
# and the last bin takes all that is larger.
EDGES = np.append(np.arange(0, 61) / 10, np.inf)


def stages(lab, seed, rewind_step, level):
    """The weights and the mask of those to count at each of `STAGES` on the way to `level`, and the
    cut's threshold.

    The solution is counted with the survivors of the level before, all else with those of `level`.
    """
    before, after = (lab.level(seed, rewind_step, at) for at in (level - 1, level))
    rewound = lab.rewind_point(seed, rewind_step)
    states = before.state, before.state, rewound, after.state
    masks = before.mask, after.mask, after.mask, after.mask
    limit = unmask.pruning.threshold(before.state, after.mask)
    return dict(zip(STAGES, zip(states, masks))), limit


_LATE = ("levels", "control_every", "rewind_steps")


@table(("seed",), reads=_LATE)
def magnitudes(lab, seed) -> pd.DataFrame:
    """Histograms of surviving magnitudes through prune, rewind, retrain, from the last rewind step.

    Columns: level, stage (of `STAGES`), low and high (edges of the bin, in thresholds; low belongs
    to it), count."""
    e, parts = lab.experiment, []
    for level in e.control_levels:
        ways, limit = stages(lab, seed, e.latest, level)
        for stage, (state, mask) in ways.items():
            sizes = np.abs(unmask.pruning.surviving(state, mask)) / limit
            counts, _ = np.histogram(sizes, EDGES)
            bins = {"low": EDGES[:-1], "high": EDGES[1:], "count": counts}
            parts.append(pd.DataFrame({"level": level, "stage": stage} | bins))
    return pd.concat(parts, ignore_index=True)


@table(("seed", "rewind_step"), reads=("levels",))
def gaps(lab, seed, rewind_step) -> pd.DataFrame:
    """How many survivors are below the cut's threshold.

    Columns: level, density, stage (of `STAGES`), below (share)."""
    rows = []
    for level in range(1, lab.experiment.levels + 1):
        ways, limit = stages(lab, seed, rewind_step, level)
        for stage, (state, mask) in ways.items():
            below = unmask.pruning.share_below(state, mask, limit)
            rows.append((level, lab.density(level), stage, below))
    return pd.DataFrame(rows, columns=["level", "density", "stage", "below"])


def all_chains(e: Experiment, seed: int):
    # of the ways of retraining, as far as they are looked at
    last = e.control_levels[-1]
    return [at for kind in CHAINS for at in chain(e, seed, e.latest, kind)[: last + 1]]


@table(("seed",), reads=_LATE, needs=all_chains)
def refill(lab, seed) -> pd.DataFrame:
    """How many survivors are below the cut's threshold during retraining, by each method, from the
    last rewind step.

    Columns: kind (of `chains.CHAINS`), level, step, share (of the retraining), below (share of the
    survivors)."""
    e, rows = lab.experiment, []
    for kind in CHAINS:
        for level in e.control_levels:
            for step, below in lab.ticket(kind, seed, e.latest, level).course.items():
                share = (step - e.latest) / (e.steps - e.latest)
                rows.append((kind, level, step, share, below))
    return pd.DataFrame(rows, columns=["kind", "level", "step", "share", "below"])


def _cuts(e: Experiment, seed: int) -> float:
    return 3 * e.levels * sum(e.evaluated)


@table(("seed",), reads=("levels", "rewind_steps", "train_measured"), passes=_cuts)
def next_cuts(lab, seed) -> pd.DataFrame:
    """The cut to each level with and without retraining before it; from the last rewind step,
    nothing retrained after. `cut` says what is cut to the level's density, by magnitude:

    * "retrained": the solution of `level - 1`; the result is the level-(level - 1) projection.
    * "continued": the solution of `level - 2`, whose last retraining is left out; from level 2 on.
    * "one-shot": the dense solution; no retraining at all.

    Columns: level, density, cut, length (norm of the weights that the last cut removes, those
    between the density before and this one), test_error and train_loss of what is left."""
    e, rows, prune = lab.experiment, [], unmask.pruning.prune_magnitude
    for level in range(1, e.levels + 1):
        for cut, source in zip(CUTS, (level - 1, level - 2, 0)):
            if source < 0:
                continue
            state, mask, _ = lab.level(seed, e.latest, source)
            wider = prune(state, mask, lab.survivors(level - 1))
            mask = prune(state, wider, lab.survivors(level))
            left = unmask.pruning.apply(mask, state)
            error, loss = lab.evaluate(left).error, lab.evaluate(left, "train").loss
            length = removed_length(state, wider, mask)
            rows.append((level, lab.density(level), cut, length, error, loss))
    columns = ["level", "density", "cut", "length", "test_error", "train_loss"]
    return pd.DataFrame(rows, columns=columns)


def removed_length(state, mask, sparser) -> float:
    """Projection length `|| m * w - m' * w ||`, for m' within m: the norm of the weights that only
    m keeps."""
    removed = {name: kept & ~sparser[name] for name, kept in mask.items()}
    return float(np.linalg.norm(unmask.pruning.surviving(state, removed)))


def _paths(e: Experiment, seed: int) -> float:
    return len(CHAINS) * len(e.control_levels) * (e.barrier_points + 1) * e.evaluated[0]


@table(("seed",), reads=(*_LATE, "barrier_points"), passes=_paths, needs=all_chains)
def retraining_methods(lab, seed) -> pd.DataFrame:
    """Weight rewinding ("imp"), learning-rate rewinding and fine-tuning: chains of their own, from
    the last rewind step.

    Columns: kind (of `chains.CHAINS`), level, density, previous_error (test error of the same chain
    one level before), cut_error (of that network after pruning), test_error (after retraining),
    barrier (test error, to the level before), below (share of survivors below the cut's threshold
    after retraining)."""
    e, rows, pruning = lab.experiment, [], unmask.pruning
    for level in e.control_levels:
        for kind in CHAINS:
            before, after = (lab.ticket(kind, seed, e.latest, at) for at in (level - 1, level))
            path = lab.path(before.state, after.state)
            first, last = path.test_error.iloc[[0, -1]]
            cut = lab.evaluate(pruning.apply(after.mask, before.state)).error
            limit = pruning.threshold(before.state, after.mask)
            below = pruning.share_below(after.state, after.mask, limit)
            rows.append((kind, level, lab.density(level), first, cut, last, barrier(path), below))
    columns = ["kind", "level", "density", "previous_error", "cut_error", "test_error"]
    return pd.DataFrame(rows, columns=[*columns, "barrier", "below"])


# Judging


def refilled(below: pd.Series, e: Experiment) -> pd.Series:
    """How full the gap below the old threshold is again: 1 where as large a share of the survivors
    is there as before the cut, which is `prune_fraction`."""
    return below / e.prune_fraction


def cuts_compared(tables: Tables) -> pd.DataFrame:
    """One row for each seed and level that can be cut with and without retraining before it: the
    `length` and `test_error` of both, in columns such as `length_retrained`."""
    columns = ["length", "test_error"], ["continued", "retrained"]
    keys = ["seed", "level", "density"]
    wide = tables["next_cuts"].pivot(index=keys, columns="cut", values=columns[0])
    wide = wide.reindex(columns=pd.MultiIndex.from_product(columns)).dropna()
    wide.columns = ["_".join(names) for names in wide.columns]
    return wide.reset_index()


def methods_compared(tables: Tables, e: Experiment) -> pd.DataFrame:
    """One row for each seed and level: `matching`, `below`, `test_error` and `barrier` of every
    method.

    Columns are pairs (quantity, kind); the index is seed, level, density."""
    methods = tables["retraining_methods"]
    table = methods.assign(matching=is_matching(methods, tables, e))
    values = ["matching", "below", "test_error", "barrier"]
    return table.pivot(index=["seed", "level", "density"], columns="kind", values=values)


@judge("4", needs=("levels", "gaps", "next_cuts"))
def verdicts(claims: Claims, tables: Tables, e: Experiment) -> None:
    """Without the table of methods, only what IMP's chains tell."""
    if "retraining_methods" in tables:
        below = methods_compared(tables, e)["below"]
        full = refilled(below["lr-rewound"], e) - e.gap_refilled
        claim = "learning-rate rewinding, which starts from an empty gap, fills it again: more "
        claim += f"than {e.gap_refilled:.0%} of what was there before the cut"
        unit, values = "share of what was there", full.groupby("seed").mean()
        claims.add("fig-gap", claim, unit, values, headline=True)
    late = at_latest(tables["gaps"], e)
    below = late.pivot(index=["seed", "level"], columns="stage", values="below")
    full = refilled(below.retrained, e) - e.gap_refilled
    claim = "after rewinding and retraining, the gap is filled again as far"
    claims.add("fig-gap", claim, "share of what was there", full.groupby("seed").mean())
    more = 100 * (below.retrained - below.rewound)
    claim = "it is retraining that makes the small weights: there are more after it than after "
    claim += "rewinding alone"
    claims.add("fig-gap", claim, "points of the survivors", more.groupby("seed").mean())
    compared = cuts_compared(tables)
    longer = np.log(compared.length_continued / compared.length_retrained)
    claim = "the next cut removes a shorter vector with retraining before it than without"
    claims.add("fig-cuts", claim, "log of how many times shorter", by_seed(compared, longer))
    higher = 100 * (compared.test_error_continued - compared.test_error_retrained)
    claim = "the error after the next cut is lower with retraining before it than without"
    claims.add("fig-cuts", claim, "points", by_seed(compared, higher))
    if "retraining_methods" in tables:
        _judge_methods(claims, methods_compared(tables, e), e)


def _judge_methods(claims: Claims, methods: pd.DataFrame, e: Experiment) -> None:
    """Where weight rewinding matches and is sparse: how much worse are the others?"""
    sparse = methods[methods.index.get_level_values("density") <= e.ticket_density]
    errors = sparse[sparse["matching"]["imp"].astype(bool)]["test_error"]
    where = f"where weight rewinding matches with at most {e.ticket_density:.0%} of the weights"
    worse = {kind: 100 * (errors[kind] - errors["imp"]) for kind in ("lr-rewound", "fine-tuned")}
    margin = 100 * e.epsilon
    claim = f"{where}, learning-rate rewinding is not worse by epsilon"
    values = (margin - worse["lr-rewound"]).groupby("seed").mean()
    claims.add("fig-methods", claim, "points", values, spread=claims.spread)
    claim = f"{where}, fine-tuning is worse by more than epsilon"
    values = (worse["fine-tuned"] - margin).groupby("seed").mean()
    claims.add("fig-methods", claim, "points", values, spread=claims.spread)


# The numbers of its prose


def settled_from(course: pd.Series) -> float:
    """The share of retraining from which on a course stays within one point of where it ends."""
    away = (course - course.iloc[-1]).abs() > 0.01
    still_to_come = away[::-1].cummax()[::-1]
    return course.index[~still_to_come].min()


def numbers(tables: Tables, e: Experiment) -> dict[str, float]:
    """By name; shares and errors in percent, NaN where there is none.

    `tenth_*`: error right after the cut that leaves nearest to a tenth of the weights. `below_*`:
    share of survivors below the old threshold, from the last rewind step."""
    cuts, compared = tables["next_cuts"], cuts_compared(tables)
    late = at_latest(tables["gaps"], e)
    nearest = (cuts.density - 0.1).abs().idxmin()
    tenth = cuts[cuts.level == cuts.level[nearest]].groupby("cut").test_error.mean().reindex(CUTS)
    methods, course = tables["retraining_methods"], tables["refill"]
    course = course.groupby(["share", "kind"]).below.mean().unstack()
    longer = by_seed(compared, np.log(compared.length_continued / compared.length_retrained))
    found = {"refilled_from": 100 * e.gap_refilled * e.prune_fraction}
    found |= in_numbers("length_ratio", longer, np.exp)
    found["tenth_density"] = 100 * cuts.density[nearest]
    found |= {f"tenth_{cut.replace('-', '_')}": 100 * error for cut, error in tenth.items()}
    for stage in ("rewound", "retrained"):
        rows = late[late.stage == stage]
        found |= in_numbers(f"below_{stage}", by_seed(rows, 100 * rows.below))
    for kind, rows in methods.groupby("kind"):
        name = kind.replace("-", "_")
        found |= in_numbers(f"below_{name}", by_seed(rows, 100 * rows.below))
        found[f"barrier_{name}"] = 100 * rows.barrier.mean()
        found[f"settled_{name}"] = 100 * settled_from(course[kind])
    return settings_in_numbers(e) | found


# Its figures


def histograms(tables: Tables, e: Experiment) -> Figure:
    """Surviving magnitudes through prune, rewind, retrain (columns), at the first, a middle and
    the last level shown: density (above) and share of smaller ones (below); survivors of all
    seeds."""
    table, levels = tables["magnitudes"], tables["levels"]
    known = sorted(table.level.unique())
    shown = sorted({known[0], known[len(known) // 2], known[-1]})
    total = table.groupby(["level", "stage", "low", "high"])["count"].sum().reset_index()
    figure, axes = plots.panels(4, rows=2, width=2.6, height=2.5, sharex=True, sharey="row")
    for column, stage in zip(axes.T, STAGES):
        for level, style in styles(shown).items():
            counts = total[(total.stage == stage) & (total.level == level)].sort_values("low")
            finite = counts[np.isfinite(counts.high)]
            edges = np.append(finite.low, finite.high.iloc[-1])
            share = finite["count"] / counts["count"].sum()
            look = dict(color=style["color"], ls=style["ls"], lw=1.4)
            look["label"] = plots.density_at(levels, level)
            column[0].stairs(share / (finite.high - finite.low), edges, **look)
            column[1].plot(edges, PERCENT * np.append(0, share.cumsum()), **look)
        for ax in column:
            ax.axvspan(0, 1, color="0.5", alpha=0.15, lw=0)
        column[0].set_title("trained" if stage == "solution" else stage)
        column[1].set(xlim=(0, table.low.max()), ylim=(0, 100))
    figure.supxlabel("magnitude, in units of the pruning threshold", fontsize="medium")
    axes[0, 0].set_ylabel("density")
    axes[1, 0].set_ylabel("survivors below (%)")
    plots.legend_above(figure, axes[0, 0])
    return figure


def gap(tables: Tables, e: Experiment) -> Figure:
    """Share of survivors below the old threshold: after rewinding and after retraining at every
    level (left), from the first and the last rewind step, means over seeds, and in the course of
    retraining by each method (right), thin lines for levels and thick ones for their mean.
    Horizontal lines: how many were there before the cut, and from how many on the gap counts as
    filled."""
    figure, axes = plots.panels(2, width=4.75, height=3.9, sharey=True)
    left, right = axes[0]
    gaps = tables["gaps"]
    shown = gaps[gaps.rewind_step.isin((e.earliest, e.latest))]
    for label, style, rows in by_step(shown, e):
        mean, color = rows.groupby(["stage", "density"]).below.mean() * PERCENT, style["color"]
        step = label.removeprefix("rewound to ")
        for stage, face, ls in (("rewound", "white", ":"), ("retrained", color, "-")):
            look = style | {"ls": ls, "mfc": face, "label": f"{step}, {stage}"}
            left.plot(PERCENT * mean[stage].index, mean[stage], **look)
    refill = tables["refill"].groupby(["kind", "share", "level"]).below.mean() * PERCENT
    for kind, style in styles(METHODS).items():
        course, color = refill[kind].unstack("level"), style["color"]
        at, mean = PERCENT * course.index, course.mean(axis=1)
        right.plot(at, course, color=color, lw=0.6, alpha=0.6)
        right.plot(at, mean, color=color, ls=style["ls"], lw=1.8, label=METHODS[kind])
    drops = [share * e.steps - e.latest for share in e.milestones if share * e.steps > e.latest]
    for i, drop in enumerate(drops):
        label = "learning rate drops" if i == 0 else None
        at = PERCENT * drop / (e.steps - e.latest)
        right.axvline(at, color="0.3", lw=1, ls=":", label=label)
    for ax in (left, right):
        threshold_line(ax, e.prune_fraction, ls="-")
        threshold_line(ax, e.prune_fraction * e.gap_refilled, ls="--")
    plots.density_axis(left, gaps.density)
    left.set_ylabel("survivors below the old threshold (%)")
    left.set_ylim(0, 1.3 * left.get_ylim()[1])  # room for the legend
    left.set_yticks([share for share in left.get_yticks() if share <= PERCENT])
    left.legend(fontsize="x-small", ncols=2, loc="upper left")
    right.set_xlabel(f"retraining done (%), from step {e.latest}")
    plots.legend_beside(right, fontsize="small")
    return figure


def cuts(tables: Tables, e: Experiment) -> Figure:
    """The cut to each density with and without retraining before it: length of what it removes
    (left), test error of what it leaves (right), beside the error after retraining. Means and
    ranges over seeds."""
    figure, axes = plots.panels(2, width=4.75, height=3.9)
    (left, right), table = axes[0], tables["next_cuts"]
    words = "retrained before the cut", "last retraining left out", "no retraining at all"
    looks = styles((*CUTS, "imp"))
    for cut, label in zip(CUTS, words):
        here = table[table.cut == cut]
        mean_and_range(left, here, "density", "length", scale=1, label=label, **looks[cut])
        mean_and_range(right, here, "density", "test_error", label=label, **looks[cut])
    late = at_latest(tables["levels"], e).query("level > 0")
    label = "IMP, retrained after the cut"
    mean_and_range(right, late, "density", "test_error", label=label, **looks["imp"])
    plots.matching_line(right, tables, e)
    for ax in (left, right):
        plots.density_axis(ax, table.density)
    left.set_ylabel("length of the removed weights")
    left.set_ylim(bottom=0)
    plots.error_axis(right, "test error (%)")
    plots.legend_beside(right, fontsize="small")
    return figure


def methods(tables: Tables, e: Experiment) -> Figure:
    """Weight rewinding, learning-rate rewinding and fine-tuning: test error, barrier to the
    level before, and share of survivors below the old threshold. Means and ranges over seeds."""
    table, columns = tables["retraining_methods"], ("test_error", "barrier", "below")
    figure, axes = plots.panels(3, width=3.7, height=3.7)
    error, barriers, below = axes[0]
    for kind, style in styles(METHODS).items():
        for ax, column in zip(axes[0], columns):
            here = table[table.kind == kind]
            mean_and_range(ax, here, "density", column, label=METHODS[kind], **style)
    plots.matching_line(error, tables, e)
    threshold_line(barriers, e.lmc_threshold)
    threshold_line(below, e.prune_fraction * e.gap_refilled, ls="--")
    for ax in axes[0]:
        plots.density_axis(ax, table.density)
    plots.error_axis(error, "test error (%)")
    barriers.set_ylabel("barrier to the level before\n(percentage points)")
    below.set_ylabel("survivors below the old\nthreshold (%)")
    below.set_ylim(bottom=0)
    error.legend(fontsize="small")
    return figure
