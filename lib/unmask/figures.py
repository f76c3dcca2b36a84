"""Figures: from tidy tables to matplotlib.

Each function draws on axes it is given and returns nothing, or makes a figure of several panels and returns it.
Colors and markers stand for the same rewind steps, or the same controls, in every figure; colors are seaborn's palette
for color-blind readers, and markers and dashes tell curves apart in grey print as well.
"""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import claims
from .experiments import Experiment
from .measure import INTERPOLATED, REESTIMATED

PERCENT = 100
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
_KINDS = {"imp": "IMP", "one-shot": "one-shot", "reinitialized": "IMP mask, new weights",
          "shuffled": "shuffled layer-wise", "random": "random"}


def set_style() -> None:
    """The book's look; call once in a notebook."""
    sns.set_theme("notebook", "ticks", "colorblind", rc={
        "figure.dpi": 150, "figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False, "axes.titlesize": "medium",
        "lines.markersize": 5})


def errors_by_level(ax: Axes, levels: pd.DataFrame, experiment: Experiment) -> None:
    """Test error against density, one curve for each rewind step: mean and range over seeds."""
    for style, (step, chain) in zip(_styles(), levels.groupby("rewind_step")):
        _mean_and_range(ax, chain, "density", "test_error", label=f"rewound to step {step}", **style)
    _matching_line(ax, levels, experiment)
    _density_axis(ax, levels.density)
    ax.set_ylabel("test error (%)")
    _log_error_axis(ax)
    ax.legend()


def errors_of_controls(ax: Axes, levels: pd.DataFrame, controls: pd.DataFrame, experiment: Experiment) -> None:
    """Test error against density for IMP and its controls: mean and range over seeds."""
    for style, (kind, label) in zip(_styles(), _KINDS.items()):
        _mean_and_range(ax, controls[controls.kind == kind], "density", "test_error", label=label, **style)
    _matching_line(ax, levels, experiment)
    _density_axis(ax, controls.density)
    ax.set_ylabel("test error (%)")
    _log_error_axis(ax)
    ax.legend()


def zigzag(levels: pd.DataFrame, segments: pd.DataFrame, experiment: Experiment) -> Figure:
    """Test error at every level and half-way between each and the next, one panel for each rewind step.

    Levels are solid dots, midpoints hollow; a thin line for each seed, a thick one for their mean.
    """
    middle = segments[(segments.norms == INTERPOLATED) & (segments.t == 0.5)]
    points = pd.concat([levels[["seed", "rewind_step", "level", "test_error"]],
                        middle.assign(level=middle.level + 0.5)[["seed", "rewind_step", "level", "test_error"]]])
    steps = sorted(points.rewind_step.unique())
    figure, axes = plt.subplots(1, len(steps), figsize=(max(4.8, 3 * len(steps)), 3.6), sharey=True, squeeze=False)
    for ax, style, step in zip(axes[0], _styles(), steps):
        chain = points[points.rewind_step == step].sort_values("level")
        for _, seed in chain.groupby("seed"):
            ax.plot(seed.level, PERCENT * seed.test_error, color=style["color"], lw=0.6, alpha=0.6)
        mean = chain.groupby("level").test_error.mean() * PERCENT
        ax.plot(mean.index, mean, color=style["color"], lw=1.6)
        whole = mean[mean.index % 1 == 0]
        half = mean[mean.index % 1 != 0]
        ax.plot(whole.index, whole, "o", color=style["color"], label="trained network")
        ax.plot(half.index, half, "o", color=style["color"], mfc="white", label="midpoint between two")
        _matching_line(ax, levels, experiment)
        ax.set(title=f"rewound to step {step}", xlabel="pruning level")
        ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        _log_error_axis(ax)
    axes[0, 0].set_ylabel("test error (%)")
    axes[0, -1].legend(loc="best")
    return figure


def along_segments(segments: pd.DataFrame, experiment: Experiment) -> Figure:
    """Test error along whole segments between successive levels: the first, a middle and the last pair."""
    segments = segments[segments.norms == INTERPOLATED]
    starts = sorted({0, experiment.levels // 2, experiment.levels - 1})
    figure, axes = plt.subplots(1, len(starts), figsize=(3 * len(starts), 3.3), sharey=True, squeeze=False)
    for ax, start in zip(axes[0], starts):
        pair = segments[segments.level == start]
        for style, (step, chain) in zip(_styles(), pair.groupby("rewind_step")):
            _mean_and_range(ax, chain, "t", "test_error", label=f"rewound to step {step}", **style)
        density = (1 - experiment.prune_fraction) ** start
        ax.set(title=f"from level {start} ({density:.0%} of weights)",
               xlabel=f"position from level {start} to {start + 1}")
        _log_error_axis(ax)
    axes[0, 0].set_ylabel("test error (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def barrier_against_excess(ax: Axes, pairs: pd.DataFrame, experiment: Experiment) -> None:
    """Each pair of successive levels: its barrier against how much worse than dense the sparser one is.

    Shaded: the two quadrants in which "connected" and "matching" disagree. Axes are linear within the thresholds and
    logarithmic beyond.
    """
    e = experiment
    x = PERCENT * pairs.excess
    ax.set_xscale("symlog", linthresh=PERCENT * e.epsilon)
    ax.set_yscale("symlog", linthresh=PERCENT * e.lmc_threshold)
    left, right = min(x.min() * 1.2, -PERCENT * e.epsilon), max(x.max() * 1.3, 2 * PERCENT * e.epsilon)
    bottom, top = -0.6 * PERCENT * e.lmc_threshold, 100
    ax.fill_between([left, PERCENT * e.epsilon], PERCENT * e.lmc_threshold, top, color="0.5", alpha=0.15, lw=0)
    ax.fill_between([PERCENT * e.epsilon, right], bottom, PERCENT * e.lmc_threshold, color="0.5", alpha=0.15, lw=0)
    ax.axvline(PERCENT * e.epsilon, color="0.3", lw=1)
    ax.axhline(PERCENT * e.lmc_threshold, color="0.3", lw=1)
    sparse = pairs.density <= e.higher_sparsity
    for style, (step, chain) in zip(_styles(), pairs.groupby("rewind_step")):
        for where, face in ((sparse, style["color"]), (~sparse, "none")):
            here = chain[where.reindex(chain.index)]
            ax.scatter(PERCENT * here.excess, PERCENT * here.barrier, s=34, marker=style["marker"], facecolor=face,
                       edgecolor=style["color"], linewidth=1.2, zorder=3,
                       label=f"rewound to step {step}" if face != "none" else None)
    ax.scatter([], [], s=34, facecolor="none", edgecolor="0.3", label=f"more than {e.higher_sparsity:.0%} of weights")
    for matching, connected in ((True, True), (True, False), (False, True), (False, False)):
        count = int(((pairs.matching == matching) & (pairs.connected == connected)).sum())
        words = ("matching," if matching else "not matching,") + ("\nconnected" if connected else "\nnot connected")
        ax.annotate(f"{words}: {count}", (0.01 if matching else 0.99, 0.02 if connected else 1.01),
                    xycoords="axes fraction", ha="left" if matching else "right", va="bottom", fontsize="small")
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="test error above the dense network (percentage points)",
           ylabel="barrier to the level before\n(percentage points)")
    for axis in (ax.xaxis, ax.yaxis):
        _plain_log(axis)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def all_pairs(levels: pd.DataFrame, pairs: pd.DataFrame, experiment: Experiment) -> Figure:
    """Mean barrier at the midpoint between every two levels, one panel for each rewind step.

    A line marks the sparsest level up to which all levels match, on average over seeds.
    """
    steps = sorted(pairs.rewind_step.unique())
    figure, axes = plt.subplots(1, len(steps), figsize=(3 * len(steps) + 0.6, 3.4), sharey=True, squeeze=False)
    size = experiment.levels + 1
    for ax, step in zip(axes[0], steps):
        chain = pairs[pairs.rewind_step == step].groupby(["level", "other"]).barrier.mean() * PERCENT
        grid = chain.unstack().reindex(index=range(size), columns=range(size))
        grid = grid.combine_first(grid.T)
        sns.heatmap(grid, ax=ax, cmap="viridis_r", vmin=0, vmax=90, square=True, cbar=ax is axes[0, -1],
                    cbar_kws={"label": "midpoint barrier\n(percentage points)"})
        last = _last_matching(levels[levels.rewind_step == step], levels, experiment)
        for line in (ax.axhline, ax.axvline):
            line(last + 1, color="#d55e00", lw=1.5, ls="--")
        ax.set(title=f"rewound to step {step}", xlabel="level", ylabel="level" if ax is axes[0, 0] else "")
        ax.set(xticks=np.arange(0, size, 2) + 0.5, yticks=np.arange(0, size, 2) + 0.5,
               xticklabels=range(0, size, 2), yticklabels=range(0, size, 2))
        ax.tick_params(labelsize="small", rotation=0)
    return figure


def mask_information(controls: pd.DataFrame, experiment: Experiment) -> Figure:
    """Networks trained within IMP's, shuffled and random masks: how much worse, and how far across a barrier, they are
    from the IMP solution of the level before."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.7))
    worse = controls.assign(worse=controls.test_error - controls.previous_error)
    styles = dict(zip(_KINDS, _styles()))
    for kind in ("imp", "shuffled", "random"):
        style = styles[kind]
        here = worse[worse.kind == kind]
        _mean_and_range(left, here, "density", "worse", label=_KINDS[kind], **style)
        _mean_and_range(right, here, "density", "barrier", label=_KINDS[kind], **style)
    for ax, limit, label in ((left, experiment.epsilon, "test error above the level before\n(percentage points)"),
                             (right, experiment.lmc_threshold, "barrier to the level before\n(percentage points)")):
        ax.axhline(PERCENT * limit, color="0.3", lw=1, ls=":")
        _density_axis(ax, controls.density)
        ax.set_ylabel(label)
    left.legend()
    return figure


def effect_of_norms(ax: Axes, segments: pd.DataFrame) -> None:
    """Midpoint barriers with interpolated batch-norm statistics against the same with re-estimated ones."""
    barriers = PERCENT * claims.midpoint_barriers(segments)
    for style, (step, chain) in zip(_styles(), barriers.groupby("rewind_step")):
        ax.plot(chain[INTERPOLATED], chain[REESTIMATED], ls="none", marker=style["marker"], color=style["color"],
                label=f"rewound to step {step}")
    ax.plot([0, 90], [0, 90], color="0.3", lw=1, ls=":")
    ax.set(xscale="symlog", yscale="symlog", xlim=(-0.2, 100), ylim=(-0.2, 100),
           xlabel="midpoint barrier, statistics interpolated\n(percentage points)",
           ylabel="statistics re-estimated\n(percentage points)")
    for axis in (ax.xaxis, ax.yaxis):
        _plain_log(axis)
    ax.legend()


def _styles() -> list[dict]:
    """Color, marker and dashes for each of many curves; only after 28 do they repeat."""
    colors = sns.color_palette("colorblind")
    return [{"color": colors[(0, 1, 2, 3, 4, 5, 7)[i % 7]], "marker": _MARKERS[i % 7], "ls": _DASHES[i % 4]}
            for i in range(28)]


def _mean_and_range(ax: Axes, table: pd.DataFrame, x: str, y: str, **style) -> None:
    """Mean over seeds as a line with markers, smallest to largest as a band."""
    groups = table.groupby(x)[y]
    mean, low, high = (PERCENT * stat for stat in (groups.mean(), groups.min(), groups.max()))
    at = mean.index if x == "t" else PERCENT * mean.index
    ax.plot(at, mean, **style)
    ax.fill_between(at, low, high, color=style["color"], alpha=0.2, lw=0)


def _matching_line(ax: Axes, levels: pd.DataFrame, experiment: Experiment) -> None:
    """The largest error that counts as matching, averaged over seeds."""
    limit = PERCENT * _most_that_matches(levels, experiment)
    ax.axhline(limit, color="0.3", lw=1, ls=":", label="matching, at most")


def _most_that_matches(levels: pd.DataFrame, experiment: Experiment) -> float:
    """The largest error that counts as matching, on average over seeds."""
    return claims.dense_errors(levels).mean() + experiment.epsilon


def _last_matching(chain: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> int:
    limit = _most_that_matches(levels, experiment)
    failing = ~claims.is_at_most(chain.groupby("level").test_error.mean(), limit)
    return int(failing.idxmax()) - 1 if failing.any() else int(chain.level.max())


def _density_axis(ax: Axes, densities: pd.Series) -> None:
    """Weights remaining, from dense at the left to sparse at the right, on a log scale."""
    ax.set(xscale="log", xlabel="weights remaining (%)")
    ax.set_xlim(PERCENT * densities.max() * 1.08, PERCENT * densities.min() / 1.08)
    ticks = [tick for tick in (100, 50, 20, 10, 5, 2, 1) if tick >= PERCENT * densities.min() / 1.08]
    ax.set_xticks(ticks)
    _plain_log(ax.xaxis)


def _plain_log(axis) -> None:
    """Write 1, 10, 100 instead of powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _log_error_axis(ax: Axes) -> None:
    """Errors in percent on a log scale, labelled 1, 2, 5, 10, 20, 50."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _plain_log(ax.yaxis)


# Finding 2

def perturbed_pairs(perturbations: pd.DataFrame, experiment: Experiment) -> Figure:
    """Barrier between perturbed pairs, and their test error, against the length of the perturbation.

    A column of panels for each probed level, a curve for each rewind step: mean and range over seeds. Hollow: the same
    length along IMP's own direction.
    """
    levels = sorted(perturbations.level.unique())
    figure, axes = plt.subplots(2, len(levels), figsize=(4.2 * len(levels), 5.6), sharex=True, sharey="row",
                                squeeze=False)
    table = perturbations.assign(error=perturbations[["test_error", "other_error"]].mean(axis=1))
    for column, level in zip(axes.T, levels):
        for offset, (style, (step, chain)) in enumerate(zip(_styles(), table[table.level == level].groupby("rewind_step"))):
            for ax, y in zip(column, ("barrier", "error")):
                _against_length(ax, chain[chain.kind == "random"], y, label=f"rewound to step {step}", **style)
                imp = chain[chain.kind == "imp"][y] * PERCENT
                at = 1 + 0.06 * (offset - 1)  # side by side where they would lie on each other
                ax.plot([at, at], [imp.min(), imp.max()], color=style["color"], lw=1)
                ax.plot(at, imp.mean(), marker=style["marker"], ms=9, mfc="none", mew=1.6, color=style["color"], ls="none")
        for ax in column:
            ax.axvline(1, color="0.3", lw=1)
            ax.set_xscale("symlog", base=2, linthresh=min(length for length in experiment.perturbation_lengths if length))
            ax.set_xticks(experiment.perturbation_lengths)
            _plain_log(ax.xaxis)
        column[0].set_yscale("symlog", linthresh=PERCENT * experiment.lmc_threshold)
        column[0].set_ylim(0, 100)
        column[0].axhline(PERCENT * experiment.lmc_threshold, color="0.3", lw=1, ls=":")
        _plain_log(column[0].yaxis)
        _log_error_axis(column[1])
        density = (1 - experiment.prune_fraction) ** level
        column[0].set_title(f"level {level} ({density:.0%} of weights)")
        column[1].set_xlabel("perturbation, in units of $d_L$")
    axes[0, 0].set_ylabel("barrier between the two\n(percentage points)")
    axes[1, 0].set_ylabel("test error of the two (%)")
    axes[0, 0].plot([], [], marker="o", ms=9, mfc="none", mew=1.6, color="0.3", ls="none", label="along IMP's direction")
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _against_length(ax: Axes, table: pd.DataFrame, y: str, **style) -> None:
    groups = PERCENT * table.groupby("length")[y].agg(["mean", "min", "max"])
    ax.plot(groups.index, groups["mean"], **style)
    ax.fill_between(groups.index, groups["min"], groups["max"], color=style["color"], alpha=0.2, lw=0)


# Finding 3: blue circles are random pruning, orange squares magnitude pruning, in every figure.

_PRUNED = {"random": {"color": "#0173b2", "marker": "o"}, "magnitude": {"color": "#de8f05", "marker": "s"}}


def hessian_spectra(spectra: pd.DataFrame) -> Figure:
    """Eigenvalues by rank. Left: at each level of seed 0, exact, or by most steps of Lanczos where the network is too
    large. Right: the densest and the sparsest of these levels, exact and by Lanczos."""
    spectra = spectra[spectra.seed == spectra.seed.min()]
    exact = claims.best_of(spectra, ["level"])
    levels = sorted(exact.level.unique())
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.8), sharey=True)
    colors = dict(zip(levels, sns.color_palette("viridis", len(levels))))
    for dashes, (level, rows) in zip(cycle(_DASHES), exact.groupby("level")):
        left.plot(rows["rank"], rows.eigenvalue.where(rows.eigenvalue > 0), color=colors[level], ls=dashes,
                  label=f"level {level}")
    for level in sorted({levels[0], levels[-1]}):
        for dashes, (steps, rows) in zip(_DASHES, spectra[spectra.level == level].groupby("steps")):
            method = f"Lanczos, {steps} steps" if steps else "exact"
            right.plot(rows["rank"], rows.eigenvalue.where(rows.eigenvalue > 0), color=colors[level], ls=dashes,
                       label=f"level {level}, {method}", lw=1.2)
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylim=(1e-6, None))
        _plain_log(ax.xaxis)
        ax.legend(fontsize="small")
    known = (exact.steps == 0).all()
    left.set(ylabel="eigenvalue of the Hessian", title="exact, by level" if known else "best estimate, by level")
    right.set_title("exact and estimated" if known else "by number of steps")
    return figure


def pruning_sweep(levels: pd.DataFrame, predictions: pd.DataFrame, prunings: pd.DataFrame, experiment: Experiment,
                  ) -> Figure:
    """Test error (above) and barrier to the solution (below) against the ratio pruned at once, a column for each level.

    Hollow, dashed: projections; solid: retrained. Vertical lines: the theory's maximum ratios.
    """
    chosen = sorted(prunings.level.unique())
    figure, axes = plt.subplots(2, len(chosen), figsize=(3.3 * len(chosen) + 0.6, 5.6), sharex=True, sharey="row",
                                squeeze=False)
    best = claims.best_predictions(predictions)
    theory = best[(best.height == 1) & (best.criterion == "random subspace")]
    for column, level in zip(axes.T, chosen):
        here = prunings[prunings.level == level]
        for mask, style in _PRUNED.items():
            for weights, more in (("projection", {"ls": "--", "mfc": "white"}), ("retrained", {"ls": "-"})):
                rows = here[(here["mask"] == mask) & (here.weights == weights)]
                for ax, y in zip(column, ("test_error", "barrier")):
                    groups = PERCENT * rows.groupby("ratio")[y].agg(["mean", "min", "max"])
                    ax.plot(PERCENT * groups.index, groups["mean"], label=f"{mask}, {weights}", **style, **more)
                    ax.fill_between(PERCENT * groups.index, groups["min"], groups["max"], color=style["color"],
                                    alpha=0.15, lw=0)
            predicted = PERCENT * theory[(theory.level == level) & (theory["mask"] == mask)].ratio.mean()
            for ax in column:
                ax.axvline(predicted, color=style["color"], lw=1.2, ls=":", label=f"{mask}, theory")
        column[0].axhline(PERCENT * _most_that_matches(levels, experiment), color="0.3", lw=1, ls=":")
        column[1].axhline(PERCENT * experiment.lmc_threshold, color="0.3", lw=1, ls=":")
        column[0].set_title(f"level {level} ({(1 - experiment.prune_fraction) ** level:.0%} of weights)")
        _log_error_axis(column[0])
        column[1].set_yscale("symlog", linthresh=PERCENT * experiment.lmc_threshold)
        column[1].set_ylim(0, 100)
        _plain_log(column[1].yaxis)
        column[1].set(xlabel="pruned at once (%)", xlim=(0, 100))
    axes[0, 0].set_ylabel("test error (%)")
    axes[1, 0].set_ylabel("barrier to the solution\n(percentage points)")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return figure


def maximum_ratios(levels: pd.DataFrame, predictions: pd.DataFrame, prunings: pd.DataFrame, experiment: Experiment,
                   ) -> Figure:
    """Maximum pruning ratios by level, predicted and measured, a panel for each mask. One marker for each seed.

    Bars of predictions run from half to twice the loss height, those of measurements to the next ratio of the sweep.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    table = claims.predicted_and_measured(levels, predictions, prunings, experiment)
    measured = claims.measured_limits(levels, prunings, experiment)
    chosen = sorted(measured.level.unique())
    places = {level: place for place, level in enumerate(chosen)}
    sources = [(f"predicted, {criterion}", table[table.criterion == criterion], ("low", "predicted", "high"))
               for criterion in ("random subspace", "exact quadratic")]
    sources += [(f"measured, {weights}", measured[measured.weights == weights], ("ratio", "ratio", "above"))
                for weights in ("projection", "retrained")]
    for ax, mask in zip(axes, _PRUNED):
        for index, (style, (label, rows, (low, middle, high))) in enumerate(zip(_styles(), sources)):
            rows = rows[rows["mask"] == mask]
            at = rows.level.map(places) + 0.19 * (index - 1.5) + 0.04 * (rows.seed - rows.seed.mean())
            bars = PERCENT * np.stack([rows[middle] - rows[low], rows[high] - rows[middle]])
            ax.errorbar(at, PERCENT * rows[middle], bars, color=style["color"], marker=style["marker"], ls="none",
                        elinewidth=1, label=label)
        ax.set(title=f"{mask} pruning", xlabel="level", xticks=range(len(chosen)), xticklabels=chosen, ylim=(-3, 103))
    axes[0].set_ylabel("maximum pruning ratio (%)")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return figure


def ways_to_projections(displacements: pd.DataFrame) -> Figure:
    """Left: curvature along the way to the projection, by level. Right: loss along that way at the densest level of
    seed 0, against the distance moved."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.7))
    chosen = sorted(displacements.level.unique())
    places = {level: place for place, level in enumerate(chosen)}
    once = displacements[displacements.t == 0]
    for shift, (mask, style) in zip((-0.12, 0.12), _PRUNED.items()):
        rows = once[once["mask"] == mask]
        left.plot(rows.level.map(places) + shift + 0.05 * (rows.seed - rows.seed.mean()), rows.curvature, ls="none",
                  alpha=0.8, label=f"{mask} pruning", **style)
        here = displacements[(displacements["mask"] == mask) & (displacements.level == chosen[0])
                             & (displacements.seed == displacements.seed.min())]
        for _, way in here.groupby("draw"):
            right.plot(way.t * way.distance, way.loss, lw=1, **style)
    left.set(yscale="log", xticks=range(len(chosen)), xticklabels=chosen, xlabel="level",
             ylabel="curvature along the way")
    _log_error_axis(right)
    right.set(xlabel="distance moved", ylabel="train loss (nats)", title=f"level {chosen[0]}, one seed")
    left.legend()
    return figure


# Finding 4

_STAGES = {"solution": "trained", "pruned": "pruned", "rewound": "rewound", "retrained": "retrained"}
_METHODS = {"imp": "weight rewinding (IMP)", "lr-rewound": "learning-rate rewinding", "fine-tuned": "fine-tuning"}


def magnitudes(histograms: pd.DataFrame, experiment: Experiment) -> Figure:
    """Surviving magnitudes through prune, rewind, retrain (columns), at the first, a middle and the last level shown:
    density (above) and share of smaller ones (below); survivors of all seeds together."""
    e = experiment
    known = sorted(histograms.level.unique())
    shown = sorted({known[0], known[len(known) // 2], known[-1]})
    figure, axes = plt.subplots(2, 4, figsize=(10.5, 5), sharex=True, sharey="row")
    total = histograms.groupby(["level", "stage", "low", "high"])["count"].sum().reset_index()
    for column, (stage, name) in zip(axes.T, _STAGES.items()):
        for style, level in zip(_styles(), shown):
            counts = total[(total.stage == stage) & (total.level == level)].sort_values("low")
            finite = counts[np.isfinite(counts.high)]
            edges = np.append(finite.low, finite.high.iloc[-1])
            share = finite["count"] / counts["count"].sum()
            look = {"color": style["color"], "ls": style["ls"], "lw": 1.4,
                    "label": f"{(1 - e.prune_fraction) ** level:.0%} of weights"}
            column[0].stairs(share / (finite.high - finite.low), edges, **look)
            column[1].plot(edges, PERCENT * np.append(0, share.cumsum()), **look)
        for ax in column:
            ax.axvspan(0, 1, color="0.5", alpha=0.15, lw=0)
        column[0].set_title(name)
        column[1].set(xlim=(0, histograms.low.max()), ylim=(0, 100))
    figure.supxlabel("magnitude, in units of the pruning threshold", fontsize="medium")
    axes[0, 0].set_ylabel("density")
    axes[1, 0].set_ylabel("survivors below (%)")
    axes[0, 3].legend(loc="upper right", fontsize="small")
    return figure


def gap(gaps: pd.DataFrame, refill: pd.DataFrame, experiment: Experiment) -> Figure:
    """Share of survivors below the old threshold: after rewinding and after retraining at every level (left), means
    over seeds, and in the course of retraining by each method (right), thin lines for levels and thick ones for their
    mean. Horizontal lines: how many were there before the cut, and from how many on the gap counts as filled."""
    e = experiment
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.9), sharey=True)
    for style, (step, chain) in zip(_styles(), gaps.groupby("rewind_step")):
        mean = chain.groupby(["stage", "density"]).below.mean() * PERCENT
        for stage, face, ls in (("rewound", "white", ":"), ("retrained", style["color"], "-")):
            left.plot(PERCENT * mean[stage].index, mean[stage], color=style["color"], marker=style["marker"], ls=ls,
                      mfc=face, label=f"step {step}, {stage}")
    for style, (kind, label) in zip(_styles(), _METHODS.items()):
        course = refill[refill.kind == kind].groupby(["level", "share"]).below.mean().unstack("level") * PERCENT
        right.plot(PERCENT * course.index, course, color=style["color"], lw=0.6, alpha=0.6)
        right.plot(PERCENT * course.index, course.mean(axis=1), color=style["color"], ls=style["ls"], lw=1.8, label=label)
    start = e.rewind_steps[-1]
    drops = [share for share in e.milestones if share * e.steps > start]
    for drop in drops:
        right.axvline(PERCENT * (drop * e.steps - start) / (e.steps - start), color="0.3", lw=1, ls=":",
                      label="learning rate drops" if drop == drops[0] else None)
    for ax in (left, right):
        ax.axhline(PERCENT * e.prune_fraction, color="0.3", lw=1)
        ax.axhline(PERCENT * e.prune_fraction * e.gap_refilled, color="0.3", lw=1, ls="--")
    _density_axis(left, gaps.density)
    left.set(ylabel="survivors below the old threshold (%)")
    left.set_ylim(0, 1.3 * left.get_ylim()[1])  # room for the legend
    left.set_yticks([share for share in left.get_yticks() if share <= PERCENT])
    left.legend(fontsize="x-small", ncols=2, loc="upper left")
    right.set(xlabel=f"retraining done (%), from step {start}")
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def next_cuts(cuts: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> Figure:
    """The cut to each density with and without retraining before it: length of what it removes (left), test error of
    what it leaves (right), beside the error after retraining. Means and ranges over seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.9))
    labels = {"retrained": "retrained before the cut", "continued": "last retraining left out",
              "one-shot": "no retraining at all"}
    for style, (cut, label) in zip(_styles(), labels.items()):
        here = cuts[cuts.cut == cut]
        for ax, column, scale in ((left, "length", 1 / PERCENT), (right, "test_error", 1)):
            _mean_and_range(ax, here.assign(**{column: here[column] * scale}), "density", column, label=label, **style)
    late = levels[(levels.rewind_step == experiment.rewind_steps[-1]) & (levels.level > 0)]
    _mean_and_range(right, late, "density", "test_error", label="IMP, retrained after the cut", **_styles()[3])
    _matching_line(right, levels, experiment)
    for ax in (left, right):
        _density_axis(ax, cuts.density)
    left.set_ylabel("length of the removed weights")
    left.set_ylim(bottom=0)
    right.set_ylabel("test error (%)")
    _log_error_axis(right)
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def retraining_methods(methods: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> Figure:
    """Weight rewinding, learning-rate rewinding and fine-tuning: test error, barrier to the level before, and share of
    survivors below the old threshold. Means and ranges over seeds."""
    e = experiment
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7))
    for style, (kind, label) in zip(_styles(), _METHODS.items()):
        here = methods[methods.kind == kind]
        for ax, column in zip(axes, ("test_error", "barrier", "below")):
            _mean_and_range(ax, here, "density", column, label=label, **style)
    _matching_line(axes[0], levels, e)
    axes[1].axhline(PERCENT * e.lmc_threshold, color="0.3", lw=1, ls=":")
    axes[2].axhline(PERCENT * e.prune_fraction * e.gap_refilled, color="0.3", lw=1, ls="--")
    for ax, label in zip(axes, ("test error (%)", "barrier to the level before\n(percentage points)",
                                "survivors below the old\nthreshold (%)")):
        _density_axis(ax, methods.density)
        ax.set_ylabel(label)
    _log_error_axis(axes[0])
    axes[2].set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    return figure


_NAMES = {  # of the three networks of a plane: label, marker
    "level": ("$w^{(%d)}$", "o"), "next level": ("$w^{(%d)}$", "s"), "projection": (r"$m^{(%d)} w^{(%d)}$", "^"),
    "start": (r"$m^{(%d)} w_\tau$", "o"), "next start": (r"$m^{(%d)} w_\tau$", "^")}


def planes(landscape: pd.DataFrame, kind: str, experiment: Experiment) -> Figure:
    """Test error on planes through three networks, one panel for each rewind step pictured.

    Both axes have the same scale, in units of weights. Contours are closer where errors are small.
    """
    panels = landscape[landscape.plane == kind]
    steps = sorted(panels.rewind_step.unique())
    figure, axes = plt.subplots(1, len(steps), figsize=(5.2 * len(steps), 4.6), squeeze=False)
    lowest = PERCENT * panels.test_error.min()
    bounds = [0, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100]
    bounds = bounds[max(i for i, bound in enumerate(bounds) if bound <= lowest):]
    colors = BoundaryNorm(bounds, 256)
    for ax, step in zip(axes[0], steps):
        here = panels[panels.rewind_step == step]
        grid = here[here.what == "grid"].pivot(index="y", columns="x", values="test_error") * PERCENT
        filled = ax.contourf(grid.columns, grid.index, grid, bounds, cmap="viridis_r", norm=colors)
        ax.contour(grid.columns, grid.index, grid, bounds, colors="white", linewidths=0.4, alpha=0.6)
        for what, look, label in (("axial subspace", {"color": "black", "ls": "--", "lw": 1.2}, "next axial subspace"),
                                  ("segment", {"color": "#d55e00", "ls": "-", "lw": 1.8}, "segment")):
            line = here[here.what == what]
            ax.plot(line.x, line.y, label=label, **look)
        level, following = int(here.level.iloc[0]), int(here.next_level.iloc[0])
        numbers = {"level": level, "next level": following, "projection": (following, level), "start": level,
                   "next start": following}
        for row in here[here.what.isin(list(_NAMES))].itertuples():
            label, marker = _NAMES[row.what]
            ax.plot(row.x, row.y, marker, color="white", mec="black", ms=7, zorder=4)
            below = row.y == 0
            ax.annotate(f"{label % numbers[row.what]}\n{PERCENT * row.test_error:.1f} %", (row.x, row.y),
                        xytext=(0, -9 if below else 9), textcoords="offset points", ha="center",
                        va="top" if below else "bottom", fontsize="small",
                        bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 1.5})
        ax.set(title=f"rewound to step {step}", xlabel="along the next axial subspace", aspect="equal")
        ax.grid(False)
    axes[0, 0].set_ylabel("away from it")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.colorbar(filled, ax=axes[0], shrink=0.8, ticks=bounds, label="test error (%)", format="%g")
    return figure


def growth(measured: dict) -> Figure:
    """How long things take against what there is more of, both relative to the least: a panel for each, of `bench`.

    Dotted: in proportion.
    """
    figure, axes = plt.subplots(1, len(measured), figsize=(2.7 * len(measured), 3), sharey=True)
    for ax, style, (name, points) in zip(axes, _styles(), measured.items()):
        amounts, seconds = np.array(points).T
        ax.plot(amounts, seconds / seconds[0], **style)
        ax.plot(amounts, amounts / amounts[0], color="0.3", lw=1, ls=":")
        ax.set(xscale="log", yscale="log", xlabel=name, title=f"{seconds[0]:.2g} s at {amounts[0]:,.0f}")
        ax.set_xticks(amounts, [f"{amount:,.0f}" for amount in amounts])
        _plain_log(ax.yaxis)
        ax.minorticks_off()
    axes[0].set_ylabel("time, relative to the least")
    return figure
