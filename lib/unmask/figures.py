"""Figures: from tidy tables to matplotlib.

Each function draws on axes it is given and returns nothing, or makes a figure of several panels and returns it.
Colors and markers stand for the same rewind steps, or the same controls, in every figure; colors are seaborn's palette
for color-blind readers, and markers and dashes tell curves apart in grey print as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
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
    figure, axes = plt.subplots(1, len(steps), figsize=(3 * len(steps), 3.6), sharey=True, squeeze=False)
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
    axes[0, -1].legend(loc="upper left")
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
    bottom, top = -0.3 * PERCENT * e.lmc_threshold, 100
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
        words = ("matching" if matching else "not matching") + (", connected" if connected else ", not connected")
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
    keys = ["seed", "rewind_step", "level", "next_level"]
    ends = segments[segments.t.isin((0.0, 0.5, 1.0))]
    barriers = ends.groupby([*keys, "norms"])[["t", "test_error"]].apply(claims.barrier).unstack() * PERCENT
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


def _styles() -> Iterator[dict]:
    """Color, marker and dashes, for as many curves as there are."""
    colors = sns.color_palette("colorblind")
    return ({"color": color, "marker": marker, "ls": dashes} for color, marker, dashes in zip(
        itertools.cycle(colors[i] for i in (0, 1, 2, 3, 4, 5, 7)), itertools.cycle(_MARKERS), itertools.cycle(_DASHES)))


def _mean_and_range(ax: Axes, table: pd.DataFrame, x: str, y: str, **style) -> None:
    """Mean over seeds as a line with markers, smallest to largest as a band."""
    groups = table.groupby(x)[y]
    mean, low, high = (PERCENT * stat for stat in (groups.mean(), groups.min(), groups.max()))
    at = mean.index if x == "t" else PERCENT * mean.index
    ax.plot(at, mean, **style)
    ax.fill_between(at, low, high, color=style["color"], alpha=0.2, lw=0)


def _matching_line(ax: Axes, levels: pd.DataFrame, experiment: Experiment) -> None:
    """The largest error that counts as matching, averaged over seeds."""
    limit = PERCENT * (levels[levels.level == 0].test_error.mean() + experiment.epsilon)
    ax.axhline(limit, color="0.3", lw=1, ls=":", label="matching, at most")


def _last_matching(chain: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> int:
    limit = levels[levels.level == 0].test_error.mean() + experiment.epsilon
    failing = chain.groupby("level").test_error.mean().gt(limit)
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
