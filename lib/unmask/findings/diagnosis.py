"""Beyond the paper: has a network of one's own a ticket, from which rewind step, and how much can
be cut? Asked of one seed and a handful of pairs of networks, before anybody runs iterative
magnitude pruning (IMP), which trains one network for each level and rewind step.

No experiment has these tables as a whole: what is asked next depends on what was answered.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import math
import textwrap
import time
from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import unmask

from .. import plots, tables
from ..chains import Place, dense, place
from ..errors import Degenerate
from ..experiments import Experiment, bad
from ..parallel import check_jobs
from ..plots import PERCENT
from ..remote import reaching
from ..store import Store, commit, processor, write_atomically
from ..tables import Part, table
from ..verdicts import FAILS, HOLDS, SYMBOLS, UNDECIDED, Claims, Tables, Verdicts, at_latest
from ..verdicts import area, barrier, in_sublevel_set, is_at_chance, is_at_most, is_connected
from ..verdicts import is_matching, with_matching

NOISE, PRUNING = 0, 1  # how far the two of a pair start apart, in units of d_L
UNASKED = "Not asked: it takes a trained network that learns."
BRIEF = 0.1  # share of the training steps for which a cut network is fine-tuned


def candidates(e: Experiment) -> tuple[int, ...]:
    """The rewind steps to search: 0, and from 1/128 to 1/2 of the training steps, each sqrt(2)
    times the one before, rounded."""
    return tuple(sorted({0, *(round(e.steps * 2 ** (-k / 2)) for k in range(2, 15))}))


# What is measured


def _path(e: Experiment, *keys) -> float:
    return e.barrier_points * e.evaluated[0]


def _dense(e: Experiment, seed: int, *keys):
    return [dense(seed)]


@table(("seed",), asked=True, passes=lambda e, seed: e.evaluated[0], needs=_dense)
def dense_error(lab, seed) -> pd.DataFrame:
    """Columns: test_error (of the dense network), chance (that of always naming the most frequent
    class), tested (on how many samples), weights (that can be pruned)."""
    error = lab.evaluate(lab.tickets([dense(seed)])[0].state).error
    row = error, lab.chance, len(lab.data.test.y), lab.total
    return pd.DataFrame([row], columns=["test_error", "chance", "tested", "weights"])


def cut_once(lab, seed: int, rewind_step: int):
    """The rewind point, and what IMP's first mask leaves of it: that of the dense solution cut once
    by `prune_fraction`. The distance between the two is d_L."""
    here = lab.rewind_point(seed, rewind_step)
    mask = lab.start(place(lab.experiment, "imp", seed, rewind_step, 1)).mask
    return here, unmask.pruning.apply(mask, here)


@table(
    ("seed", "rewind_step", "length", "side"),
    asked=True,
    tensors=True,
    steps=lambda e, seed, rewind_step, *_: e.steps - rewind_step,
    needs=_dense,
)
def ends(lab, seed, rewind_step, length, side):
    """What one network of a pair trains to: from the rewind point, moved along one random direction
    by half of `length` times d_L, forwards (side 0) or backwards (side 1). Each side has a data
    order of its own."""
    here, there = cut_once(lab, seed, rewind_step)
    draws = unmask.train.generator(seed, "perturbation", rewind_step, 0, 0)
    along = unmask.barriers.direction(lab.dense_mask, draws)
    half = (-1) ** side * length * unmask.barriers.distance(here, there) / 2
    order = (seed, "order", 0, "second")[: 3 + side]
    start = unmask.train.Start(unmask.barriers.moved(here, along, half), lab.dense_mask, order)
    return lab.trained([start], rewind_step)[0]


def _pair(e: Experiment, seed: int, rewind_step: int, length: int):
    sides = [Part("ends", (seed, rewind_step, length, side)) for side in (0, 1)]
    # of the pair that starts from the initial weights, one is the dense run
    return [dense(seed), sides[1]] if (rewind_step, length) == (0, NOISE) else sides


@table(
    ("seed", "rewind_step", "length"),
    asked=True,
    reads=("barrier_points",),
    passes=_path,
    needs=lambda *keys: [dense(keys[1]), *_pair(*keys)],
)
def stability(lab, seed, rewind_step, length) -> pd.DataFrame:
    """The barrier between the two of a pair. Length 0 is stability to the noise of SGD (Frankle et
    al. 2020), length 1 to a move as long as pruning's.

    Columns: step_length (d_L), start_norm (of the rewind point), barrier."""
    trained = [
        lab.tickets([one])[0].state if isinstance(one, Place) else ends.read(lab, one.keys)
        for one in _pair(lab.experiment, seed, rewind_step, length)
    ]
    here, there = cut_once(lab, seed, rewind_step)
    distance, weights = unmask.barriers.distance, {name: here[name] for name in lab.dense_mask}
    row = distance(here, there), distance(weights), barrier(lab.path(*trained))
    return pd.DataFrame([row], columns=["step_length", "start_norm", "barrier"])


def brief(e: Experiment, *keys) -> int:
    return max(1, round(BRIEF * e.steps))


def cut_and_tuned(lab, state, mask, level: int, order: tuple):
    """A solution cut to as many weights as `level` of IMP keeps, and what that is fine-tuned to
    within the new mask, briefly and at the last learning rate."""
    mask = unmask.pruning.prune_magnitude(state, mask, lab.survivors(level))
    near = unmask.pruning.apply(mask, state)
    start = unmask.train.Start(near, mask, order)
    step = lab.experiment.steps - brief(lab.experiment)
    return near, *lab.trained([start], step, fine_tune=True)


@table(
    ("seed", "level"),
    asked=True,
    reads=("barrier_points",),
    steps=brief,
    passes=lambda e, *keys: 2 * _path(e),
    needs=_dense,
)
def cuts(lab, seed, level) -> pd.DataFrame:
    """The dense solution cut at once to as many weights as `level` of IMP keeps.

    Columns: weights ("projection" or "fine-tuned", see `cut_and_tuned`), density, test_error,
    solution_error, barrier (to the solution)."""
    rows, (solution,) = [], lab.tickets([dense(seed)])
    both = cut_and_tuned(lab, solution.state, solution.mask, level, (seed, "order", 0, "cut"))
    for weights, state in zip(("projection", "fine-tuned"), both):
        path = lab.path(solution.state, state)
        before, error = path.test_error.iloc[[0, -1]]
        rows.append((weights, lab.density(level), error, before, barrier(path)))
    columns = ["weights", "density", "test_error", "solution_error", "barrier"]
    return pd.DataFrame(rows, columns=columns)


def _successive(e: Experiment, seed: int, rewind_step: int, level: int):
    return [place(e, "imp", seed, rewind_step, at) for at in (level - 1, level)]


_KEYS = "seed", "rewind_step", "level"


@table(_KEYS, asked=True, reads=("barrier_points",), passes=_path, needs=_successive)
def imp_levels(lab, seed, rewind_step, level) -> pd.DataFrame:
    """A level of IMP. Columns: density, test_error, barrier (to the level before)."""
    before, after = lab.tickets(_successive(lab.experiment, seed, rewind_step, level))
    path = lab.path(before.state, after.state)
    row = lab.density(level), path.test_error.iloc[-1], barrier(path)
    return pd.DataFrame([row], columns=["density", "test_error", "barrier"])


# Fewer and larger cuts

STRIDES = (2, 3)  # levels of IMP that are cut at once, beside all of them
ADAPTIVE = 0  # as many as geometry allows
LOOKS = 3  # points on the segment to a network that is tried


def goal(e: Experiment) -> int:
    """The level of IMP to reach: the first with at most half of `ticket_density`, or the last."""
    return min(e.levels, math.ceil(math.log(e.ticket_density / 2, 1 - e.prune_fraction)))


def widest(lab, state, mask, level: int, most: int, order: tuple) -> tuple[int, int]:
    """How many levels can be cut at once, and how many networks it took to find out: by bisection
    the most, up to `most`, that leave one which, fine-tuned, has a barrier of at most epsilon to
    the solution; a single level needs no try."""
    tried = []

    def too_many(stride: int) -> bool:
        tried.append(stride)
        _, tuned = cut_and_tuned(lab, state, mask, level + stride, order)
        path = lab.path(state, tuned, unmask.barriers.grid(LOOKS))
        return not is_at_most(barrier(path), lab.experiment.epsilon)

    return 1 + bisect_left(range(2, most + 1), True, key=too_many), len(tried)


def cost(e: Experiment, trained, tried):
    """In training steps: the dense run, levels trained and measured, tries fine-tuned and measured
    on their segment. Forward and backward are about three times forward."""
    measured = e.evaluated[0] / (3 * e.batch_size)
    each = brief(e) + LOOKS * measured
    return e.steps + trained * (e.steps - e.latest + measured) + tried * each


@table(
    ("seed",),
    asked=True,
    cases=lambda e: [(seed,) for seed in e.all_seeds],
    reads=("rewind_steps", "levels", "ticket_density", "epsilon"),
    steps=lambda e, seed: 2 * goal(e) * (e.steps - e.latest),  # about
    needs=_dense,
)
def schedules(lab, seed) -> pd.DataFrame:
    """IMP from the last rewind step down to the density of level `goal`, several levels' worth of
    weights cut at once; but for that as IMP. An adaptive cut is no wider than the one before.

    Columns: stride (how many; of `STRIDES`, all of them, or `ADAPTIVE`), level (of IMP that is as
    sparse), density, trained, tried (networks of the chain until here), test_error."""
    e, end, rows = lab.experiment, goal(lab.experiment), []
    here, (solution,) = lab.rewind_point(seed, e.latest), lab.tickets([dense(seed)])
    for name in (*sorted({*STRIDES, end}), ADAPTIVE):
        (state, mask, _), level, stride, tried = solution, 0, name or end, 0
        for trained in range(1, end + 1):
            order, stride, more = (seed, "order", trained), min(stride, end - level), 0
            if name == ADAPTIVE:
                stride, more = widest(lab, state, mask, level, stride, (*order, "cut"))
            level, tried = level + stride, tried + more
            mask = unmask.pruning.prune_magnitude(state, mask, lab.survivors(level))
            (state,) = lab.trained([unmask.train.Start(here, mask, order)], e.latest)
            found = lab.density(level), trained, tried, lab.evaluate(state).error
            rows.append((name, level, *found))
            if level == end:
                break
    columns = ["stride", "level", "density", "trained", "tried", "test_error"]
    return pd.DataFrame(sorted(rows, key=lambda row: row[3]), columns=columns)


# How it is judged: what answers are, from tables: a verdict, a few words, and sentences


def points(share: float) -> str:
    return f"{PERCENT * share:.1f} points"


def learns(found: Tables, e: Experiment) -> tuple[str, str, str]:
    row = found["dense_error"].iloc[0]
    words = (
        f"The dense network errs on {row.test_error:.1%} of the test samples; always naming the "
        f"most frequent class errs on {row.chance:.1%}. {row.weights:,.0f} weights can be pruned."
    )
    if is_at_chance(found["dense_error"], {"levels": found["dense_error"]}, e).any():
        return FAILS, "no", f"{words} It is no better than chance."
    return HOLDS, "yes", words


def stable_from_start(found: Tables, e: Experiment) -> tuple[str, str, str]:
    row = found["stability"].query("rewind_step == 0 and length == @NOISE")
    verdict = (HOLDS, "yes") if is_connected(row.barrier, e).all() else (FAILS, "no")
    words = (
        "Two networks trained from the same initial weights, with the data in another order, end "
        f"with a barrier of {points(row.barrier.iloc[0])} between them; less than "
        f"{points(e.lmc_threshold)} counts as connected."
    )
    return *verdict, words


def bracket(found: Tables, e: Experiment) -> tuple[int | None, int | None]:
    """The last step tried from which the pair apart by d_L ends not connected, and the first from
    which it ends connected; None where there is none."""
    pairs = found.get("stability", pd.DataFrame(columns=["rewind_step", "length", "barrier"]))
    pairs = pairs[pairs.length == PRUNING]
    stable = is_connected(pairs.barrier, e)
    both = pairs.rewind_step[~stable].max(), pairs.rewind_step[stable].min()
    return tuple(None if pd.isna(step) else int(step) for step in both)


def rewind_step(found: Tables, e: Experiment) -> tuple[str, str, str]:
    below, first = bracket(found, e)
    tried = [step for step in (first, below) if step is not None]
    pairs = found["stability"].set_index(["rewind_step", "length"])
    row = pairs.loc[(tried[0], PRUNING)]
    far = [(f"step {step}", points(pairs.barrier[step, PRUNING])) for step in tried]
    noise = [points(pairs.barrier[step, NOISE]) for step in tried if (step, NOISE) in pairs.index]
    words = (
        f"Removing the {e.prune_fraction:.0%} smallest weights of the dense solution moves the "
        f"rewind point of {far[0][0]} by {row.step_length / row.start_norm:.0%} of its length. "
        "Two networks that start so far apart end with a barrier between them, "
        + " and ".join(f"{height} from {step}" for step, height in far)
        + f"; by the noise of SGD alone, {' and '.join(noise) or 'not measured'}."
    )
    if first is None:
        return FAILS, f"none up to {below}", words
    words += f" Step {first} is {first / e.steps:.0%} of training." if first else ""
    return HOLDS, f"step {first}", words


def cut_at_once(found: Tables, e: Experiment) -> tuple[str, str, str]:
    rows = found["cuts"].assign(inside=in_sublevel_set(found["cuts"], e))
    inside = rows.groupby("density").inside.any()
    kept, lost = inside.index[inside].min(), inside.index[~inside].max()  # NaN if there is none
    words = f"The dense solution is cut at once and fine-tuned for {brief(e)} steps in the mask."
    if pd.notna(kept):
        level = rows[rows.density == kept].level.iloc[0]
        words += (
            f" With {kept:.0%} of its weights, those of level {level} of IMP, it is connected to "
            f"what it was and at most {points(e.epsilon)} worse."
        )
    if pd.notna(lost):
        words += f" With {lost:.0%} it is not connected, or more than {points(e.epsilon)} worse."
    words += by_theory(found, e)
    if pd.isna(kept):
        return FAILS, f"less than {1 - lost:.0%}", words
    return HOLDS, f"{1 - kept:.0%}", words


def by_theory(found: Tables, e: Experiment) -> str:
    """The range of what "dense_limits" allows, over how the spectrum is read and estimated."""
    if "dense_limits" not in found:
        return ""
    rows = found["dense_limits"].query("mask == 'magnitude'").groupby("gradient").ratio
    low, high = rows.min(), rows.max()
    flat, sloped = (f"{low[counts]:.0%} to {high[counts]:.0%}" for counts in (False, True))
    wide = ": too wide to decide" if high[False] - low[False] > 2 * e.limit_tolerance else ""
    return (
        f" The theory of random subspaces, by estimates of curvature, lets {flat} of the weights "
        f"go, depending on how it is read{wide}; {sloped} if the slope that is left counts."
    )


def borne_out(found: Tables, e: Experiment) -> tuple[str, str, str]:
    rows, (below, first) = found["imp_levels"], bracket(found, e)
    most = found["dense_error"].test_error.iloc[0] + e.epsilon
    stable, connected = rows.rewind_step != below, is_connected(rows.barrier, e)
    right = (connected == stable) & (is_at_most(rows.test_error, most) | ~stable)
    told = [
        f"rewound to step {row.rewind_step}, level {row.level} ({row.density:.0%} of the weights) "
        f"errs on {row.test_error:.1%}, behind a barrier of {points(row.barrier)}"
        for row in rows.itertuples()
    ]
    words = (
        f"By iterative magnitude pruning, {'; '.join(told)}. Predicted were at most {most:.1%} "
        f"behind less than {points(e.lmc_threshold)} from step {first}"
    )
    words += "." if stable.all() else f", and a higher barrier from step {below}."
    verdict = HOLDS if right.all() else UNDECIDED if right.any() else FAILS
    return verdict, f"{right.sum()} of {len(right)} levels", words


class Answer(NamedTuple):
    """`short`: to be read at a glance; `words`: sentences; `cost`: until here."""

    question: str
    verdict: str
    short: str
    words: str
    cost: str

    def __str__(self) -> str:
        words = textwrap.indent(textwrap.fill(f"{self.words} {self.cost}", 94), "  ")
        return f"{SYMBOLS[self.verdict]} {self.question} {self.short}\n{words}"

    def _repr_html_(self) -> str:
        question, short, words = map(html.escape, (self.question, self.short, self.words))
        mark = f'{question} <span class="verdict {self.verdict}">{short}</span>'
        return f"<p><strong>{mark}</strong><br>{words} <small>{self.cost}</small></p>\n"


# How far it can be trusted: from tables of an experiment that ran IMP, of many seeds


def pairs_and_imp(found: Tables, e: Experiment) -> pd.DataFrame:
    """The pairs apart by nothing and by d_L, at probed levels, each with `matching`: is the first
    level of IMP that keeps at most `ticket_density`, from the same seed and rewind step?"""
    sparse = with_matching(found, e).query("density <= @e.ticket_density")
    sparse = sparse[sparse.level == sparse.level.min()][["seed", "rewind_step", "matching"]]
    pairs = found["perturbations"].query("kind == 'opposite' and length in (@NOISE, @PRUNING)")
    return pairs.merge(sparse, on=["seed", "rewind_step"]).sort_values("rewind_step")


def told_apart(found: Tables, e: Experiment) -> pd.DataFrame:
    """By seed, level and length, over rewind steps: does the barrier of the pair tell whether IMP
    matches? Columns: auc (a smaller barrier where it matches: the share of cases, half for equal
    ones), late (how many rewind steps the first connected pair is after the first match)."""
    rows = []
    for keys, here in pairs_and_imp(found, e).groupby(["seed", "level", "length"]):
        auc = area(here.barrier, ~here.matching)
        # the place of the first, or one after all of them
        both = is_connected(here.barrier, e), here.matching
        connected, matching = ([*each, True].index(True) for each in both)
        rows.append((*keys, auc, connected - matching))
    return pd.DataFrame(rows, columns=["seed", "level", "length", "auc", "late"])


def trusted(found: Tables, e: Experiment) -> Verdicts:
    """By the rule of the book, at the densest level that was probed."""
    claims, figure = Claims("diagnosis", found, e), "fig-trusted"
    table = told_apart(found, e).query("level == @e.probe_levels[0]")
    table = table.pivot(index="seed", columns="length", values=["auc", "late"])
    auc, late = (table.reindex(columns=[(v, NOISE), (v, PRUNING)])[v] for v in ("auc", "late"))
    claim = "pairs apart by d_L tell from which rewind steps IMP matches"
    claims.add(figure, claim, "AUC above 1/2", auc[PRUNING] - 0.5)
    claim = "they tell it better than pairs apart by the noise of SGD alone"
    claims.add(figure, claim, "AUC", auc[PRUNING] - auc[NOISE])
    words = "how much later than IMP's first match the first connected pair is"
    claims.measure(figure, f"{words}: apart by d_L", "rewind steps tried", late[PRUNING])
    claims.measure(figure, f"{words}: by the noise of SGD", "rewind steps tried", late[NOISE])
    return Verdicts(claims.evidence)


# Is a ticket cheaper if geometry chooses each cut?


def ways(e: Experiment) -> dict[int, str]:
    """How to prune, in words, by stride."""
    shares = {n: 1 - (1 - e.prune_fraction) ** n for n in (1, *STRIDES, goal(e))}
    words = {n: f"{s:.0%} {'at once' if n == goal(e) else 'a level'}" for n, s in shares.items()}
    return words | {ADAPTIVE: "chosen by geometry"}


def at_goal(found: Tables, e: Experiment) -> pd.DataFrame:
    """The chains of "schedules", and IMP's own (stride 1), as sparse as level `goal`: with
    `matching`, `cost` and `total`, the training steps until there is one that matches. Whoever
    misses prunes again, level by level; it is NaN where that misses as well."""
    imp = at_latest(found["levels"], e)
    imp = imp.assign(stride=1, trained=imp.level, tried=0)
    table = pd.concat([found["schedules"], imp], join="inner", ignore_index=True)
    table = table[table.level == goal(e)]
    matching, spent = is_matching(table, found, e), cost(e, table.trained, table.tried)
    again = table.seed.map(table[(table.stride == 1) & matching].set_index("seed").trained)
    total = spent.where(matching, spent + cost(e, again, 0) - e.steps)
    return table.assign(matching=matching, cost=spent, total=total)


def cheaper(found: Tables, e: Experiment) -> Verdicts:
    """By the rule of the book, a number for each seed."""
    claims, half = Claims("diagnosis", found, e), e.prune_fraction / 2
    total = at_goal(found, e).pivot(index="seed", columns="stride", values="total")
    levels = math.ceil(goal(e) * math.log(1 - e.prune_fraction, 1 - half))
    others = {words: total[stride] for stride, words in ways(e).items() if stride != ADAPTIVE}
    others[f"{half:.0%} a level, even if that never missed"] = cost(e, levels, 0)
    for words, steps in others.items():
        claim = f"a cut {ways(e)[ADAPTIVE]} gets there in fewer steps than {words}"
        unit = "log of how many times as many training steps"
        claims.add("fig-schedules", claim, unit, np.log(steps / total[ADAPTIVE]))
    return Verdicts(claims.evidence)


# When to stop: does a level that matches tell that the next one does not?

SIGNS = {"barrier": "the barrier to the level before", "rise": "the rise of that barrier"}
OWN = {"excess": "the level's own error"}


def last_matches(found: Tables, e: Experiment) -> pd.DataFrame:
    """Levels of IMP that match, from level 2 to the last but one, with `ends` (does the next one
    not match?) and what may tell it: `barrier` to the level before, its `rise` from that of the
    level before, `excess` (error above the seed's reference)."""
    keys = ["seed", "rewind_step", "level"]
    pairs = found["pairs"].query("other == level + 1").drop(columns="level")
    table = with_matching(found, e).merge(pairs.rename(columns={"other": "level"}), on=keys)
    chains = table.sort_values(keys).groupby(keys[:2])
    following, rise = chains.matching.shift(-1), chains.barrier.diff()
    table = table.assign(rise=rise, ends=following.eq(False))
    return table[table.matching & following.notna() & rise.notna()]


def when_to_stop(found: Tables, e: Experiment) -> Verdicts:
    """By the rule of the book; from the last rewind step, and shown from the one before."""
    claims, figure, own = Claims("diagnosis", found, e), "fig-stop", OWN["excess"]
    groups = last_matches(found, e).groupby(["seed", "rewind_step"])
    auc = {s: groups.apply(lambda g, s=s: area(g[s], g.ends)) for s in SIGNS | OWN}
    auc = pd.DataFrame(auc).reset_index("rewind_step")
    late = at_latest(auc, e)
    for sign, words in SIGNS.items():
        claim = f"{words} tells that the next level will not match"
        claims.add(figure, claim, "AUC above 1/2", late[sign] - 0.5)
        claims.add(figure, f"{words} tells it better than {own}", "AUC", late[sign] - late.excess)
    claims.measure(figure, f"how well {own} tells it", "AUC above 1/2", late.excess - 0.5)
    for step in e.rewind_steps[-2:-1]:
        more = auc[auc.rewind_step == step].eval("barrier - excess")
        words = f"from step {step}: how much better the barrier tells it"
        claims.measure(figure, words, "AUC", more)
    return Verdicts(claims.evidence)


# The procedure


class _Spent(Exception):
    """What comes next is left out."""


class Diagnosis:
    """Asks and answers, in at most `minutes`; what is in the store takes none.
    Raises UnmaskError: bad input, found before any computing."""

    def __init__(self, e: Experiment, store: Store | None = None, minutes: float = 5.0, jobs=None):
        if not (isinstance(minutes, (int, float)) and 0 <= minutes <= 1e6):
            raise bad("minutes", minutes, "a number, 0 to 1e+06")
        self.e, self.minutes, self.until = e, minutes, time.monotonic() + 60 * minutes
        self.lab = unmask.Lab(e.but(rewind_steps=candidates(e), seeds=1), store or Store())
        self.jobs = check_jobs(jobs, self.lab.device.type)
        self.tables: Tables = {}
        self.answers: list[Answer] = []
        self.nodes: set[tables.Node] = set()  # that the answers rest on
        self.worked: list[tuple[float, float]] = []  # here: training steps or their like, seconds

    def run(self) -> Iterator[Answer]:
        """The answers, each as soon as it is known."""
        start = partial(self.measure, "stability", (0, NOISE))
        asked = (
            ("Does the network learn?", partial(self.measure, "dense_error", ()), learns),
            ("Is training stable from the start?", start, stable_from_start),
            ("From which rewind step can it be pruned?", self._steps, rewind_step),
            ("How much can be cut at once?", self._cuts, cut_at_once),
            ("Does pruning bear it out?", self._levels, borne_out),
        )
        for question, measure, judge in asked:
            before, left = len(self.nodes), ""
            try:
                if self.answers and self.answers[0].verdict != HOLDS:
                    raise _Spent(UNASKED)
                measure()
            except (_Spent, Degenerate) as error:
                left = str(error)
            answer = UNDECIDED, "not known", ""
            if len(self.nodes) > before:
                answer = judge(self.tables, self.e)
            words = f"{answer[2]} {left}".strip()
            self.answers.append(Answer(question, *answer[:2], words, self.cost()["words"]))
            yield self.answers[-1]

    def _steps(self):
        def stable(step: int) -> bool:
            return is_connected(self.measure("stability", (step, PRUNING)).barrier, self.e).iloc[-1]

        bisect_left(self.lab.experiment.rewind_steps, True, key=stable)
        # is it the noise of SGD that decides, or how far pruning moves?
        self.measure("stability", *((s, NOISE) for s in bracket(self.tables, self.e) if s))

    def _cuts(self):
        def too_much(level: int) -> bool:
            return not in_sublevel_set(self.measure("cuts", (level,)).tail(2), self.e).any()

        bisect_left(range(1, self.e.levels + 1), True, key=too_much)
        self.measure("dense_limits", ())

    def _levels(self):
        below, first = bracket(self.tables, self.e)
        if first is None:
            raise _Spent("Not asked: no rewind step is known to prune from.")
        steps = [(first, 1), (below, 1), (first, 2)]
        for step, level in steps[: 1 + self.e.levels]:
            if step is not None:
                self.measure("imp_levels", (step, level))

    def measure(self, name: str, *cases: tuple) -> pd.DataFrame:
        """Add parts of a table, of the first seed and these other keys, to `tables`; what is not in
        the store is computed, if there is time. Returns all of the table that is known."""
        parts = [Part(name, (self.e.first_seed, *keys)) for keys in cases]
        self._compute(parts)
        self.nodes |= set(tables.graph(self.lab.experiment, parts))
        for part in parts:
            rows = tables.TABLES[name].read(self.lab, part.keys)
            self.tables[name] = pd.concat([self.tables.get(name), rows], ignore_index=True)
        return self.tables[name]

    def _compute(self, parts: list[Part]) -> None:
        if not (missing := tables.missing(self.lab, parts)):
            return
        e, left = self.lab.experiment, max(0.0, self.until - time.monotonic())
        # forward and backward are about three times forward
        each = (tables.work(e, node) for node in missing)
        amounts = [steps + passes / (3 * e.batch_size) for steps, passes in each]
        amount = max(max(amounts), sum(amounts) / self.jobs)
        needed = amount * self._pace() if left else 0
        if needed >= left:
            takes = f"what comes next takes {needed / 60:.1f} minutes, and " * (left > 0)
            raise _Spent(f"Left out: {takes}{left / 60:.1f} of {self.minutes:g} minutes are left.")
        began = time.monotonic()
        tables.compute(self.lab, parts, self.jobs)
        self.worked.append((amount, time.monotonic() - began))

    def _pace(self) -> float:
        """Seconds for a training step: of those taken here, or of a few that are timed."""
        if self.worked:
            amounts, seconds = map(sum, zip(*self.worked))
            return seconds / amounts
        start = self.lab.initial(self.e.first_seed), self.lab.dense_mask
        return unmask.train.step_seconds(self.e.but(seeds=1), self.lab.data.train, *start)

    # Its numbers, and what is made of it

    def cost(self) -> dict:
        """What the answers rest on, whoever computed it, in training steps and seconds of one core;
        and what IMP of one seed would cost: from the step that was found, or from all tried."""
        lab, e = self.lab, self.lab.experiment

        def both(nodes) -> tuple[float, float]:
            took = (lab.store.provenance(tables.entry(lab, node))["seconds"] for node in nodes)
            return sum(tables.work(e, node)[0] for node in nodes), sum(took)

        steps, seconds = both(self.nodes)
        # networks: a place's kind, or a part's table
        trained = both([node for node in self.nodes if node[0] in ("imp", "ends")])
        each = trained[1] / trained[0] if trained[0] else float("nan")
        first = bracket(self.tables, e)[1]
        first = self.e.latest if first is None else first
        found = {"steps": steps, "seconds": seconds, "step_seconds": each, "imp_step": first}
        found["words"] = f"({steps:,.0f} training steps, {seconds:,.0f} s so far)"
        tried = {node.keys[1] for node in self.nodes if node[0] == "stability"}
        for name, chosen in (("imp", {first}), ("search", tried or {first})):
            found[f"{name}_steps"] = e.steps + sum(e.levels * (e.steps - step) for step in chosen)
            found[f"{name}_seconds"] = found[f"{name}_steps"] * each
        return {name: value for name, value in found.items() if value == value}

    def costs(self) -> pd.DataFrame:
        """The same as a table."""
        cost, rows = self.cost(), {}
        names = {"": "these answers", "imp_": f"IMP from step {cost['imp_step']}"}
        names["search_"] = "IMP from each step that was tried here"
        for of, name in names.items():
            steps, hours = cost[f"{of}steps"], cost.get(f"{of}seconds", float("nan")) / 3600
            rows[name] = {"training steps": f"{steps:,.0f}", "hours of one core": f"{hours:.2g}"}
        return pd.DataFrame(rows).T.replace("nan", "–").rename_axis("trainings of")

    def record(self) -> dict:
        """All that was found, for a JSON file."""
        rows = {n: json.loads(t.to_json(orient="records")) for n, t in self.tables.items()}
        about = {"identity": self.e.id, "commit": commit(), "processor": processor()}
        about |= {"experiment": dataclasses.asdict(self.e), "cost": self.cost(), "tables": rows}
        return about | {"answers": [answer._asdict() for answer in self.answers]}

    def page(self) -> str:
        """All answers, as HTML that needs no other file."""
        e, answers = self.e, self.answers
        card = '<div class="{1}">{0}<br><b>{2}</b></div>'
        about = f"{e.network} on {e.dataset}, preset {e.preset}, seed {e.first_seed}"
        file = io.BytesIO()
        barriers(self.tables, e).savefig(file, format="svg", metadata={"Date": None})
        return Template(Path(__file__).with_suffix(".html").read_text()).substitute(
            about=html.escape(about),
            cards="".join(card.format(*map(html.escape, one[:3])) for one in answers),
            figure=base64.b64encode(file.getvalue()).decode(),
            answers="".join(answer._repr_html_() for answer in answers),
            costs=self.costs().to_html(border=0),
        )

    def write(self, folder: Path) -> Path:
        """Write `diagnosis.html` and, beside it, `diagnosis.json`: the path of the page.
        Raises UnmaskError: the folder cannot be written."""
        page, numbers = folder / "diagnosis.html", json.dumps(self.record(), indent=1)
        with reaching("output", folder):
            write_atomically(page, self.page().encode())
            write_atomically(page.with_suffix(".json"), numbers.encode())
        return page


# Its figures


def barriers(found: Tables, e: Experiment) -> Figure:
    """Barriers of all that was tried. Left: of pairs, by the rewind step they start from; grey: the
    bracket. Middle: of the dense solution cut at once, by the weights left; filled: in its
    connected sublevel set; grey: the most that the theory lets go, a range. Right: of levels of
    IMP, to the level before."""
    figure, (axes,) = plots.panels(3, width=4, height=3.2, sharey=True)
    titles = "from which rewind step?", "how much at once?", "IMP: to the level before"
    for ax, title in zip(axes, titles):
        plots.barrier_axis(ax, e)
        ax.set_title(title)
    left, middle, right = axes
    left.set(xlabel="rewind step", ylabel="barrier (points)")
    left.set_xscale("symlog", base=2, linthresh=max(1, e.steps / 128))
    plots.plain_log(left.xaxis)
    names = {NOISE: "noise of SGD", PRUNING: "$d_L$ apart"}
    looks = plots.styles([*names, "projection", "fine-tuned"])
    if "stability" in found:
        for length, rows in found["stability"].sort_values("rewind_step").groupby("length"):
            look = looks[length] | {"label": names[length]}
            left.plot(rows.rewind_step, PERCENT * rows.barrier, **look)
        below, first = bracket(found, e)
        if first is not None:
            left.axvspan(below or 0, first, color="0.85", lw=0, zorder=0)
        left.legend(fontsize="small")
    if "cuts" in found:
        for weights, rows in found["cuts"].groupby("weights"):
            look = looks[weights] | {"ls": "none"}
            inside = rows[in_sublevel_set(rows, e)]
            for some, faces in ((rows, {"mfc": "none", "label": weights}), (inside, {})):
                middle.plot(PERCENT * some.density, PERCENT * some.barrier, **look | faces)
        if "dense_limits" in found:
            left_by_theory = 1 - found["dense_limits"].query("mask == 'magnitude'").ratio
            span = PERCENT * left_by_theory.min(), PERCENT * left_by_theory.max()
            middle.axvspan(*span, color="0.85", lw=0, zorder=0, label="theory")
        plots.density_axis(middle, found["cuts"].density)
        middle.legend(fontsize="small")
    if "imp_levels" in found:
        rows = found["imp_levels"]
        labels = "step " + rows.rewind_step.astype(str) + "\nlevel " + rows.level.astype(str)
        right.bar(labels, PERCENT * rows.barrier, width=0.5, color="0.5")
    return figure


def _dotted(rows: pd.DataFrame, x: str, panels: dict, labels: tuple[str, str], e: Experiment):
    """A panel for each title, of values of the rows; by `x`, a dot for each seed, one beside the
    other, and filled, or hollow, as the rows say. `labels`: what that means."""
    figure, (axes,) = plots.panels(len(panels), height=3.4)
    places = {name: at for at, name in enumerate(rows[x].unique())}
    at = rows[x].map(places) + 0.4 * ((rows.seed - e.first_seed) / max(1, e.seeds - 1) - 0.5)
    for ax, (title, values) in zip(axes, panels.items()):
        for label, (fills, look) in zip(labels, plots.styles([True, False]).items()):
            look |= {"ls": "none", "label": label} | ({} if fills else {"mfc": "none"})
            here = rows.filled == fills
            ax.plot(at[here], values[here], **look)
        ax.set_xticks(range(len(places)), places, fontsize="small")
        ax.set(title=title, xlabel=x.replace("_", " "))
    plots.legend_above(figure, axes[0])
    return figure, axes


def told(found: Tables, e: Experiment) -> Figure:
    """Barriers of pairs by the rewind step, at the densest level that was probed, a dot for each
    seed: filled where IMP matches. Left: by the noise of SGD alone; right: apart by d_L."""
    pairs = pairs_and_imp(found, e).query("level == @e.probe_levels[0]")
    height, names = PERCENT * pairs.barrier, {"noise of SGD": NOISE, "$d_L$ apart": PRUNING}
    panels = {title: height.where(pairs.length == length) for title, length in names.items()}
    labels = "IMP matches", "IMP does not match"
    figure, axes = _dotted(pairs.assign(filled=pairs.matching), "rewind_step", panels, labels, e)
    for ax in axes:
        plots.barrier_axis(ax, e)
    axes[0].set_ylabel("barrier (points)")
    return figure


def schedules_compared(found: Tables, e: Experiment) -> Figure:
    """Training steps until there is a network as sparse as level `goal` that matches, a dot for
    each seed: hollow where the chain missed, and pruning began again. Bars: the chain alone."""
    words = {stride: name.replace(" ", "\n", 1) for stride, name in ways(e).items()}
    rows = at_goal(found, e)
    rows = rows.assign(pruned=rows.stride.map(words), filled=rows.matching)
    rows = pd.concat([rows[rows.stride == stride] for stride in words])
    panels = {"training steps until there is a ticket (thousands)": rows.total / 1000}
    figure, (ax,) = _dotted(rows, "pruned", panels, ("the chain matches", "it misses"), e)
    alone = rows.groupby("pruned", sort=False).cost.mean() / 1000
    ax.bar(range(len(alone)), alone, color="0.85", zorder=0)
    return figure


def last_signs(found: Tables, e: Experiment) -> Figure:
    """What levels that match show, from the last rewind step, a dot for each seed: hollow where the
    next level does not match."""
    rows = at_latest(last_matches(found, e), e).sort_values("level")
    rows = rows.assign(filled=~rows.ends)
    panels = {words: PERCENT * rows[sign] for sign, words in (SIGNS | OWN).items()}
    figure, axes = _dotted(rows, "level", panels, ("the next matches", "it does not"), e)
    axes[0].set_ylabel("points")
    return figure
