"""The picture: error on planes through three networks (the paper's Figure 1, measured).

Lengths and angles are those of the prunable weights, the paper's R^D. Every other entry of the state is an affine
function of a plane's coordinates too, so that along the segment between two of the three networks the states are those
of `barriers.interpolate`. Batch-norm statistics are interpolated like all else but not extrapolated: outside the box
around the three networks they are those of the nearest point of the box. A variance that shrinks from one network to
the other would soon be negative beyond it, and long before that blow up what it divides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from . import pruning
from .barriers import grid, interpolate
from .chains import Runs
from .curvature import surviving
from .errors import UnmaskError
from .experiments import Experiment
from .networks import State
from .pruning import Mask

SOLUTIONS, REWIND_POINTS = PLANES = ("solutions", "rewind points")
MARGIN = 0.4  # around the three points, as a share of the longer side of their bounding box
_PARALLEL = 1e-4  # sine of the angle below which two directions count as one


class Plane(NamedTuple):
    """The plane `origin + x * first + y * second`; `first` and `second` are orthonormal in the prunable weights.

    All three are dicts of float64 tensors under the names of the state; `weights` names the prunable ones. `low` and
    `high` are corners of the box around the three networks.
    """

    origin: State
    first: State
    second: State
    weights: tuple[str, ...]
    low: np.ndarray = np.full(2, -np.inf)
    high: np.ndarray = np.full(2, np.inf)

    def state(self, x: float, y: float) -> State:
        """The network at (x, y), in the precision of networks; batch-norm statistics from within the box."""
        within = np.clip((x, y), self.low, self.high)
        state = {}
        for name, origin in self.origin.items():
            at = within if name.endswith(("running_mean", "running_var")) else (x, y)
            state[name] = (origin + float(at[0]) * self.first[name] + float(at[1]) * self.second[name]).float()
        return state

    def coordinates(self, state: State) -> tuple[float, float]:
        """(x, y) of the point of the plane that is nearest to `state`, in the prunable weights."""
        away = {name: state[name].double() - self.origin[name] for name in self.weights}
        return self._dot(away, self.first), self._dot(away, self.second)

    def _dot(self, one: State, other: State) -> float:
        return float(sum((one[name] * other[name]).sum() for name in self.weights))


def plane(a: State, b: State, c: State, weights: tuple[str, ...]) -> Plane:
    """The plane through three networks: `a` at the origin, `b` on the positive first axis, `c` above it (y > 0).

    Args:
        weights: names of the prunable weights, in which lengths and angles are measured.

    Raises:
        UnmaskError: two of the networks have the same prunable weights, or all three lie on one line.
    """
    start = {name: tensor.double() for name, tensor in a.items()}
    frame = Plane(start, {}, {}, tuple(weights))
    along, up = ({name: other[name].double() - start[name] for name in start} for other in (b, c))
    lengths = [frame._dot(side, side) ** 0.5 for side in (along, up)]
    if min(lengths) == 0:
        raise UnmaskError("a plane needs three different networks: two of these have the same prunable weights")
    first = {name: tensor / lengths[0] for name, tensor in along.items()}
    shared = frame._dot(up, first)
    up = {name: tensor - shared * first[name] for name, tensor in up.items()}
    height = frame._dot(up, up) ** 0.5
    if height <= _PARALLEL * lengths[1]:
        raise UnmaskError("a plane needs three networks that do not lie on one line: these are collinear")
    box = np.array([(0, 0), (lengths[0], 0), (shared, height)])
    return frame._replace(first=first, second={name: tensor / height for name, tensor in up.items()},
                          low=box.min(0), high=box.max(0))


def axial_trace(surface: Plane, mask: Mask) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the plane lies in the mask's axial subspace: a point of that line and its unit direction, each (x, y).

    Pruned weights are zero there, which is one linear equation in (x, y) for each. None if they have no solution or
    only one: a plane in general position meets a subspace of so few dimensions nowhere.

    Raises:
        UnmaskError: the whole plane lies in the axial subspace.
    """
    pruned = {name: ~kept for name, kept in mask.items()}
    origin, first, second = (surviving(part, pruned) for part in surface[:3])
    equations = np.stack([first, second], axis=1)
    squares, directions = np.linalg.eigh(equations.T @ equations)  # of two singular values, the smaller one first
    if squares[1] < _PARALLEL**2:
        raise UnmaskError("the whole plane lies in the mask's axial subspace, or beside it: there is no line to draw")
    if squares[0] > _PARALLEL**2 * squares[1]:
        return None
    point = np.linalg.pinv(equations, rcond=_PARALLEL) @ -origin
    if np.linalg.norm(equations @ point + origin) > _PARALLEL * np.linalg.norm(origin):
        return None
    return point, directions[:, 0]


def middle_level(experiment: Experiment) -> int:
    """The level from which the pictured cut starts: half-way down the chain."""
    return experiment.levels // 2


def corners(runs: Runs, seed: int, rewind_step: int, kind: str) -> tuple[dict[str, State], Mask]:
    """The three networks that span a plane, and the mask of the next level.

    * "solutions": "projection" (of the level's solution by the next mask), "next level" and "level" (the solutions).
    * "rewind points": "next start", "next level" and "start": the rewind point under both masks, and the solution that
      training reaches from the sparser one.

    In both, the first two lie in the next level's axial subspace, and the third is straight above the first, of which
    it has the removed weights in addition.
    """
    level = middle_level(runs.experiment)
    now, then = (runs.level(seed, rewind_step, reached) for reached in (level, level + 1))
    if kind == SOLUTIONS:
        return {"projection": pruning.apply(then.mask, now.state), "next level": then.state, "level": now.state}, then.mask
    rewound = runs.rewind_point(seed, rewind_step)
    return {"next start": pruning.apply(then.mask, rewound), "next level": then.state,
            "start": pruning.apply(now.mask, rewound)}, then.mask


def landscape(runs: Runs, seed: int, rewind_step: int, kind: str) -> pd.DataFrame:
    """Error on the plane through the networks of `corners`.

    Columns: level, next_level, what, t, x, y (in the plane, in units of weights), test_error. `what` is
    "grid", whose rows and columns run through the three networks as well; "axial subspace", the two ends of a line
    within the frame; "segment", from the third network (t = 0) to the second (t = 1); or the name of one of the three
    networks.
    """
    e, level = runs.experiment, middle_level(runs.experiment)
    points, mask = corners(runs, seed, rewind_step, kind)
    surface = plane(*points.values(), tuple(runs.dense_mask))
    at = {name: surface.coordinates(state) for name, state in points.items()}
    spots = np.array(list(at.values()))
    low, high = frame(spots)
    _, next_level, above = points.values()

    rows = [{"what": name, "x": x, "y": y} for name, (x, y) in at.items()]
    for t in grid(e.barrier_points):
        x, y = surface.coordinates(interpolate(above, next_level, float(t)))
        rows.append({"what": "segment", "t": t, "x": x, "y": y})
    trace = axial_trace(surface, mask)
    if trace is not None:
        rows += [{"what": "axial subspace", "x": x, "y": y} for x, y in across(*trace, low, high)]
    columns, lines = (np.unique(np.append(np.linspace(low[i], high[i], e.plane_points), spots[:, i]).round(9))
                      for i in (0, 1))
    rows += [{"what": "grid", "x": x, "y": y} for y in lines for x in columns]
    for row in rows:
        row["test_error"] = runs.evaluate(surface.state(row["x"], row["y"])).error
    table = pd.DataFrame(rows, columns=["what", "t", "x", "y", "test_error"])
    table.insert(0, "next_level", level + 1)
    table.insert(0, "level", level)
    return table


def frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower left and upper right corner of the picture: the bounding box of `points` (k, 2) with a margin around it."""
    low, high = points.min(0), points.max(0)
    margin = MARGIN * (high - low).max()
    return low - margin, high + margin


def across(point: np.ndarray, direction: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where a line enters a frame and leaves it, (2, 2); nothing, (0, 2), if it misses the frame."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(low - point) / direction, (high - point) / direction])
    moving = np.abs(direction) > 1e-12
    inside = (low <= point) & (point <= high)
    if not inside[~moving].all():
        return np.empty((0, 2))
    enter, leave = ends.min(0)[moving].max(), ends.max(0)[moving].min()
    return point + np.array([[enter], [leave]]) * direction if enter < leave else np.empty((0, 2))
