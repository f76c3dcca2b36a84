"""Finding 1: successive levels are linearly connected if and only if they are matching."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.figure import Figure

import unmask

from .. import plots
from ..chains import both_levels
from ..experiments import Experiment
from ..plots import LABELS, PERCENT, by_step, matching_line, mean_and_range, plain_log, styles
from ..plots import threshold_line
from ..tables import labelled, table
from ..verdicts import METRICS, Claims, Tables, at_earliest, at_latest, barrier, barriers, by_seed
from ..verdicts import in_numbers, in_sublevel_set, interval, is_at_most, is_connected, judge
from ..verdicts import log_barrier, reference_errors, settings_in_numbers, where_imp_matches
from ..verdicts import with_matching, with_next_level

INTERPOLATED, REESTIMATED = "interpolated", "re-estimated"
_KEYS = ["seed", "rewind_step", "level", "next_level"]


def _paths(e: Experiment, seed: int, rewind_step: int) -> float:
    test, train = e.evaluated
    reestimated = 3 * (test + 2 * train)
    return e.levels * (e.barrier_points * (test + train) + reestimated)


@table(("seed", "rewind_step"), reads=("levels", "barrier_points", "train_measured"), passes=_paths)
def segments(lab, seed, rewind_step) -> pd.DataFrame:
    """Performance along the segments between successive levels of one chain.

    Columns: level, next_level, norms, t, and the metrics. Batch-norm statistics are interpolated
    like all else; with `norms` "re-estimated", at the ends and the midpoint only, they are those of
    the training data at each point."""
    parts = []
    for level in range(lab.experiment.levels):
        one = lab.level(seed, rewind_step, level).state
        other = lab.level(seed, rewind_step, level + 1).state
        path = lab.path(one, other, metrics=METRICS)
        anew = lab.path(one, other, (0.0, 0.5, 1.0), metrics=METRICS, reestimate=True)
        for norms, part in ((INTERPOLATED, path), (REESTIMATED, anew)):
            parts.append(labelled(part, level=level, next_level=level + 1, norms=norms))
    return pd.concat(parts, ignore_index=True)


@table(
    ("seed", "rewind_step"),
    reads=("levels",),
    passes=lambda e, *keys: (e.levels + 1) * (e.levels + 2) / 2 * e.evaluated[0],
)
def pairs(lab, seed, rewind_step) -> pd.DataFrame:
    """Test-error barrier at the midpoint between every two levels of one chain.

    Columns: level, other, barrier."""
    levels = range(lab.experiment.levels + 1)
    states = [lab.level(seed, rewind_step, level).state for level in levels]
    ends, rows = [lab.evaluate(state).error for state in states], []
    for level, other in combinations(levels, 2):
        (middle,) = lab.path(states[level], states[other], (0.5,)).test_error
        errors = ends[level], middle, ends[other]
        path = pd.DataFrame({"t": (0.0, 0.5, 1.0), "test_error": errors})
        rows.append((level, other, barrier(path)))
    return pd.DataFrame(rows, columns=["level", "other", "barrier"])


PROJECTION, FINE_TUNED, RETRAINED = "projection", "fine-tuned", "retrained"


@table(
    ("seed", "rewind_step", "level"),
    reads=("barrier_points",),
    steps=lambda e, seed, rewind_step, level: e.steps - rewind_step,
    passes=lambda e, *keys: 3 * e.barrier_points * e.evaluated[0],
    levels="probe_levels",
    needs=both_levels,
)
def subspaces(lab, seed, rewind_step, level) -> pd.DataFrame:
    """Does the next level's axial subspace meet the linearly connected sublevel set of `w^(L)`, and
    does training find it there? Three networks of that subspace, against `w^(L)`.

    Columns: weights, test_error, solution_error (of `w^(L)`), barrier (test error, between the
    two). `weights` is one of

    * "projection": `w^(L)` with the next mask applied: a point of the subspace found without any
      training.
    * "fine-tuned": the projection trained within the mask as many steps as a retraining has, at
      the schedule's last learning rate.
    * "retrained": `w^(L+1)`, trained within the mask from the rewind point."""
    solution, after = (lab.level(seed, rewind_step, level + i) for i in (0, 1))
    projection = unmask.pruning.apply(after.mask, solution.state)
    start = unmask.train.Start(projection, after.mask, (seed, "order", level + 1, "fine-tuned"))
    (tuned,) = lab.trained([start], rewind_step, fine_tune=True)
    states, rows = {PROJECTION: projection, FINE_TUNED: tuned, RETRAINED: after.state}, []
    for weights, state in states.items():
        path = lab.path(solution.state, state)
        before, error = path.test_error.iloc[[0, -1]]
        rows.append((weights, error, before, barrier(path)))
    return pd.DataFrame(rows, columns=["weights", "test_error", "solution_error", "barrier"])


# Judging


def successive(tables: Tables, e: Experiment) -> pd.DataFrame:
    """One row for each pair of successive levels: is the sparser one matching, and are the two
    connected?

    Columns: seed, rewind_step, level, next_level, barrier (test error, whole segment),
    train_error_barrier, train_loss_barrier (nats), connected (by `barrier`), and of `next_level`:
    density, excess, matching."""
    names = dict(zip(METRICS, ("barrier", "train_error_barrier", "train_loss_barrier")))
    table = barriers(_interpolated(tables), _KEYS, METRICS).rename(columns=names).reset_index()
    return with_next_level(table, tables, e)


def _interpolated(tables: Tables) -> pd.DataFrame:
    return tables["segments"][tables["segments"].norms == INTERPOLATED]


def midpoint_barriers(tables: Tables) -> pd.DataFrame:
    """Barriers of test error by the ends and the midpoint alone, one row for each pair of
    successive levels: columns "interpolated" and "re-estimated", the batch-norm statistics
    there."""
    segments = tables["segments"]
    ends = segments[segments.t.isin((0.0, 0.5, 1.0))]
    return barriers(ends, [*_KEYS, "norms"]).test_error.unstack()


def first_barriers(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Of `midpoint_barriers`, by seed, those of the first cut, rewound to the first step."""
    return midpoint_barriers(tables).xs((e.earliest, 0, 1), level=_KEYS[1:])


def at_higher_sparsity(pairs: pd.DataFrame, e: Experiment) -> pd.DataFrame:
    """The pairs of which the paper's claim speaks: the sparser level keeps at most
    `higher_sparsity` of the weights."""
    return pairs[pairs.density <= e.higher_sparsity]


def all_pairs(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Every two levels of each chain, with columns `connected` (midpoint barrier) and
    `both_matching`."""
    pairs, keys = tables["pairs"], ["seed", "rewind_step", "level"]
    matching = with_matching(tables, e).set_index(keys).matching
    found = []
    for end in ("level", "other"):
        places = pd.MultiIndex.from_arrays([pairs.seed, pairs.rewind_step, pairs[end]])
        found.append(matching.reindex(places).to_numpy())
    connected = is_connected(pairs.barrier, e)
    return pairs.assign(connected=connected, both_matching=found[0] & found[1])


def in_set(tables: Tables, e: Experiment) -> pd.DataFrame:
    """The networks of the next axial subspace with a column `inside`: in the linearly connected
    sublevel set of `w^(L)`, that is, no more than epsilon worse and no barrier between the two?"""
    table = tables["subspaces"]
    return table.assign(inside=in_sublevel_set(table, e))


def there_and_found(tables: Tables, e: Experiment) -> pd.DataFrame:
    """One row for each seed, rewind step and probed level.

    Columns: seed, rewind_step, level, projection, fine-tuned, retrained (is it in the set?), there
    (the subspace meets the set: one of the three is in it), found (by retraining), matching, lost
    (is IMP's next level)."""
    keys = ["seed", "rewind_step", "level"]
    table = in_set(tables, e).pivot(index=keys, columns="weights", values="inside").reset_index()
    there = table[PROJECTION] | table[FINE_TUNED] | table[RETRAINED]
    table = table.assign(there=there, found=table[RETRAINED])
    reached = with_matching(tables, e)[[*keys, "matching", "lost"]]
    return table.merge(reached.assign(level=reached.level - 1), on=keys)


def where_pruning_works(probed: pd.DataFrame, e: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of `there_and_found`, the rows of the first rewind step and of the last, both at the levels
    whose next one matches from the last; none of networks at chance."""
    probed = probed[~probed.lost]
    late = at_latest(probed, e)
    late = late[late.matching]
    first = at_earliest(probed, e).merge(late[["seed", "level"]], on=["seed", "level"])
    return first, late


def lost_from(pairs: pd.DataFrame, good: pd.Series) -> pd.Series:
    """By seed, the first level from which on no pair of a chain is `good`: one more than the last
    that is; the first of all where none is."""
    last = pairs.next_level.where(good, pairs.next_level.min() - 1).groupby(pairs.seed).max()
    return last + 1


@judge("1", needs=("levels", "segments", "pairs"))
def verdicts(claims: Claims, tables: Tables, e: Experiment) -> None:
    """Without the tables of controls and subspaces, only what IMP's chains tell."""
    steps = successive(tables, e)
    steps = steps[~steps.lost]
    late = at_higher_sparsity(at_latest(steps, e), e)
    decades = "decades of the barrier's threshold"
    margin = log_barrier(steps.barrier, e)
    yes, no = late[late.matching], late[~late.matching]
    where = "at higher sparsities, from the last rewind step"
    claim, values = "a matching level is connected to the one before", -margin[yes.index]
    claims.add("fig-iff", f"{where}, {claim}", decades, by_seed(yes, values), headline=True)
    claim = "a level that does not match is not connected to the one before"
    values = margin[no.index]
    claims.add("fig-iff", f"{where}, {claim}", decades, by_seed(no, values), headline=True)
    if len(e.rewind_steps) > 1:
        first = at_earliest(steps, e)
        early = first[first.matching]
        where = "from the first rewind step"
        claim = f"{where}, even a matching level is not connected to the one before"
        claims.add("fig-iff", claim, decades, by_seed(early, margin[early.index]))
        claim = f"{where}, no level is connected to the next"
        claims.add("fig-zigzag", claim, decades, by_seed(first, margin[first.index]))
    pairs = at_latest(steps, e)
    matches, connects = lost_from(pairs, pairs.matching), lost_from(pairs, pairs.connected)
    ended = connects.index[connects > e.levels]
    lag = "from the last rewind step, how many levels later the connection is lost than matching"
    claims.measure("fig-iff", lag, "levels", connects - matches, bounds=ended)
    linked = at_latest(all_pairs(tables, e), e)
    linked = linked[linked.both_matching]
    shares = by_seed(linked, 100 * linked.connected)
    claim = "from the last rewind step, share of the pairs of matching levels that are connected"
    claims.measure("fig-pairs", claim, "%", shares)
    if "controls" in tables:
        compared = where_imp_matches(tables, e)
        few = f"where IMP matches with at most {e.ticket_density:.0%} of the weights"
        for kind, words in (("random", "random mask"), ("shuffled", "layer-wise shuffled mask")):
            here = compared[compared.kind == kind]
            claim = f"{few}, training within a {words} ends behind a barrier"
            claims.add("fig-mask", claim, decades, by_seed(here, log_barrier(here.barrier, e)))
    if "subspaces" in tables:
        _judge_the_mask(claims, there_and_found(tables, e), e)


def _judge_the_mask(claims: Claims, probed: pd.DataFrame, e: Experiment) -> None:
    """M is the share of a seed's probed levels, less one half."""
    (first, late), unit = where_pruning_works(probed, e), "points above half of the levels"
    meets = "the next axial subspace meets the connected sublevel set of the level before"

    def share(rows, column):
        return by_seed(rows, 100 * rows[column]) - 50

    where = "from the last rewind step, where the next level matches"
    claims.add("fig-there", f"{where}, {meets}", unit, share(late, "there"))
    claims.add("fig-there", f"{where}, training ends in that set", unit, share(late, "found"))
    if len(e.rewind_steps) > 1:
        where = "from the first rewind step, at the same levels"
        claims.add("fig-there", f"{where}, {meets} as well", unit, share(first, "there"))
        claim = f"{where}, training does not end in that set"
        claims.add("fig-there", claim, unit, -share(first, "found"))


# The numbers of its prose


def numbers(tables: Tables, e: Experiment) -> dict[str, float]:
    """By name; errors, barriers and shares in percent. `barrier_matching` and `barrier_other` are
    geometric means over the pairs that 1a and 1b speak of."""
    judged = successive(tables, e)
    keys, points = _KEYS[:3], _interpolated(tables)
    ends = points[points.t.isin((0.0, 1.0))].groupby(keys).test_error
    middle = points[points.t == 0.5][[*keys, "test_error"]].merge(judged, on=keys)
    # how far the error rises above the worse end, which a barrier does not need
    hill = points.groupby(keys).test_error.max() - ends.max()
    middle = middle.merge(pd.DataFrame({"end_error": ends.mean(), "hill": hill}), on=keys)
    first, late = at_earliest(middle, e), at_latest(middle, e)
    other, late = late[~late.matching & ~late.lost], late[late.matching]
    whole = at_latest(judged[~judged.lost], e)
    sparse = at_higher_sparsity(whole, e)
    margin = log_barrier(sparse.barrier, e)
    found = {
        "mid_first": 100 * first.test_error.mean(),
        "mid_late": 100 * late.test_error.mean(),
        "ends_late": 100 * late.end_error.mean(),
        "late_pairs": len(late),
        "late_hill": 100 * late.hill.max(),
        "other_pairs": len(other),
        "other_connected": other.connected.sum(),
        "pairs": len(judged),
        "connected": judged.connected.sum(),
        "not_matching": (~judged.matching).sum(),
        "largest_barrier": 100 * judged.barrier.max(),
        "largest_of_any": 100 * tables["pairs"].barrier.max(),
        "largest_reestimated": 100 * midpoint_barriers(tables)[REESTIMATED].max(),
        "matching_until": lost_from(whole, whole.matching).mean() - 1,
        "connected_until": lost_from(whole, whole.connected).mean() - 1,
    }
    for name, rows in (("matching", sparse[sparse.matching]), ("other", sparse[~sparse.matching])):
        by = by_seed(rows, margin[rows.index])
        found |= in_numbers(f"barrier_{name}", by, lambda m: 100 * e.lmc_threshold * 10**m)
    if "subspaces" in tables:
        probed = where_pruning_works(there_and_found(tables, e), e)
        for name, rows in zip(("first", "late"), probed):
            for column in ("there", "found"):
                found |= in_numbers(f"{column}_{name}", by_seed(rows, 100 * rows[column]))
    return settings_in_numbers(e) | found


_WORDS = {True: "matching", False: "not matching"}
_LINKED = {True: "connected", False: "not connected"}


def quadrants(tables: Tables, e: Experiment) -> pd.DataFrame:
    """The pairs of successive levels at higher sparsities, by rewind step: matching or not, and
    connected or not, in percent, mean over seeds, and how many (in brackets); and those whose
    sparser network is at chance, of which neither is asked."""
    sparse = at_higher_sparsity(successive(tables, e), e)
    words = sparse.matching.map(_WORDS) + ", " + sparse.connected.map(_LINKED)
    kind = words.where(~sparse.lost, "at chance")
    counts = pd.crosstab([sparse.rewind_step, sparse.seed], kind)
    columns = [f"{one}, {other}" for one in _WORDS.values() for other in _LINKED.values()]
    counts = counts.reindex(columns=columns + ["at chance"] * ("at chance" in counts), fill_value=0)
    shares = 100 * counts.div(counts.sum(axis=1), axis=0).groupby("rewind_step").mean()
    sums = counts.groupby("rewind_step").sum().astype(str)
    shown = shares.map("{:.1f}".format).astype(str) + " (" + sums + ")"
    return shown.rename_axis(index="rewound to step", columns="share of the pairs (%)")


def barriers_by_metric(pairs: pd.DataFrame) -> pd.DataFrame:
    """Median barrier between successive levels by rewind step and matching, for test error, train
    error, train loss."""
    points = {"test error (points)": 100 * pairs.barrier}
    points["train error (points)"] = 100 * pairs.train_error_barrier
    points["train loss (nats)"] = pairs.train_loss_barrier
    keys = [pairs.rewind_step.rename("rewound to step")]
    keys.append(pairs.matching.map(_WORDS).rename("next level is"))
    return pd.DataFrame(points).groupby(keys).median().round(2)


# Its figures

VEGA_LITE = "application/vnd.vegalite.v5+json"


def zigzag(tables: Tables, e: Experiment) -> Figure:
    """Test error at every level and half-way between each and the next, one panel for each
    rewind step. Levels are solid dots, midpoints hollow; a thin line for each seed, a thick one
    for their mean."""
    levels, columns = tables["levels"], ["seed", "rewind_step", "level", "test_error"]
    middle = _interpolated(tables).query("t == 0.5").eval("level = level + 0.5")
    points = pd.concat([levels[columns], middle[columns]])
    count = points.rewind_step.nunique()
    figure, axes = plots.panel_rows(count, height=3.2, sharey=True)
    for ax, (label, style, chain) in zip(axes, by_step(points, e)):
        color, chain = style["color"], chain.sort_values("level")
        for _, seed in chain.groupby("seed"):
            ax.plot(seed.level, PERCENT * seed.test_error, color=color, lw=0.6, alpha=0.6)
        mean = chain.groupby("level").test_error.mean() * PERCENT
        whole, half = mean[mean.index % 1 == 0], mean[mean.index % 1 != 0]
        ax.plot(mean.index, mean, color=color, lw=1.6)
        ax.plot(whole.index, whole, "o", color=color, label="trained network")
        ax.plot(half.index, half, "o", color=color, mfc="white", label="midpoint between two")
        matching_line(ax, tables, e)
        ax.set(title=label, xlabel="pruning level")
        ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        plots.error_axis(ax)
    axes[0].set_ylabel("test error (%)")
    plots.legend_above(figure, axes[0])
    return figure


def along_segments(tables: Tables, e: Experiment) -> Figure:
    """Test error along whole segments between successive levels: the first, a middle and the
    last pair."""
    segments = _interpolated(tables)
    starts = sorted({0, e.levels // 2, e.levels - 1})
    figure, axes = plots.panels(len(starts), height=3.3, sharey=True)
    for ax, start in zip(axes[0], starts):
        for label, style, chain in by_step(segments[segments.level == start], e):
            mean_and_range(ax, chain, "t", "test_error", label=label, **style)
        ax.set_title(f"from level {start} ({plots.density_at(tables['levels'], start)})")
        ax.set_xlabel(f"position from level {start} to {start + 1}")
        plots.error_axis(ax)
    axes[0, 0].set_ylabel("test error (%)")
    plots.legend_above(figure, axes[0, 0])
    return figure


class Chart(dict):
    """What a notebook shows, by MIME type."""

    def _repr_mimebundle_(self, **_) -> dict:
        return self


def explorer(tables: Tables, e: Experiment) -> Chart:
    """Any seed's chain from any rewind step, the whole way from any of its levels to the next, and
    the barriers between any two: a Vega-Lite chart with controls, elsewhere a picture of how it
    begins.

    Its data has a row for each pair of `successive`: seed, rewind_step, level, t and error (for
    each point of the way), barrier, limit (the largest error that matches), words, other and far
    (for each later level the midpoint barrier to it); in percent."""
    import vl_convert

    ways = _interpolated(tables).assign(error=lambda rows: (PERCENT * rows.test_error).round(2))
    rows = ways.groupby(_KEYS)[["t", "error"]].agg(list)
    rows = rows.join(successive(tables, e).set_index(_KEYS)).reset_index("next_level")
    later = tables["pairs"].assign(far=lambda table: (PERCENT * table.barrier).round(1))
    rows = rows.join(later.groupby(_KEYS[:3])[["other", "far"]].agg(list)).reset_index()
    rows["words"] = [_in_words(row) for row in rows.itertuples()]
    rows["barrier"] = (PERCENT * rows.barrier).round(3)
    rows["limit"] = (PERCENT * (rows.seed.map(reference_errors(tables)) + e.epsilon)).round(3)
    columns = [*_KEYS[:3], "t", "error", "barrier", "limit", "words", "other", "far"]
    spec = yaml.safe_load(Path(__file__).with_name("explorer.yml").read_text())
    spec["data"] = {"values": rows[columns].to_dict("records")}
    ends = {"least": float(ways.error[ways.error > 0].min()), "last": e.levels - 1}
    spec["params"] = [{"name": name, "value": value} for name, value in ends.items()]
    # What can be chosen, and what is at first: a hill, half-way down a chain.
    choices = {"rewind_step": {"options": list(e.rewind_steps)}}
    choices |= {"seed": {"options": list(e.all_seeds)}, "level": {"max": e.levels - 1}}
    first = {"rewind_step": e.earliest, "seed": e.first_seed, "level": e.levels // 2}
    for control in spec["concat"][0]["layer"][-1]["params"]:
        ((field, bound),) = control["bind"].items()
        bound |= choices[field]
        control["value"] = [{field: first[field]}]
    return Chart({VEGA_LITE: spec, "image/svg+xml": vl_convert.vegalite_to_svg(spec)})


def _in_words(pair) -> list[str]:
    after = f"level {pair.next_level}"
    return [
        f"From level {pair.level} to {after}, {pair.density:.1%} of the weights:",
        f"barrier {PERCENT * pair.barrier:.1f} points, {_LINKED[pair.connected]};",
        f"{after} is {_WORDS[pair.matching]}.",
    ]


def barrier_against_excess(tables: Tables, e: Experiment) -> Figure:
    """Each pair of successive levels: its barrier against how much worse than its seed's reference
    the sparser one is.

    Shaded: the two quadrants in which "connected" and "matching" disagree. Axes are linear within
    the thresholds and logarithmic beyond."""
    figure, ax = plt.subplots(figsize=(8.6, 4.6))
    pairs = successive(tables, e)
    sparse, excess = pairs.density <= e.higher_sparsity, PERCENT * pairs.excess
    epsilon, threshold = PERCENT * e.epsilon, PERCENT * e.lmc_threshold
    left, right = min(excess.min() * 1.2, -epsilon), max(excess.max() * 1.3, 2 * epsilon)
    bottom, top = -0.6 * threshold, 100
    ax.set_xscale("symlog", linthresh=epsilon)
    ax.set_yscale("symlog", linthresh=threshold)
    ax.fill_between([left, epsilon], threshold, top, color="0.5", alpha=0.15, lw=0)
    ax.fill_between([epsilon, right], bottom, threshold, color="0.5", alpha=0.15, lw=0)
    ax.axvline(epsilon, color="0.3", lw=1)
    ax.axhline(threshold, color="0.3", lw=1)
    for label, style, chain in by_step(pairs, e):
        look = dict(s=34, marker=style["marker"], edgecolor=style["color"], linewidth=1.2, zorder=3)
        for chosen, face, name in ((sparse, style["color"], label), (~sparse, "none", None)):
            here = PERCENT * chain[chosen.reindex(chain.index)][["excess", "barrier"]]
            ax.scatter(here.excess, here.barrier, facecolor=face, label=name, **look)
    label = f"more than {e.higher_sparsity:.0%} of weights"
    ax.scatter([], [], s=34, facecolor="none", edgecolor="0.3", label=label)
    for matching, words in _WORDS.items():
        for connected, end in ((True, "connected"), (False, "not connected")):
            at = (0.01 if matching else 0.99, 0.02 if connected else 1.01)
            side = dict(ha="left" if matching else "right", va="bottom", fontsize="small")
            ax.annotate(f"{words},\n{end}", at, xycoords="axes fraction", **side)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_xlabel("test error above the seed's reference (percentage points)")
    ax.set_ylabel("barrier to the level before\n(percentage points)")
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    plots.legend_beside(ax)
    return figure


def pairs_of_levels(tables: Tables, e: Experiment) -> Figure:
    """Mean barrier at the midpoint between every two levels, one panel for each rewind step.

    A line marks the sparsest level up to which all levels match, on average over seeds."""
    pairs, levels, size = tables["pairs"], tables["levels"], range(e.levels + 1)
    means = PERCENT * pairs.groupby(["rewind_step", "level", "other"]).barrier.mean()
    look = dict(vmin=0, vmax=means.max(), cmap="viridis_r", rasterized=True)
    steps = sorted(pairs.rewind_step.unique())
    figure, axes = plots.panel_rows(len(steps), width=3.0, height=3.0)
    for ax, (label, _, chain) in zip(axes, by_step(pairs, e)):
        grid = means[chain.rewind_step.iloc[0]].unstack().reindex(index=size, columns=size)
        full = grid.combine_first(grid.T)
        ax.pcolormesh(full, **look)
        last = _last_matching(levels[levels.rewind_step == chain.rewind_step.iloc[0]], tables, e)
        for line in (ax.axhline, ax.axvline):
            line(last + 1, color="#d55e00", lw=1.5, ls="--")
        ticks = np.array(size[:: max(2, len(size) // 6)])
        ax.set(title=label, xlabel="level", ylabel="level" if ax is axes[0] else "")
        ax.set(aspect="equal", ylim=(len(size), 0))
        ax.set_xticks(ticks + 0.5, ticks)
        ax.set_yticks(ticks + 0.5, ticks)
        ax.tick_params(labelsize="small", rotation=0)
    words = "midpoint barrier\n(percentage points)"
    figure.colorbar(axes[0].collections[0], ax=axes, shrink=0.7, label=words)
    return figure


def _last_matching(chain: pd.DataFrame, tables: Tables, e: Experiment) -> int:
    limit = plots.most_that_matches(tables, e)
    failing = ~is_at_most(chain.groupby("level").test_error.mean(), limit)
    return int(failing.idxmax()) - 1 if failing.any() else int(chain.level.max())


def mask_information(tables: Tables, e: Experiment) -> Figure:
    """Networks trained within IMP's, one-shot, shuffled and random masks: how much worse, and how
    far across a barrier, they are from the IMP solution of the level before."""
    figure, axes = plots.panels(2, width=4.2, height=3.7)
    controls, looks = tables["controls"], styles(LABELS)
    controls = controls.assign(worse=controls.test_error - controls.previous_error)
    shown = ("worse", "test error above", e.epsilon), ("barrier", "barrier to", e.lmc_threshold)
    for ax, (column, words, limit) in zip(axes[0], shown):
        for kind in ("imp", "one-shot", "shuffled", "random"):
            here = controls[controls.kind == kind]
            mean_and_range(ax, here, "density", column, label=LABELS[kind], **looks[kind])
        threshold_line(ax, limit)
        plots.density_axis(ax, controls.density)
        ax.set_ylabel(f"{words} the level before\n(percentage points)")
    axes[0, 0].legend()
    return figure


def there_or_found(tables: Tables, e: Experiment) -> Figure:
    """How often the next axial subspace meets the connected sublevel set of the level before, and
    how often training ends there, by rewind step: share of the probed levels, mean over seeds and
    its interval. Left: where the next level matches; right: where it does not."""
    probed = there_and_found(tables, e).query("not lost")
    curves = {
        "there": "a point of the set is there",
        PROJECTION: "the projection itself is one",
        "found": "training ends in the set",
    }
    figure, axes = plots.panels(2, width=4.4, height=3.7, sharey=True)
    steps = list(e.rewind_steps)
    for ax, (matching, words) in zip(axes[0], _WORDS.items()):
        here = probed[probed.matching == matching]
        for (column, label), style in zip(curves.items(), styles(curves).values()):
            # by seed first: levels of one seed are not independent
            by = here[column].astype(float).groupby([here.rewind_step, here.seed]).mean()
            ends = by.groupby("rewind_step").apply(interval)
            at = [steps.index(step) for step in ends.index]
            mean, low, high = (PERCENT * np.array(ends.tolist()).reshape(-1, 3).T).clip(0, 100)
            ax.plot(at, mean, label=label, **style)
            ax.fill_between(at, low, high, color=style["color"], alpha=0.15, lw=0)
        ax.set(title=f"next level {words}", xlabel="rewound to step", ylim=(-4, 104))
        ax.set_xticks(range(len(steps)), steps)
        ax.set_xlim(-0.3, len(steps) - 0.7)
    axes[0, 0].set_ylabel("share of the probed levels (%)")
    plots.legend_above(figure, axes[0, 0])
    return figure


def first_cuts(tables: Tables, e: Experiment, others: dict | None = None) -> Figure:
    """The barrier that the first cut leaves here and in other settings, a dot for each seed;
    `others`: their tables and experiments, by words."""
    settings = {"as above": (tables, e)} | (others or {})
    found = {words: PERCENT * first_barriers(*both) for words, both in settings.items()}
    rows = pd.concat(found).stack().rename_axis(["setting", "seed", "statistics"]).rename("barrier")
    figure, ax = plt.subplots(figsize=(9, 3.6))
    places = dict(x="setting", y="barrier", hue="statistics", dodge=True, jitter=False)
    sns.stripplot(rows.reset_index(), **places, size=7, alpha=0.8, palette="colorblind", ax=ax)
    plots.barrier_axis(ax, e)
    ax.set(xlabel="", ylabel="midpoint barrier, dense\nto level 1 (points)")
    plots.legend_beside(ax, title="batch-norm\nstatistics")
    return figure


def effect_of_norms(tables: Tables, e: Experiment) -> Figure:
    """Midpoint barriers with interpolated batch-norm statistics against re-estimated ones."""
    figure, ax = plt.subplots(figsize=(5.4, 4.8))
    barriers = PERCENT * midpoint_barriers(tables)
    for label, style, chain in by_step(barriers, e):
        ax.plot(chain[INTERPOLATED], chain[REESTIMATED], **style | {"ls": "none"}, label=label)
    ax.plot([0, 90], [0, 90], color="0.3", lw=1, ls=":")
    ax.set(xscale="symlog", yscale="symlog", xlim=(-0.2, 100), ylim=(-0.2, 100))
    ax.set_xlabel("midpoint barrier, statistics interpolated\n(percentage points)")
    ax.set_ylabel("statistics re-estimated\n(percentage points)")
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    ax.legend()
    return figure
