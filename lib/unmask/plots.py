"""What figures share: the book's look, styles that stand for the same thing everywhere, and axes.

Colors and markers stand for the same rewind steps, or the same controls, in every figure; colors
are seaborn's palette for color-blind readers, and markers and dashes tell curves apart in grey
print as well.
"""

import inspect
import textwrap
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .experiments import Experiment
from .verdicts import FAILS, HOLDS, MEASURED, SYMBOLS, UNDECIDED, Tables, Verdicts
from .verdicts import reference_errors

PERCENT = 100
# what is trained, by the names of `chains`
LABELS = {
    "imp": "IMP",
    "one-shot": "one-shot",
    "reinitialized": "IMP mask, new weights",
    "shuffled": "shuffled layer-wise",
    "random": "random",
}
DASHES = ("-", "--", "-.", ":")
_COLORS, _MARKERS = (0, 1, 2, 3, 4, 5, 7), ("o", "s", "^", "D", "v", "P", "X")


def set_style() -> None:
    """The book's look; call once in a notebook."""
    look = {
        "figure.dpi": 150,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "axes.titlesize": "medium",
        "lines.markersize": 5,
    }
    sns.set_theme("notebook", "ticks", "colorblind", rc=look)
    if "inline" in plt.get_backend():  # which would draw every figure once before it shows it
        plt.uninstall_repl_displayhook()


def source(function):
    """The source of a function, to be shown on a page."""
    from IPython.display import Markdown

    return Markdown(f"```python\n{inspect.getsource(inspect.unwrap(function))}```")


def glue_numbers(numbers: dict[str, float | str]) -> None:
    """Make numbers known to the prose of a page, by name."""
    from myst_nb import glue

    for name, value in numbers.items():
        glue(name, value if isinstance(value, str) else float(value), display=False)


def styles(names: Iterable) -> dict:
    """Color, marker and dashes for each of many curves, by name; only after 28 do they repeat."""
    colors = sns.color_palette("colorblind")
    return {
        name: {"color": colors[_COLORS[i % 7]], "marker": _MARKERS[i % 7], "ls": DASHES[i % 4]}
        for i, name in enumerate(names)
    }


def panels(columns: int, rows: int = 1, width: float = 3.0, height: float = 3.5, **options):
    """A figure of `rows` x `columns` panels of a size in inches, and its axes, always (rows,
    columns). It is never so wide that a page would shrink its words out of sight."""
    size = min(9.0, max(4.8, width * columns)), height * rows
    return plt.subplots(rows, columns, figsize=size, squeeze=False, **options)


def panel_rows(count: int, most: int = 3, **options):
    """A figure of `count` panels in rows of at most `most`, and its axes in order."""
    columns = min(count, most)
    figure, axes = panels(columns, rows=-(-count // columns), **options)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def by_step(table: pd.DataFrame, experiment: Experiment):
    """For each rewind step: its label, its style and its rows."""
    looks = styles(experiment.rewind_steps)
    for step, rows in table.groupby("rewind_step"):
        yield f"rewound to step {step}", looks[step], rows


def mean_and_range(
    ax: Axes, table: pd.DataFrame, x: str, y: str, scale=PERCENT, band: bool = True, **style
) -> None:
    """Mean over seeds as a line with markers, smallest to largest as a `band`. Densities are
    percent."""
    groups = scale * table.groupby(x)[y].agg(["mean", "min", "max"])
    at = PERCENT * groups.index if x in ("density", "ratio") else groups.index
    ax.plot(at, groups["mean"], **style)
    if band:
        ax.fill_between(at, groups["min"], groups["max"], color=style["color"], alpha=0.2, lw=0)


def threshold_line(ax: Axes, share: float, **look) -> None:
    """A dotted horizontal line at a share of which the axis shows percent."""
    ax.axhline(PERCENT * share, **{"color": "0.3", "lw": 1, "ls": ":"} | look)


def most_that_matches(tables: Tables, experiment: Experiment) -> float:
    """The largest error that counts as matching, on average over seeds."""
    return reference_errors(tables).mean() + experiment.epsilon


def matching_line(ax: Axes, tables: Tables, experiment: Experiment) -> None:
    """The largest error that counts as matching, averaged over seeds."""
    threshold_line(ax, most_that_matches(tables, experiment), label="matching, at most")


def density_at(levels: pd.DataFrame, level: int) -> str:
    """How many weights a level keeps, as words."""
    return f"{levels[levels.level == level].density.iloc[0]:.0%} of weights"


def density_axis(ax: Axes, densities: pd.Series) -> None:
    """Weights remaining, from dense at the left to sparse at the right, on a log scale."""
    least = PERCENT * densities.min() / 1.08
    ax.set(xscale="log", xlabel="weights remaining (%)")
    ax.set_xlim(PERCENT * densities.max() * 1.08, least)
    ax.set_xticks([tick for tick in (100, 50, 20, 10, 5, 2, 1) if tick >= least])
    plain_log(ax.xaxis)


def error_axis(ax: Axes, label: str | None = None) -> None:
    """Errors in percent on a log scale, labelled 1, 2, 5, 10, 20, 50."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain_log(ax.yaxis)
    if label:
        ax.set_ylabel(label)


def barrier_axis(ax: Axes, experiment: Experiment) -> None:
    """Barriers in percentage points, linear up to the threshold, which is marked."""
    ax.set_yscale("symlog", linthresh=PERCENT * experiment.lmc_threshold)
    ax.set_ylim(0, 100)
    threshold_line(ax, experiment.lmc_threshold)
    plain_log(ax.yaxis)


def plain_log(axis) -> None:
    """Write 1, 10, 100 instead of powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_above(figure: Figure, ax: Axes, columns: int = 3) -> None:
    """One for all panels, of what is in one of them."""
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=columns)


def legend_beside(ax: Axes, **options) -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), **options)


# by verdict: color and marker of its mean
_VERDICTS = {
    HOLDS: dict(color="#0173b2", marker="o"),
    UNDECIDED: dict(color="#949494", marker="o", mfc="white"),
    FAILS: dict(color="#d55e00", marker="X"),
    MEASURED: dict(color="#3b3b3b", marker="D"),
}
_ROW = 0.62  # height of a claim, in inches


def forest(shown: Verdicts, here: Verdicts | None = None, width: float = 7.6) -> Figure:
    """A row for each claim: the seeds' numbers as dots, their mean and its interval, and the line
    at zero, right of which the claim is right. Each row has a scale of its own, as units differ:
    the numbers stand beside it.

    `here`: verdicts of the same claims from another run, whose seeds are marked as diamonds."""
    rows = shown.evidence
    height = 0.7 + _ROW * len(rows)
    figure = plt.figure(figsize=(width, height), layout="none")
    ax = figure.add_axes((0.41, 0.1 / height, 0.24, 1 - 0.1 / height))
    others = {one.claim: one for one in here.evidence} if here else {}
    for y, one in enumerate(rows):
        found = others[one.claim].values if one.claim in others else one.values[:0]
        ends = [v for v in (one.low, one.high, *one.values, *found) if np.isfinite(v)]
        scale = max((abs(v) for v in ends), default=0) or 1.0
        look, side = _VERDICTS[one.verdict], dict(va="center", fontsize=8)
        # The seeds, a little below their mean and its interval.
        dots = dict(ls="none", ms=4, mec="none", alpha=0.55)
        ax.plot(one.values / scale, [y + 0.18] * len(one.values), "o", color="0.45", **dots)
        ax.plot(found / scale, [y + 0.18] * len(found), "D", ls="none", mfc="none", mec="k", ms=4)
        if np.isfinite(one.low):
            ax.plot([one.low / scale, one.high / scale], [y, y], color=look["color"], lw=2.5)
        if len(one.values):
            ax.plot(one.mean / scale, y, ls="none", ms=8, mec=look["color"], mew=1.5, **look)
        # What is claimed, and what came out.
        name = "\n".join(textwrap.wrap(one.claim.replace("d_L", "$d_L$"), 46))
        ax.text(-1.12, y, name, ha="right", weight="bold" if one.headline else None, **side)
        mark = f"{SYMBOLS[one.verdict]} {one.verdict}"
        ax.text(1.15, y - 0.26, mark, ha="left", color=look["color"], weight="bold", **side)
        unit = "\n".join(textwrap.wrap(one.unit, 36)) if len(one.values) else ""
        numbers = f"{one.words()}\n{unit}"
        ax.text(1.15, y + 0.14, numbers, ha="left", color="0.3", **side | dict(fontsize=7.5))
    ax.axvline(0, color="0.2", lw=1, zorder=0)
    ax.set(xlim=(-1.08, 1.08), ylim=(len(rows) - 0.5, -0.9), xticks=[], yticks=[])
    for words, x, side in (("← against the claim", -0.05, "right"), ("for it →", 0.05, "left")):
        ax.text(x, -0.75, words, ha=side, va="center", fontsize=8, color="0.3")
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)
    return figure
