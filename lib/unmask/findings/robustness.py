"""Finding 2: SGD is robust to strong perturbations at the rewind point, where pruning works.

All directions lie in the axial subspace of a level's mask: pruned weights stay zero, and biases and
batch-norm parameters stay where they are.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

import unmask

from .. import plots
from ..chains import both_levels
from ..experiments import Experiment
from ..plots import PERCENT, by_step, mean_and_range, plain_log
from ..tables import table
from ..verdicts import Claims, Tables, at_earliest, at_latest, barrier, by_seed, is_connected
from ..verdicts import in_numbers, judge, log_barrier, settings_in_numbers, with_matching

OPPOSITE, RANDOM, IMP = "opposite", "random", "imp"


def pruned_rewind_points(lab, seed, rewind_step, level):
    """`m^(L) * w_tau` and `m^(L+1) * w_tau`; pruning moves the start from the one to the other."""
    rewind_point = lab.rewind_point(seed, rewind_step)
    masks = (lab.level(seed, rewind_step, at).mask for at in (level, level + 1))
    return tuple(unmask.pruning.apply(mask, rewind_point) for mask in masks)


class Pair(NamedTuple):
    """Two networks to train from different starts: of a kind, moved by a length in units of d_L."""

    kind: str
    length: float
    first: dict
    second: dict


def perturbed(lab, seed, rewind_step, level) -> list[Pair]:
    """The starting points of all pairs of a level. `d_L` is the distance that pruning moves the
    pruned rewind point.

    * "opposite": moved by half of `length` times d_L along one direction, the one forwards and the
      other backwards, so that they are `length` times d_L apart, as successive pruned rewind points
      are at length 1. Length 0 is stability to the noise of SGD alone (Frankle et al. 2020).
    * "random": each moved by d_L along a direction of its own: sqrt(2) d_L apart.
    * "imp": the first not moved, the second moved as pruning moves it; length 1."""
    mask = lab.level(seed, rewind_step, level).mask
    here, there = pruned_rewind_points(lab, seed, rewind_step, level)
    names = seed, "perturbation", rewind_step, level
    draws = [unmask.train.generator(*names, which) for which in (0, 1)]
    moved, ways = unmask.barriers.moved, [unmask.barriers.direction(mask, one) for one in draws]
    step, pairs = unmask.barriers.distance(here, there), []
    for length in lab.experiment.perturbation_lengths:
        half = length * step / 2
        ends = (moved(here, ways[0], by) for by in (half, -half))
        pairs.append(Pair(OPPOSITE, length, *ends))
    pairs.append(Pair(RANDOM, 1.0, *(moved(here, way, step) for way in ways)))
    return [*pairs, Pair(IMP, 1.0, here, there)]


def _trainings(e: Experiment, seed: int, rewind_step: int, level: int) -> float:
    return (2 * len(e.perturbation_lengths) + 3 - (level > 0)) * (e.steps - rewind_step)


def _paths(e: Experiment, *keys) -> float:
    return (len(e.perturbation_lengths) + 2) * e.barrier_points * e.evaluated[0]


@table(
    ("seed", "rewind_step", "level"),
    reads=("barrier_points", "perturbation_lengths"),
    steps=_trainings,
    passes=_paths,
    levels="probe_levels",
    needs=both_levels,
)
def perturbations(lab, seed, rewind_step, level) -> pd.DataFrame:
    """Barriers between networks trained from perturbed starts, within a level's mask. Of each pair,
    the first trains with the level's data order and the second with another.

    Columns: kind and length (see `perturbed`), step_length (d_L), start_norm (of the pruned rewind
    point), test_error, other_error, barrier (test error, between the two)."""
    pairs = perturbed(lab, seed, rewind_step, level)
    trained = trained_pairs(lab, seed, rewind_step, level, pairs)
    _, _, here, there = pairs[-1]  # IMP's: the pruned rewind point, and what pruning makes of it
    distance, weights = unmask.barriers.distance, {name: here[name] for name in lab.dense_mask}
    step, norm = distance(here, there), distance(weights)
    rows = []
    for pair, (one, other) in zip(pairs, trained):
        path = lab.path(one, other)
        errors = path.test_error.iloc[[0, -1]]
        rows.append((pair.kind, pair.length, step, norm, *errors, barrier(path)))
    columns = ["kind", "length", "step_length", "start_norm"]
    return pd.DataFrame(rows, columns=[*columns, "test_error", "other_error", "barrier"])


def trained_pairs(lab, seed, rewind_step, level, pairs):
    """What both networks of each pair train to."""
    Start, ticket = unmask.train.Start, lab.level(seed, rewind_step, level)
    one, other = (seed, "order", level), (seed, "order", level, "second")
    # IMP's pair, the last, shares its first network with that of length 0, the first
    starts = [Start(pair.first, ticket.mask, one) for pair in pairs[:-1]]
    starts += [Start(pair.second, ticket.mask, other) for pair in pairs]
    # The chain has trained the network that is not moved; not so the dense one, whose momentum
    # was not reset at the rewind step.
    known = [ticket.state] if level > 0 else []
    ends = known + lab.trained(starts[len(known) :], rewind_step)
    firsts, seconds = ends[: len(pairs) - 1], ends[len(pairs) - 1 :]
    return list(zip([*firsts, firsts[0]], seconds))


# Judging


def main_kind(tables: Tables) -> str:
    """The kind of pair that the finding is judged by: at lengths, tables published before there
    were opposite pairs have those along two directions."""
    return OPPOSITE if (tables["perturbations"].kind == OPPOSITE).any() else RANDOM


def at_step_length(tables: Tables, e: Experiment) -> pd.DataFrame:
    """One row for each seed, rewind step and probed level: what perturbations of length 1 do, and
    whether IMP works.

    Columns: seed, rewind_step, level, barriers and whether they count as connected for pairs with
    no perturbation (`noise_barrier`, `noise_connected`), of the `main_kind` (`step_...`), along two
    random directions (`random_...`) and along IMP's (`imp_...`), step_length, start_norm, matching
    and lost (is IMP's next level), density (of that)."""
    keys, pairs, main = ["seed", "rewind_step", "level"], tables["perturbations"], main_kind(tables)
    table = with_matching(tables, e)[[*keys, "density", "matching", "lost"]]
    table = table.assign(level=table.level - 1)
    wanted = ("noise", main, 0), ("step", main, 1), ("random", RANDOM, 1), ("imp", IMP, 1)
    for name, kind, length in wanted:
        here = pairs[(pairs.kind == kind) & (pairs.length == length)]
        here = here.rename(columns={"barrier": f"{name}_barrier"})
        also = ["step_length", "start_norm"] if name == "noise" else []
        table = table.merge(here[[*keys, f"{name}_barrier", *also]], on=keys)
        table[f"{name}_connected"] = is_connected(table[f"{name}_barrier"], e)
    return table


@judge("2", needs=("levels", "perturbations"))
def verdicts(claims: Claims, tables: Tables, e: Experiment) -> None:
    table = at_step_length(tables, e)
    table = table[~table.lost]
    late, first = at_latest(table, e), at_earliest(table, e)
    yes, no = late[late.matching], late[~late.matching]
    apart = "d_L apart" if main_kind(tables) == OPPOSITE else "each moved by d_L"
    decades = "decades of the barrier's threshold"

    def add(claim, rows, barriers, sign, **options):
        margin = sign * log_barrier(barriers, e)
        claims.add("fig-perturbed", claim, decades, by_seed(rows, margin), **options)

    where = "from the last rewind step, where IMP's next level"
    claim = f"{where} matches, networks {apart} train to connected ones"
    add(claim, yes, yes.step_barrier, -1, headline=True)
    if main_kind(tables) == OPPOSITE:
        claim = f"{where} matches, networks sqrt(2) d_L apart train to connected ones, too"
        add(claim, yes, yes.random_barrier, -1)
    claim = f"{where} matches, networks apart by pruning itself train to connected ones, too"
    add(claim, yes, yes.imp_barrier, -1)
    claim = f"{where} does not match, networks {apart} train to unconnected ones"
    add(claim, no, no.step_barrier, 1)
    if len(e.rewind_steps) > 1:
        claim = f"from the first rewind step, networks {apart} do not train to connected ones"
        add(claim, first, first.step_barrier, 1)
    more = log_barrier(late.step_barrier, e) - log_barrier(late.noise_barrier, e)
    claim = f"networks {apart} end further apart than SGD's noise alone sends them"
    claim, unit = f"from the last rewind step, {claim}", "decades of the barrier"
    claims.add("fig-perturbed", claim, unit, by_seed(late, more))


# The numbers of its prose


def numbers(tables: Tables, e: Experiment) -> dict[str, float]:
    """By name; barriers in percent, geometric means over probed levels and seeds."""
    table = at_step_length(tables, e)
    table = table[~table.lost]
    late, first = at_latest(table, e), at_earliest(table, e)
    yes, no = late[late.matching], late[~late.matching]
    cases = {
        "matching": (yes, yes.step_barrier),
        "other": (no, no.step_barrier),
        "first": (first, first.step_barrier),
        "noise": (yes, yes.noise_barrier),
        "noise_other": (no, no.noise_barrier),
        "twice": (yes, yes.random_barrier),
        "imp": (yes, yes.imp_barrier),
    }
    found = {"longest": e.perturbation_lengths[-1]}
    for name, (rows, barriers) in cases.items():
        margin = by_seed(rows, log_barrier(barriers, e))
        found |= in_numbers(f"barrier_{name}", margin, lambda m: 100 * e.lmc_threshold * 10**m)
    return settings_in_numbers(e) | found


def robustness_table(tables: Tables, e: Experiment) -> pd.DataFrame:
    """Connected at d_L, against whether IMP matches: in how many seeds, and the mean barriers in
    percentage points."""
    table = at_step_length(tables, e)
    table["d_L"] = table.step_length / table.start_norm
    rows = table.groupby(["level", "rewind_step"])
    cells = {
        "d_L (% of the norm)": (100 * rows.d_L.mean()).round(1),
        "barrier at 0": (100 * rows.noise_barrier.mean()).round(2),
        "at d_L": (100 * rows.step_barrier.mean()).round(2),
        "IMP's direction": (100 * rows.imp_barrier.mean()).round(2),
        "connected at d_L (seeds)": rows.step_connected.sum(),
        "IMP's next level matches (seeds)": rows.matching.sum(),
        "seeds": rows.size(),
    }
    return pd.DataFrame(cells).rename_axis(["level", "rewound to step"])


# Its figure


def perturbed_pairs(tables: Tables, e: Experiment) -> Figure:
    """Barrier between perturbed pairs, and their test error, against the length of the
    perturbation.

    A column of panels for each probed level, a curve for each rewind step: mean over seeds, and of
    the first and the last their range. Hollow: the same length along IMP's own direction."""
    table, main = tables["perturbations"], main_kind(tables)
    table = table.assign(error=table[["test_error", "other_error"]].mean(axis=1))
    levels, hollow = sorted(table.level.unique()), dict(ms=9, mfc="none", mew=1.6, ls="none")
    options = dict(rows=2, width=4.2, height=2.8, sharex=True, sharey="row")
    figure, axes = plots.panels(len(levels), **options)
    for column, level in zip(axes.T, levels):
        curves = by_step(table[table.level == level], e)
        for offset, (label, style, chain) in enumerate(curves):
            random, imp = (chain[chain.kind == kind] for kind in (main, IMP))
            look, at = {"color": style["color"]}, 1 + 0.03 * (offset - 1)  # side by side
            end = chain.rewind_step.iloc[0] in (e.earliest, e.latest)
            for ax, y in zip(column, ("barrier", "error")):
                mean_and_range(ax, random, "length", y, band=end, label=label, **style)
                points = PERCENT * imp[y]
                if end:
                    ax.plot([at, at], [points.min(), points.max()], lw=1, **look)
                ax.plot(at, points.mean(), marker=style["marker"], **hollow, **look)
        for ax in column:
            ax.axvline(1, color="0.3", lw=1)
            least = min(length for length in e.perturbation_lengths if length)
            ax.set_xscale("symlog", base=2, linthresh=least)
            ax.set_xticks(e.perturbation_lengths)
            plain_log(ax.xaxis)
        plots.barrier_axis(column[0], e)
        plots.error_axis(column[1])
        column[0].set_title(f"level {level}\n({plots.density_at(tables['levels'], level)})")
    figure.supxlabel("perturbation, in units of $d_L$", size="medium")
    axes[0, 0].set_ylabel("barrier between the two\n(percentage points)")
    axes[1, 0].set_ylabel("test error of the two (%)")
    axes[0, 0].plot([], [], marker="o", color="0.3", label="along IMP's direction", **hollow)
    plots.legend_above(figure, axes[0, 0], columns=4)
    return figure
