"""The picture: error on planes through three networks (the paper's Figure 1, measured).

Lengths and angles are those of the prunable weights, the paper's R^D. Every other entry of the
state is an affine function of a plane's coordinates too, so that along the segment between two of
the three networks the states are those of `barriers.interpolate`. Batch-norm statistics are
interpolated like all else but not extrapolated: outside the box around the three networks they are
those of the nearest point of the box. A variance that shrinks from one network to the other would
soon be negative beyond it, and long before that blow up what it divides.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

import unmask

from .. import plots
from ..chains import both_levels
from ..errors import Degenerate
from ..experiments import Experiment
from ..plots import PERCENT, by_step
from ..tables import table
from ..verdicts import Tables, barrier, settings_in_numbers, with_next_level

SOLUTIONS, REWIND_POINTS = PLANES = ("solutions", "rewind points")
MARGIN = 0.4  # around the three points, as a share of the longer side of their bounding box
_PARALLEL = 1e-4  # sine of the angle below which two directions count as one


class Plane(NamedTuple):
    """The plane `origin + x * first + y * second`; `first` and `second` are orthonormal in the
    prunable weights.

    All three are dicts of float64 tensors under the names of the state; `weights` names the
    prunable ones. `low` and `high` are corners of the box around the three networks."""

    origin: dict
    first: dict
    second: dict
    weights: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray

    def state(self, x: float, y: float) -> dict:
        """The network at (x, y), in the precision of networks; batch-norm statistics from within
        the box."""
        within, state = np.clip((x, y), self.low, self.high), {}
        for name, origin in self.origin.items():
            statistic = name.endswith(("running_mean", "running_var"))
            a, b = map(float, within if statistic else (x, y))
            state[name] = (origin + a * self.first[name] + b * self.second[name]).float()
        return state

    def coordinates(self, state: dict) -> tuple[float, float]:
        """(x, y) of the point of the plane that is nearest to `state`, in the prunable weights."""
        away = {name: state[name].double() - self.origin[name] for name in self.weights}
        return _dot(away, self.first, self.weights), _dot(away, self.second, self.weights)


def _dot(one: dict, other: dict, weights: tuple[str, ...]) -> float:
    return float(sum((one[name] * other[name]).sum() for name in weights))


def plane(a: dict, b: dict, c: dict, weights: tuple[str, ...]) -> Plane:
    """The plane through three networks: `a` at the origin, `b` on the positive first axis, `c`
    above it (y > 0).

    Args:
        weights: names of the prunable weights, in which lengths and angles are measured.
    Raises Degenerate: two of the networks have the same prunable weights, or all three lie on one
    line."""
    start = {name: tensor.double() for name, tensor in a.items()}
    along, up = ({name: other[name].double() - start[name] for name in start} for other in (b, c))
    lengths = [_dot(side, side, weights) ** 0.5 for side in (along, up)]
    if min(lengths) == 0:
        said = "two of these have the same prunable weights"
        raise Degenerate(f"a plane needs three different networks: {said}")
    # Gram-Schmidt: what `c` has of the first axis is taken out of it
    first = {name: tensor / lengths[0] for name, tensor in along.items()}
    shared = _dot(up, first, weights)
    up = {name: tensor - shared * first[name] for name, tensor in up.items()}
    height = _dot(up, up, weights) ** 0.5
    if height <= _PARALLEL * lengths[1]:
        raise Degenerate("a plane needs three networks that do not lie on one line: these do")
    box = np.array([(0, 0), (lengths[0], 0), (shared, height)])
    second = {name: tensor / height for name, tensor in up.items()}
    return Plane(start, first, second, weights, box.min(0), box.max(0))


def corners(lab, seed: int, rewind_step: int, kind: str) -> dict[str, dict]:
    """The three networks that span a plane, half-way down the chain.

    * "solutions": "projection" (of the level's solution by the next mask), "next level" and "level"
      (the solutions).
    * "rewind points": "next start", "next level" and "start": the rewind point under both masks,
      and the solution that training reaches from the sparser one.

    In both, the first two lie in the next level's axial subspace, so that the first axis of the
    plane is all that the two have in common; the third is straight above the first, of which it has
    the removed weights in addition."""
    level, apply = lab.experiment.levels // 2, unmask.pruning.apply
    now, then = (lab.level(seed, rewind_step, at) for at in (level, level + 1))
    if kind == SOLUTIONS:
        projection = apply(then.mask, now.state)
        return {"projection": projection, "next level": then.state, "level": now.state}
    rewound = lab.rewind_point(seed, rewind_step)
    start, next_start = apply(now.mask, rewound), apply(then.mask, rewound)
    return {"next start": next_start, "next level": then.state, "start": start}


_READS = ("levels", "barrier_points", "plane_points")


def _pictured(e: Experiment):
    # One seed: a plane is a picture. The first rewind step and the last: where IMP fails, and where
    # it works.
    return product((e.first_seed,), sorted({e.earliest, e.latest}), PLANES)


def _points(e: Experiment, *keys) -> float:
    return (e.plane_points + 3) ** 2 * e.evaluated[0]


@table(
    ("seed", "rewind_step", "plane"),
    reads=_READS,
    passes=_points,
    cases=_pictured,
    needs=lambda e, seed, rewind_step, _: both_levels(e, seed, rewind_step, e.levels // 2),
)
def landscape(lab, seed, rewind_step, kind) -> pd.DataFrame:
    """Error on the plane through the networks of `corners`.

    Columns: level, next_level, what, t, x, y (in the plane, in units of weights), test_error.
    `what` is "grid", whose rows and columns run through the three networks as well; "axial
    subspace", the two ends of a line; "segment", from the third network (t = 0) to the second (t =
    1); or the name of one of the three networks."""
    e, points = lab.experiment, corners(lab, seed, rewind_step, kind)
    surface = plane(*points.values(), tuple(lab.dense_mask))
    spots = {name: surface.coordinates(state) for name, state in points.items()}
    low, high = frame(np.array(list(spots.values())))
    rows = [(name, np.nan, *spot) for name, spot in spots.items()]
    above = points["level" if kind == SOLUTIONS else "start"]
    for t in unmask.barriers.grid(e.barrier_points):
        between = unmask.barriers.interpolate(above, points["next level"], t)
        rows.append(("segment", t, *surface.coordinates(between)))
    rows += [("axial subspace", np.nan, x, 0.0) for x in (low[0], high[0])]
    across, up = grid_lines(spots, low, high, e.plane_points)
    rows += [("grid", np.nan, x, y) for y in up for x in across]
    rows = [(*row, lab.evaluate(surface.state(*row[2:])).error) for row in rows]
    table = pd.DataFrame(rows, columns=["what", "t", "x", "y", "test_error"])
    table.insert(0, "next_level", e.levels // 2 + 1)
    table.insert(0, "level", e.levels // 2)
    return table


def grid_lines(spots: dict, low: np.ndarray, high: np.ndarray, count: int) -> list[np.ndarray]:
    """Where the columns and rows of the grid are: evenly spaced, and through the spots."""
    lines = []
    for i, through in enumerate(np.array(list(spots.values())).T):
        even = np.linspace(low[i], high[i], count)
        lines.append(np.unique(np.append(even, through).round(9)))
    return lines


def frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower left and upper right corner of the picture: the bounding box of `points` (k, 2) with
    a margin around it."""
    low, high = points.min(0), points.max(0)
    margin = MARGIN * (high - low).max()
    return low - margin, high + margin


# What its captions say: a picture of one seed decides nothing


def plane_barriers(tables: Tables, e: Experiment) -> pd.DataFrame:
    """The pairs of solutions that are pictured: barrier along the plane's segment, and does the
    next level match?

    Columns: seed, rewind_step, level, next_level, barrier, connected (by it), and of `next_level`:
    density, excess, matching."""
    keys = ["seed", "rewind_step", "level", "next_level"]
    rows = tables["landscape"]
    rows = rows[(rows.plane == SOLUTIONS) & (rows.what == "segment")]
    barriers = rows.groupby(keys)[["t", "test_error"]].apply(barrier).rename("barrier")
    return with_next_level(barriers.reset_index(), tables, e)


# The numbers of its prose


def numbers(tables: Tables, e: Experiment) -> dict[str, float]:
    """By name; errors in percent."""
    pairs = plane_barriers(tables, e).set_index("rewind_step")
    level, levels = pairs.level.iloc[0], tables["levels"]
    found = {"level": level, "next_level": level + 1, "plane_points": e.plane_points}
    found["density"] = 100 * levels[levels.level == level].density.iloc[0]
    for name, step in (("early", e.earliest), ("late", e.latest)):
        here = tables["landscape"].query("rewind_step == @step and plane == 'solutions'")
        here = here.set_index("what")
        found[f"{name}_barrier"] = 100 * pairs.barrier[step]
        found[f"{name}_distance"] = here.x["next level"]
        found[f"{name}_cut"] = here.y["level"]
        found[f"{name}_projection"] = 100 * here.test_error["projection"]
        found[f"{name}_error"] = 100 * here.test_error["level"]
    return settings_in_numbers(e) | found


# Its figures

# of the three networks of a plane: label, marker
_NAMES = {
    "level": ("$w^{(%d)}$", "o"),
    "next level": ("$w^{(%d)}$", "s"),
    "projection": (r"$m^{(%d)} w^{(%d)}$", "^"),
    "start": (r"$m^{(%d)} w_\tau$", "o"),
    "next start": (r"$m^{(%d)} w_\tau$", "^"),
}
_BOUNDS = (0, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30, 40, 50, 70, 100)


def planes(tables: Tables, e: Experiment, kind: str = SOLUTIONS) -> Figure:
    """Test error on the planes through two solutions and the projection between them, or of the
    kind `REWIND_POINTS`, through two pruned rewind points and the solution.

    One panel for each rewind step pictured. Both axes have the same scale, in units of weights.
    Contours are closer where errors are small."""
    rows = tables["landscape"][tables["landscape"].plane == kind]
    lowest = PERCENT * rows.test_error.min()
    bounds = _BOUNDS[max(i for i, bound in enumerate(_BOUNDS) if bound <= lowest) :]
    look = dict(cmap="viridis_r", norm=BoundaryNorm(bounds, 256))
    lines = {
        "axial subspace": dict(color="black", ls="--", lw=1.2, label="next axial subspace"),
        "segment": dict(color="#d55e00", ls="-", lw=1.8, label="segment"),
    }
    figure, axes = plots.panels(rows.rewind_step.nunique(), width=5.2, height=4.2)
    for ax, (label, _, here) in zip(axes[0], by_step(rows, e)):
        grid = PERCENT * here[here.what == "grid"].pivot(index="y", columns="x")["test_error"]
        filled = ax.contourf(grid.columns, grid.index, grid, bounds, **look)
        thin = dict(colors="white", linewidths=0.4, alpha=0.6)
        ax.contour(grid.columns, grid.index, grid, bounds, **thin)
        for what, style in lines.items():
            line = here[here.what == what]
            ax.plot(line.x, line.y, **style)
        for row in here[here.what.isin(list(_NAMES))].itertuples():
            _mark(ax, row)
        ax.set(title=label, xlabel="along the next axial subspace", aspect="equal")
        ax.grid(False)
    axes[0, 0].set_ylabel("away from it")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.colorbar(filled, ax=axes[0], ticks=bounds, label="test error (%)", format="%g")
    return figure


def _mark(ax, row) -> None:
    """One of the three networks, with its name and its error."""
    label, marker = _NAMES[row.what]
    levels = {"level": row.level, "start": row.level, "projection": (row.next_level, row.level)}
    name = label % levels.get(row.what, row.next_level)
    ax.plot(row.x, row.y, marker, color="white", mec="black", ms=7, zorder=4)
    below = row.y == 0
    ax.annotate(
        f"{name}\n{PERCENT * row.test_error:.1f} %",
        (row.x, row.y),
        xytext=(0, -9 if below else 9),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        fontsize="small",
        bbox=dict(facecolor="white", alpha=0.75, lw=0, pad=1.5),
    )
