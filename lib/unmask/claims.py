"""Claims: from measured tables to verdicts, by thresholds that the preset fixed beforehand.

A verdict is "holds", "fails", or "not decidable" where fewer than `CASES_NEEDED` cases could be looked at (a case is a
pair of networks; a claim about seeds needs one). Nothing here chooses a threshold: shares of agreeing cases are held
against `experiment.agreement`.
"""

from __future__ import annotations

import html

import pandas as pd

from .barriers import METRICS, barrier
from .experiments import Experiment
from .measure import INTERPOLATED

CASES_NEEDED = 5
COLUMNS = ("finding", "claim", "statistic", "rule", "cases", "seeds", "verdict")


def with_matching(levels: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The level table with columns `dense_error` (level 0 of the same seed), `excess` (error above it) and `matching`.

    A level is epsilon-matching if its test error is at most the dense error plus epsilon.
    """
    dense = levels[levels.level == 0].groupby("seed").test_error.first()
    excess = levels.test_error - levels.seed.map(dense)
    return levels.assign(dense_error=levels.seed.map(dense), excess=excess, matching=excess <= experiment.epsilon)


def successive(levels: pd.DataFrame, segments: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """One row for each pair of successive levels: is the sparser one matching, and are the two connected?

    Columns: seed, rewind_step, level, next_level, barrier (test error, whole segment), train_error_barrier,
    train_loss_barrier (nats), connected (by `barrier`), and of `next_level`: density, excess, matching.
    """
    keys = ["seed", "rewind_step", "level", "next_level"]
    interpolated = segments[segments.norms == INTERPOLATED]
    paths = interpolated.groupby(keys)[["t", *METRICS]]
    barriers = pd.DataFrame({name: paths.apply(barrier, metric) for name, metric in (
        ("barrier", "test_error"), ("train_error_barrier", "train_error"), ("train_loss_barrier", "train_loss"))})
    barriers = barriers.reset_index()
    reached = with_matching(levels, experiment)[["seed", "rewind_step", "level", "density", "excess", "matching"]]
    table = barriers.merge(reached.rename(columns={"level": "next_level"}), on=["seed", "rewind_step", "next_level"])
    return table.assign(connected=table.barrier < experiment.lmc_threshold)


def at_higher_sparsity(pairs: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The pairs of which the paper's claim speaks: the sparser level keeps at most `higher_sparsity` of the weights."""
    return pairs[pairs.density <= experiment.higher_sparsity]


def contingency(pairs: pd.DataFrame) -> pd.DataFrame:
    """Counts of successive pairs, connected or not (columns), by rewind step and next level matching or not (rows)."""
    rows = []
    for step in (*sorted(pairs.rewind_step.unique()), "all"):
        chosen = pairs if step == "all" else pairs[pairs.rewind_step == step]
        for matching, words in ((True, "matching"), (False, "not matching")):
            connected = chosen[chosen.matching == matching].connected
            rows.append({"rewound to step": step, "next level is": words, "connected": int(connected.sum()),
                         "not connected": int((~connected).sum())})
    return pd.DataFrame(rows).set_index(["rewound to step", "next level is"])


def barriers_by_metric(pairs: pd.DataFrame) -> pd.DataFrame:
    """Mean barrier between successive levels by rewind step and matching, for test error, train error, train loss."""
    means = pairs.assign(**{"next level is": pairs.matching.map({True: "matching", False: "not matching"}),
                            "test error (points)": 100 * pairs.barrier,
                            "train error (points)": 100 * pairs.train_error_barrier,
                            "train loss (nats)": pairs.train_loss_barrier})
    means = means.rename(columns={"rewind_step": "rewound to step"}).groupby(["rewound to step", "next level is"])
    return means[["test error (points)", "train error (points)", "train loss (nats)"]].mean().round(2)


def exceptions(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs for which connected and matching disagree, by name."""
    odd = pairs[pairs.connected != pairs.matching]
    odd = odd.assign(which=odd.matching.map({True: "matching, not connected", False: "connected, not matching"}),
                     excess=(100 * odd.excess).round(2), barrier=(100 * odd.barrier).round(2))
    return odd[["which", "seed", "rewind_step", "level", "next_level", "excess", "barrier"]].reset_index(drop=True)


def all_pairs(levels: pd.DataFrame, pairs: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Every two levels of each chain, with columns `connected` (midpoint barrier) and `both_matching`."""
    matching = with_matching(levels, experiment).set_index(["seed", "rewind_step", "level"]).matching
    chain = [pairs.seed, pairs.rewind_step]
    both = [matching.reindex(pd.MultiIndex.from_arrays([*chain, pairs[end]])).to_numpy() for end in ("level", "other")]
    return pairs.assign(connected=pairs.barrier < experiment.lmc_threshold, both_matching=both[0] & both[1])


def against_imp(levels: pd.DataFrame, controls: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """IMP and its controls where the question is interesting: sparse levels at which IMP matches.

    Sparse: density at most `experiment.ticket_density`. Adds `matching` (against the dense error), and `in_lcs_set`:
    in the linearly connected sublevel set of the IMP solution one level before, that is, no more than epsilon worse
    and no barrier between the two.
    """
    e = experiment
    dense = levels[levels.level == 0].groupby("seed").test_error.first()
    table = controls.assign(matching=controls.test_error <= controls.seed.map(dense) + e.epsilon)
    table["in_lcs_set"] = (table.test_error <= table.previous_error + e.epsilon) & (table.barrier < e.lmc_threshold)
    imp = table[(table.kind == "imp") & table.matching & (table.density <= e.ticket_density)][["seed", "level"]]
    return table.merge(imp, on=["seed", "level"])


def error_table(levels: pd.DataFrame) -> pd.DataFrame:
    """Test error in percent by level (rows) and rewind step (columns), as "mean (standard deviation over seeds)"."""
    def cell(errors):
        spread = f" ({100 * errors.std():.2f})" if len(errors) > 1 else ""
        return f"{100 * errors.mean():.2f}{spread}"

    table = levels.assign(weights=(100 * levels.density).round(1)).rename(columns={"rewind_step": "rewound to step"})
    return table.groupby(["level", "weights", "rewound to step"]).test_error.apply(cell).unstack()


def tickets_in_numbers(levels: pd.DataFrame, experiment: Experiment) -> dict[str, float]:
    """The numbers that the prose of Finding 0 quotes, by name; shares in percent, NaN where there is none."""
    e = experiment
    dense = 100 * levels[levels.level == 0].groupby("seed").test_error.first()
    mean = with_matching(levels, e).groupby(["rewind_step", "level"])[["excess", "density"]].mean()
    late, early = mean.loc[e.rewind_steps[-1]], mean.loc[e.rewind_steps[0]]
    lost = late.index[late.excess > e.epsilon]
    kept = late[late.index < lost.min()] if len(lost) else late
    early_lost = early[early.excess > e.epsilon]
    return _common_numbers(e) | {
        "dense_error": float(dense.mean()), "dense_spread": float(dense.std()),
        "ticket_density": float(100 * kept.density.min()),
        "early_step": float(e.rewind_steps[0]), "early_lost_density": float(100 * early_lost.density.max())}


def connectivity_in_numbers(levels: pd.DataFrame, segments: pd.DataFrame, pairs: pd.DataFrame, experiment: Experiment,
                            ) -> dict[str, float]:
    """The numbers that the prose of Finding 1 quotes, by name; errors and shares in percent."""
    e = experiment
    judged = successive(levels, segments, e)
    middle = segments[(segments.norms == INTERPOLATED) & (segments.t == 0.5)]
    keys = ["seed", "rewind_step", "level"]
    ends = segments[(segments.norms == INTERPOLATED) & segments.t.isin((0.0, 1.0))].groupby(keys).test_error.mean()
    middle = middle[[*keys, "test_error"]].merge(judged, on=keys).merge(ends.rename("end_error"), on=keys)
    first, late = (middle[middle.rewind_step == e.rewind_steps[end]] for end in (0, -1))
    sparse = at_higher_sparsity(judged, e)
    return _common_numbers(e) | {
        "mid_first": float(100 * first.test_error.mean()),
        "mid_late": float(100 * late[late.matching].test_error.mean()),
        "ends_late": float(100 * late[late.matching].end_error.mean()),
        "agreeing": float(100 * (sparse.connected == sparse.matching).mean()),
        "compared": float(len(sparse)),
        "agreeing_everywhere": float(100 * (judged.connected == judged.matching).mean())}


def _common_numbers(e: Experiment) -> dict[str, float]:
    return {"seeds": float(e.seeds), "steps": float(e.steps), "late_step": float(e.rewind_steps[-1]),
            "epsilon": 100 * e.epsilon, "lmc_threshold": 100 * e.lmc_threshold, "agreement": 100 * e.agreement,
            "higher_sparsity": 100 * e.higher_sparsity}


def winning_tickets(levels: pd.DataFrame, controls: pd.DataFrame, experiment: Experiment) -> Verdicts:
    """Finding 0: winning tickets exist."""
    e = experiment
    judged = with_matching(levels, e)
    pruned = judged[judged.level > 0]
    late, sparse = e.rewind_steps[-1], pruned[pruned.density <= e.ticket_density]
    found = sparse[sparse.rewind_step == late].groupby("seed").matching.any()
    rows = [_share(e, "0", f"rewound to step {late}, IMP finds a matching network that keeps at most "
                           f"{e.ticket_density:.0%} of the weights (share of seeds)", found, needed=1)]
    reached = sparse[(sparse.rewind_step == late) & sparse.matching][["seed", "level"]]
    for step in e.rewind_steps[:-1]:
        rows.append(_share(e, "0", f"where it does, the network rewound to step {step} does not match",
                           ~sparse[sparse.rewind_step == step].merge(reached).matching))
    compared = against_imp(levels, controls, e)
    for kind, words in (("random", "random masks"), ("shuffled", "layer-wise shuffled masks"),
                        ("reinitialized", "IMP masks on new weights"), ("one-shot", "one-shot masks")):
        rows.append(_share(e, "0", f"where IMP matches with at most {e.ticket_density:.0%} of the weights, {words} "
                                   "do not", ~compared[compared.kind == kind].matching))
    return Verdicts(rows)


def linear_connectivity(levels: pd.DataFrame, segments: pd.DataFrame, pairs: pd.DataFrame, controls: pd.DataFrame,
                        experiment: Experiment) -> Verdicts:
    """Finding 1: successive levels are linearly connected if and only if they are matching."""
    e = experiment
    steps = successive(levels, segments, e)
    sparse = at_higher_sparsity(steps, e)
    linked = all_pairs(levels, pairs, e)
    late = e.rewind_steps[-1]
    where = f"(at most {e.higher_sparsity:.0%} of the weights)"
    rows = [
        _share(e, "1", f"at higher sparsities {where}, successive levels are connected if and only if the sparser one "
                       "is matching", sparse.connected == sparse.matching),
        _share(e, "1", f"at higher sparsities {where}, a matching level is connected to the one before",
               sparse[sparse.matching].connected),
        _share(e, "1", f"at higher sparsities {where}, a level connected to the one before is matching",
               sparse[sparse.connected].matching)]
    if e.rewind_steps[0] == 0:
        rows.append(_share(e, "1", "rewound to step 0, no level is connected to the next",
                           ~steps[steps.rewind_step == 0].connected))
    rows.append(_share(e, "1", f"rewound to step {late}, all matching levels form one piece: any two are connected",
                       linked[(linked.rewind_step == late) & linked.both_matching].connected))
    compared = against_imp(levels, controls, e)
    rows.append(_share(e, "1", "IMP's axial subspace meets the linearly connected sublevel set of the level before",
                       compared[compared.kind == "imp"].in_lcs_set))
    for kind, words in (("random", "random mask"), ("shuffled", "layer-wise shuffled mask")):
        rows.append(_share(e, "1", f"training within a {words} does not find that set",
                           ~compared[compared.kind == kind].in_lcs_set))
    return Verdicts(rows)


def all_verdicts(tables: dict[str, pd.DataFrame], experiment: Experiment) -> Verdicts:
    """Every verdict of every finding, from all tables of one experiment by name."""
    levels, segments, pairs, controls = (tables[name] for name in ("levels", "segments", "pairs", "controls"))
    return Verdicts(winning_tickets(levels, controls, experiment).rows
                    + linear_connectivity(levels, segments, pairs, controls, experiment).rows)


def _share(experiment: Experiment, finding: str, claim: str, agreeing: pd.Series, needed: int = CASES_NEEDED) -> dict:
    """One claim about many cases: it holds if at least `experiment.agreement` of them agree."""
    cases = len(agreeing)
    share = float(agreeing.mean()) if cases else float("nan")
    verdict = "not decidable" if cases < needed else "holds" if share >= experiment.agreement else "fails"
    return dict(zip(COLUMNS, (finding, claim, share, f"at least {experiment.agreement:.0%}", cases, experiment.seeds,
                              verdict)))


class Verdicts:
    """Verdicts to show at the end of a page: `rows`, a dict for each claim, or as a `table` with `COLUMNS`."""

    def __init__(self, rows: list[dict]):
        self.rows, self.table = rows, pd.DataFrame(rows, columns=list(COLUMNS))

    def _repr_html_(self) -> str:
        # Statistic and number of cases carry a class: they may differ in the last digits from machine to machine,
        # and the comparison of committed with fresh verdicts leaves them out.
        names = ("finding", "claim", "measured", "rule", "cases", "seeds", "verdict")
        head = f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
        body = "\n".join(
            f'<tr><td>{row.finding}</td><td>{html.escape(row.claim)}</td>'
            f'<td class="statistic">{_percent(row.statistic)}</td><td>{row.rule}</td>'
            f'<td class="statistic">{row.cases}</td><td>{row.seeds}</td>'
            f'<td class="verdict"><strong>{row.verdict}</strong></td></tr>' for row in self.table.itertuples())
        return f'<table class="table verdicts">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>'

    def __repr__(self) -> str:
        return "\n".join(f"{row.verdict:>13}: {row.claim}" for row in self.table.itertuples())


def _percent(share: float) -> str:
    return "no case" if share != share else f"{share:.1%}"
