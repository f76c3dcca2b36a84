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
from .measure import INTERPOLATED, REESTIMATED

CASES_NEEDED = 5
_ROUNDING = 1e-9  # errors are counts over counts: what is equal on paper differs by this at most
COLUMNS = ("finding", "claim", "statistic", "rule", "cases", "seeds", "verdict", "figure")
# By finding: the page that shows it, and what the paper reports.
PAGES = {"0": "01_winning_tickets", "1": "02_linear_connectivity", "2": "03_sgd_robustness", "3": "04_pruning_limit",
         "4": "05_role_of_retraining", "picture": "06_error_landscape"}
REPORTED = {
    "0": "With a late enough rewind step, IMP finds matching networks that no simpler method finds.",
    "1": "At higher sparsities, successive levels are linearly connected if and only if they are matching.",
    "2": "Where IMP finds matching networks, SGD is robust to perturbations of the rewind point as long as those that "
         "pruning makes.",
    "3": "A theory of flatness predicts how much random pruning can remove at once; magnitude pruning does somewhat "
         "better, along flatter directions.",
    "4": "Pruning opens a gap at zero and retraining fills it with new small weights, so that the next cut hurts less.",
    "picture": "The next axial subspace meets the valley of the solution before where levels match; elsewhere "
               "retraining ends in another valley.",
}


def with_matching(levels: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The level table with columns `dense_error` (level 0 of the same seed), `excess` (error above it) and `matching`.

    A level is epsilon-matching if its test error is at most the dense error plus epsilon.
    """
    dense = levels.seed.map(dense_errors(levels))
    return levels.assign(dense_error=dense, excess=levels.test_error - dense, matching=is_matching(levels, levels, experiment))


def dense_errors(levels: pd.DataFrame) -> pd.Series:
    """Test error of level 0, by seed."""
    return levels[levels.level == 0].groupby("seed").test_error.first()


def is_matching(networks: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> pd.Series:
    """Is each network (a row with `seed` and `test_error`) epsilon-matching: at most epsilon worse than the dense one?"""
    return is_at_most(networks.test_error, networks.seed.map(dense_errors(levels)) + experiment.epsilon)


def is_at_most(values: pd.Series, limits: pd.Series | float) -> pd.Series:
    """`values <= limits`, where rounding does not decide between equals."""
    return values <= limits + _ROUNDING


def is_connected(barriers: pd.Series, experiment: Experiment) -> pd.Series:
    """Linearly mode connected: is the barrier below the threshold?"""
    return barriers < experiment.lmc_threshold - _ROUNDING


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
    return _with_next_level(barriers.reset_index(), levels, experiment)


def midpoint_barriers(segments: pd.DataFrame) -> pd.DataFrame:
    """Barriers of test error by the ends and the midpoint alone, one row for each pair of successive levels: columns
    "interpolated" and "re-estimated", the batch-norm statistics at the midpoint."""
    ends = segments[segments.t.isin((0.0, 0.5, 1.0))]
    keys = ["seed", "rewind_step", "level", "next_level", "norms"]
    return ends.groupby(keys)[["t", "test_error"]].apply(barrier).unstack()


def _with_next_level(pairs: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Pairs of successive levels with `density`, `excess` and `matching` of `next_level`, and `connected` (by `barrier`)."""
    reached = with_matching(levels, experiment)[["seed", "rewind_step", "level", "density", "excess", "matching"]]
    table = pairs.merge(reached.rename(columns={"level": "next_level"}), on=["seed", "rewind_step", "next_level"])
    return table.assign(connected=is_connected(table.barrier, experiment))


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
    return pairs.assign(connected=is_connected(pairs.barrier, experiment), both_matching=both[0] & both[1])


def against_imp(levels: pd.DataFrame, controls: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """IMP and its controls where the question is interesting: sparse levels at which IMP matches.

    Sparse: density at most `experiment.ticket_density`. Adds `matching` (against the dense error), and `in_lcs_set`:
    in the linearly connected sublevel set of the IMP solution one level before, that is, no more than epsilon worse
    and no barrier between the two.
    """
    e = experiment
    table = controls.assign(matching=is_matching(controls, levels, e))
    table["in_lcs_set"] = is_at_most(table.test_error, table.previous_error + e.epsilon) & is_connected(table.barrier, e)
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
    dense = 100 * dense_errors(levels)
    mean = with_matching(levels, e).groupby(["rewind_step", "level"])[["excess", "density"]].mean()
    late, early = mean.loc[e.rewind_steps[-1]], mean.loc[e.rewind_steps[0]]
    lost = late.index[~is_at_most(late.excess, e.epsilon)]
    kept = late[late.index < lost.min()] if len(lost) else late
    early_lost = early[~is_at_most(early.excess, e.epsilon)]
    return _common_numbers(e) | {
        "dense_error": float(dense.mean()), "dense_spread": float(dense.std()),
        "ticket_density": float(100 * kept.density.min()),
        "early_step": float(e.rewind_steps[0]), "early_lost_density": float(100 * early_lost.density.max())}


def connectivity_in_numbers(levels: pd.DataFrame, segments: pd.DataFrame, experiment: Experiment) -> dict[str, float]:
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
        "pairs": float(len(judged)), "connected": float(judged.connected.sum()),
        "not_matching": float((~judged.matching).sum()), "largest_barrier": float(100 * judged.barrier.max()),
        "largest_reestimated": float(100 * midpoint_barriers(segments)[REESTIMATED].max()),
        "agreeing": float(100 * (sparse.connected == sparse.matching).mean()),
        "compared": float(len(sparse)),
        "agreeing_everywhere": float(100 * (judged.connected == judged.matching).mean())}


def _common_numbers(e: Experiment) -> dict[str, float]:
    return {"seeds": float(e.seeds), "steps": float(e.steps), "late_step": float(e.rewind_steps[-1]),
            "epsilon": 100 * e.epsilon, "lmc_threshold": 100 * e.lmc_threshold, "agreement": 100 * e.agreement,
            "higher_sparsity": 100 * e.higher_sparsity}


def winning_tickets(levels: pd.DataFrame, controls: pd.DataFrame | None, experiment: Experiment) -> Verdicts:
    """Finding 0: winning tickets exist. Without `controls`, only what IMP's chains tell."""
    e = experiment
    judged = with_matching(levels, e)
    pruned = judged[judged.level > 0]
    late, sparse = e.rewind_steps[-1], pruned[pruned.density <= e.ticket_density]
    found = sparse[sparse.rewind_step == late].groupby("seed").matching.any()
    rows = [_share(e, "0", "fig-errors", f"from the last rewind step, IMP finds a matching network that keeps at most "
                           f"{e.ticket_density:.0%} of the weights (share of seeds)", found, needed=1)]
    reached = sparse[(sparse.rewind_step == late) & sparse.matching][["seed", "level"]]
    for step in e.rewind_steps[:-1]:
        rows.append(_share(e, "0", "fig-errors", f"where it does, the network rewound to step {step} does not match",
                           ~sparse[sparse.rewind_step == step].merge(reached).matching))
    if controls is None:
        return Verdicts(rows)
    compared = against_imp(levels, controls, e)
    for kind, words in (("random", "random masks"), ("shuffled", "layer-wise shuffled masks"),
                        ("reinitialized", "IMP masks on new weights"), ("one-shot", "one-shot masks")):
        rows.append(_share(e, "0", "fig-controls",
                           f"where IMP matches with at most {e.ticket_density:.0%} of the weights, {words} "
                           "do not", ~compared[compared.kind == kind].matching))
    return Verdicts(rows)


def linear_connectivity(levels: pd.DataFrame, segments: pd.DataFrame, pairs: pd.DataFrame,
                        controls: pd.DataFrame | None, experiment: Experiment) -> Verdicts:
    """Finding 1: successive levels are linearly connected if and only if they are matching. Without `controls`, only
    what IMP's chains tell."""
    e = experiment
    steps = successive(levels, segments, e)
    sparse = at_higher_sparsity(steps, e)
    linked = all_pairs(levels, pairs, e)
    late = e.rewind_steps[-1]
    where = f"(at most {e.higher_sparsity:.0%} of the weights)"
    rows = [
        _share(e, "1", "fig-iff",
               f"at higher sparsities {where}, successive levels are connected if and only if the sparser one "
               "is matching", sparse.connected == sparse.matching),
        _share(e, "1", "fig-iff", f"at higher sparsities {where}, a matching level is connected to the one before",
               sparse[sparse.matching].connected),
        _share(e, "1", "fig-iff", f"at higher sparsities {where}, a level connected to the one before is matching",
               sparse[sparse.connected].matching)]
    if e.rewind_steps[0] == 0:
        rows.append(_share(e, "1", "fig-zigzag", "rewound to step 0, no level is connected to the next",
                           ~steps[steps.rewind_step == 0].connected))
    rows.append(_share(e, "1", "fig-pairs",
                       "from the last rewind step, all matching levels form one piece: any two are connected",
                       linked[(linked.rewind_step == late) & linked.both_matching].connected))
    if controls is None:
        return Verdicts(rows)
    compared = against_imp(levels, controls, e)
    where = f"where IMP matches with at most {e.ticket_density:.0%} of the weights"
    rows.append(_share(e, "1", "fig-mask",
                       f"{where}, its axial subspace meets the linearly connected sublevel set of the level before",
                       compared[compared.kind == "imp"].in_lcs_set))
    for kind, words in (("random", "random mask"), ("shuffled", "layer-wise shuffled mask")):
        rows.append(_share(e, "1", "fig-mask", f"{where}, training within a {words} does not find that set",
                           ~compared[compared.kind == kind].in_lcs_set))
    return Verdicts(rows)


def all_verdicts(tables: dict[str, pd.DataFrame], experiment: Experiment) -> Verdicts:
    """Every verdict of every finding whose tables are there, from the tables of one experiment by name."""
    findings = {
        winning_tickets: ("levels", "controls"),
        linear_connectivity: ("levels", "segments", "pairs", "controls"),
        sgd_robustness: ("levels", "perturbations"),
        pruning_limit: ("levels", "predictions", "displacements", "prunings"),
        role_of_retraining: ("levels", "gaps", "next_cuts", "retraining_methods"),
        error_landscape: ("landscape", "levels")}
    optional = {"controls", "retraining_methods"}
    return Verdicts([row for finding, names in findings.items() if set(names) - optional <= set(tables)
                     for row in finding(*(tables.get(name) for name in names), experiment).rows])


def _share(experiment: Experiment, finding: str, figure: str, claim: str, agreeing: pd.Series,
           needed: int = CASES_NEEDED) -> dict:
    """One claim about many cases: it holds if at least `experiment.agreement` of them agree. `figure` shows them."""
    cases = len(agreeing)
    share = float(agreeing.mean()) if cases else float("nan")
    verdict = "not decidable" if cases < needed else "holds" if share >= experiment.agreement else "fails"
    return dict(zip(COLUMNS, (finding, claim, share, f"at least {experiment.agreement:.0%}", cases, experiment.seeds,
                              verdict, figure)))


class Verdicts:
    """Verdicts to show at the end of a page: `rows`, a dict for each claim, or as a `table` with `COLUMNS`."""

    def __init__(self, rows: list[dict]):
        self.rows, self.table = rows, pd.DataFrame(rows, columns=list(COLUMNS))

    def _repr_html_(self) -> str:
        # What may differ from machine to machine carries a class of its own: the comparison of committed with fresh
        # verdicts allows for chance there, and for nothing elsewhere.
        names = ("finding", "claim", "agreeing", "cases", "seeds", "verdict")
        rows = [f"<td>{row.finding}</td><td>{_link(row, '')}</td>{_measured(row)}<td>{row.seeds}</td>"
                f'<td class="verdict"><strong>{row.verdict}</strong></td>' for row in self.table.itertuples()]
        return _html(names, rows)

    def __repr__(self) -> str:
        return "\n".join(f"{row.verdict:>13}: {row.claim}" for row in self.table.itertuples())


class Overview:
    """The verdicts of several presets side by side, beside what the paper reports; a claim leads to its figure.

    Args:
        verdicts: by the preset's name.
        pages: the folder of the pages with the figures, seen from the page that shows this.
    """

    def __init__(self, verdicts: dict[str, Verdicts], pages: str = "../notebooks/"):
        self.presets, self.pages = list(verdicts), pages
        parts = [shown.table.assign(preset=preset) for preset, shown in verdicts.items()]
        self.table = pd.concat(parts, ignore_index=True)

    def _repr_html_(self) -> str:
        rows = []
        for finding, reported in REPORTED.items():
            here = self.table[self.table.finding == finding]
            if len(here):
                name = f"Finding {finding}" if finding.isdigit() else f"The {finding}"
                rows.append(f'<th colspan="{len(self.presets) + 1}">{name}. The paper reports: '
                            f"<em>{html.escape(reported)}</em></th>")
            for claim, group in here.groupby("claim", sort=False):
                by_preset = group.set_index("preset")
                cells = [self._cell(by_preset.loc[preset]) if preset in by_preset.index else "<td>–</td>"
                         for preset in self.presets]
                rows.append(f"<td>{_link(group.iloc[0], self.pages)}</td>{''.join(cells)}")
        # names of presets may be broken after each _, or the columns would leave no room for the claims
        return _html(("claim", *(preset.replace("_", "_<wbr>") for preset in self.presets)), rows, "verdicts overview")

    @staticmethod
    def _cell(row) -> str:
        share = "no case" if row.cases == 0 else f"{row.statistic:.1%} of {row.cases}"
        return (f'<td><span class="verdict"><strong>{row.verdict}</strong></span><br>'
                f'<span class="statistic">{share}</span></td>')

    def __repr__(self) -> str:
        return repr(self.table.set_index(["claim", "preset"]).verdict.unstack())


def _html(names: tuple[str, ...], rows: list[str], kind: str = "verdicts") -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="table {kind}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def _link(row, pages: str) -> str:
    page = f"{pages}{PAGES[row.finding]}.html" if pages else ""
    return f'<a href="{page}#{row.figure}">{html.escape(row.claim)}</a>'


def _measured(row) -> str:
    return (f'<td class="statistic">{"no case" if row.cases == 0 else f"{row.statistic:.1%}"}</td>'
            f'<td class="statistic">{row.cases}</td>')


# Finding 2

def at_step_length(levels: pd.DataFrame, perturbations: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """One row for each seed, rewind step and probed level: what perturbations of length d_L do, and whether IMP works.

    Columns: seed, rewind_step, level, barriers and whether they count as connected for pairs with no perturbation
    (noise_barrier, noise_connected), along random directions (random_...) and along IMP's (imp_...), step_length,
    start_norm, matching (is IMP's next level), density (of the next level).
    """
    keys = ["seed", "rewind_step", "level"]
    next_level = with_matching(levels, experiment)[[*keys, "density", "matching"]]
    table = next_level.assign(level=next_level.level - 1)
    for name, kind, length in (("noise", "random", 0), ("random", "random", 1), ("imp", "imp", 1)):
        pairs = perturbations[(perturbations.kind == kind) & (perturbations.length == length)]
        pairs = pairs.rename(columns={"barrier": f"{name}_barrier"})
        also = ["step_length", "start_norm"] if name == "noise" else []
        table = table.merge(pairs[[*keys, f"{name}_barrier", *also]], on=keys)
        table[f"{name}_connected"] = is_connected(table[f"{name}_barrier"], experiment)
    return table


def robustness_table(levels: pd.DataFrame, perturbations: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Connected at d_L, against whether IMP matches: in how many seeds, and the mean barriers in percentage points."""
    table = at_step_length(levels, perturbations, experiment)
    table["d_L"] = table.step_length / table.start_norm
    rows = table.groupby(["level", "rewind_step"])
    cells = pd.DataFrame({
        "d_L (% of the norm)": (100 * rows.d_L.mean()).round(1),
        "barrier at 0": (100 * rows.noise_barrier.mean()).round(2),
        "at d_L": (100 * rows.random_barrier.mean()).round(2),
        "IMP's direction": (100 * rows.imp_barrier.mean()).round(2),
        "connected at d_L (seeds)": rows.random_connected.sum(),
        "IMP's next level matches (seeds)": rows.matching.sum(),
        "seeds": rows.size()})
    return cells.rename_axis(["level", "rewound to step"])


def robustness_in_numbers(levels: pd.DataFrame, perturbations: pd.DataFrame, experiment: Experiment,
                          ) -> dict[str, float]:
    """The numbers that the prose of Finding 2 quotes, by name; barriers in percent."""
    e, table = experiment, at_step_length(levels, perturbations, experiment)
    late = table.rewind_step == e.rewind_steps[-1]
    return _common_numbers(e) | {
        "cases": float(len(table)),
        "noise_connected": float(table.noise_connected.sum()),
        "step_connected": float(table.random_connected.sum()),
        "noise_only": float((table.noise_connected & ~table.random_connected).sum()),
        "matching": float(table.matching.sum()),
        "stable_not_matching": float((table.random_connected & ~table.matching).sum()),
        "late_barrier": float(100 * table[late].random_barrier.mean()),
        "early_barrier": float(100 * table[~late].random_barrier.mean())}


def sgd_robustness(levels: pd.DataFrame, perturbations: pd.DataFrame, experiment: Experiment) -> Verdicts:
    """Finding 2: SGD is robust to perturbations as long as those that pruning makes, where IMP works."""
    e, table = experiment, at_step_length(levels, perturbations, experiment)
    return Verdicts([
        _share(e, "2", "fig-perturbed",
               "networks each moved by d_L along random directions train to connected ones if and only if "
               "IMP's next level is matching", table.random_connected == table.matching),
        _share(e, "2", "fig-perturbed",
               "where IMP's next level is matching, they do", table[table.matching].random_connected),
        _share(e, "2", "fig-perturbed", "where it is not, they do not", ~table[~table.matching].random_connected),
        _share(e, "2", "fig-perturbed",
               "stability at d_L is stronger than stability to the noise of SGD: where there is the one, there "
                       "is the other", table[table.random_connected].noise_connected),
        _share(e, "2", "fig-perturbed",
               "a network moved by d_L along IMP's direction trains to one connected to that of the unmoved if and only if "
               "IMP's next level is matching", table.imp_connected == table.matching)])


# Finding 3

def measured_limits(levels: pd.DataFrame, prunings: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The measured maximum pruning ratio: the largest of the sweep that still matches and is connected.

    Columns: seed, level, mask, weights, ratio (0 if there is none), above (the next ratio of the sweep, or 1).
    """
    e, keys = experiment, ["seed", "level", "mask", "weights"]
    passed = is_matching(prunings, levels, e) & is_connected(prunings.barrier, e)
    table = prunings.assign(ratio=prunings.ratio.where(passed, 0.0)).groupby(keys).ratio.max().reset_index()
    following = dict(zip((0.0, *e.prune_ratios), (*e.prune_ratios, 1.0)))
    return table.assign(above=table.ratio.map(following))


def best_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Of each prediction the one by the best spectrum there is; see `best_of`."""
    return best_of(predictions, ["seed", "level", "criterion"])


def best_of(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """For each combination of `keys`, the rows from the exact Hessian, else those by most steps of Lanczos."""
    rank = table.steps.where(table.steps > 0, table.steps.max() + 1)
    return table[rank == rank.groupby([table[key] for key in keys]).transform("max")]


def predicted_and_measured(levels: pd.DataFrame, predictions: pd.DataFrame, prunings: pd.DataFrame,
                           experiment: Experiment) -> pd.DataFrame:
    """Each prediction at the preset's loss height beside the measured maximum for retrained networks.

    Columns: seed, level, mask, criterion, predicted, low and high (at half and twice the height), ratio, above (see
    `measured_limits`), miss (distance of the prediction from where the maximum must lie, between `ratio` and `above`).
    """
    keys = ["seed", "level", "mask", "criterion"]
    heights = best_predictions(predictions).pivot(index=keys, columns="height", values="ratio")
    heights = heights.rename(columns={0.5: "low", 1.0: "predicted", 2.0: "high"}).reset_index()
    measured = measured_limits(levels, prunings, experiment)
    table = heights.merge(measured[measured.weights == "retrained"], on=["seed", "level", "mask"])
    miss = pd.concat([table.ratio - table.predicted, table.predicted - table.above], axis=1).max(axis=1).clip(lower=0)
    return table.assign(miss=miss).rename_axis(columns=None)


def limits_table(levels: pd.DataFrame, predictions: pd.DataFrame, prunings: pd.DataFrame, experiment: Experiment,
                 ) -> pd.DataFrame:
    """Maximum pruning ratios in percent, means over the seeds that have one: predicted (in brackets: at half and twice
    the loss height) and measured."""
    table = predicted_and_measured(levels, predictions, prunings, experiment)
    rows = table.groupby(["level", "mask", "criterion"])[["low", "predicted", "high"]].mean() * 100
    words = rows.apply(lambda row: f"{row.predicted:.1f} ({row.low:.1f} to {row.high:.1f})", axis=1).unstack()
    found = measured_limits(levels, prunings, experiment).groupby(["level", "mask", "weights"]).ratio.mean() * 100
    found = found.map("{:.1f}".format).unstack().rename(columns="measured, {}".format)
    return words.join(found).fillna("-")


def spectra_table(curvatures: pd.DataFrame) -> pd.DataFrame:
    """Spectra in numbers, one row for each level, seed and method."""
    method = curvatures.steps.map(lambda steps: f"Lanczos, {steps} steps" if steps else "exact")
    trace = [f"{row.trace:.1f}" + (f" ± {row.trace_error:.1f}" if row.steps else "")
             for row in curvatures.itertuples()]
    table = curvatures.assign(method=method, trace=trace, negative=curvatures.negative.round().astype(int),
                              largest=curvatures.largest.round(2), smallest=curvatures.smallest.map("{:.1e}".format))
    columns = ["dimensions", "largest", "smallest", "negative", "trace"]
    return table.set_index(["level", "seed", "method"])[columns].sort_index()


def flatness(displacements: pd.DataFrame) -> pd.DataFrame:
    """One row for each seed and level: curvature along the way to the magnitude projection, and along random ones.

    Columns: seed, level, magnitude, random (median over draws), flatter (is magnitude's).
    """
    once = displacements[displacements.t == displacements.t.min()]
    table = once.groupby(["seed", "level", "mask"]).curvature.median().unstack().rename_axis(columns=None).reset_index()
    return table.assign(flatter=table.magnitude < table.random)


def limits_in_numbers(levels: pd.DataFrame, predictions: pd.DataFrame, displacements: pd.DataFrame,
                      prunings: pd.DataFrame, experiment: Experiment) -> dict[str, float]:
    """The numbers that the prose of Finding 3 quotes, by name; shares in percent."""
    e = experiment
    table = predicted_and_measured(levels, predictions, prunings, e)
    criteria = table.groupby(["seed", "level", "mask"]).criterion.transform("nunique")
    table = table[criteria == criteria.max()]  # means over the same networks: not all have an exact Hessian
    means = 100 * table.groupby(["criterion", "mask"])[["predicted", "ratio", "miss"]].mean()
    ways = flatness(displacements)
    numbers = {"exact_random": float("nan"), "exact_magnitude": float("nan")}  # of large networks there are none
    numbers |= {f"{criterion.split()[0]}_{mask}": float(row.predicted) for (criterion, mask), row in means.iterrows()}
    numbers |= {f"measured_{mask}": float(means.ratio["random subspace", mask]) for mask in ("random", "magnitude")}
    return _common_numbers(e) | numbers | {
        "compared": float(len(table[["seed", "level"]].drop_duplicates())),
        "loss_height": 1000 * e.loss_height, "samples": float(e.curvature_samples),
        "tolerance": 100 * e.limit_tolerance, "fraction": 100 * e.prune_fraction,
        "probes": float(e.lanczos_probes), "lanczos_steps": float(e.lanczos_steps),
        "twice_lanczos_steps": float(2 * e.lanczos_steps),
        "flatter_by": float((ways.random / ways.magnitude).median())}


def pruning_limit(levels: pd.DataFrame, predictions: pd.DataFrame, displacements: pd.DataFrame,
                  prunings: pd.DataFrame, experiment: Experiment) -> Verdicts:
    """Finding 3: flatness at the end of training limits how much can be pruned at once."""
    e = experiment
    table = predicted_and_measured(levels, predictions, prunings, e)
    right = table.assign(right=is_at_most(table.miss, e.limit_tolerance)).set_index(["criterion", "mask"]).right
    measured = measured_limits(levels, prunings, e)
    retrained = measured[measured.weights == "retrained"].pivot(
        index=["seed", "level"], columns="mask", values=["ratio", "above"])
    ratio, above = retrained.ratio, retrained.above
    within = f"predicted within {100 * e.limit_tolerance:.0f} points"

    def where(criterion, mask):
        return right[(right.index.get_level_values(0) == criterion) & (right.index.get_level_values(1) == mask)]

    # From each level, the ratio that would lead at once to the sparsest level that matches by iterating; a case only
    # where the sweep goes as far.
    chain = with_matching(levels, e)
    chain = chain[chain.rewind_step == e.rewind_steps[-1]].set_index(["seed", "level"])
    sparsest = chain[chain.matching].groupby("seed").density.min()
    goal = 1 - retrained.index.get_level_values("seed").map(sparsest) / chain.density.reindex(retrained.index)
    asked = (goal > 0) & (goal <= e.prune_ratios[-1])
    # The maximum lies somewhere from `ratio` to `above`: where the goal does too, nothing is decided.
    decided = asked & ((above.magnitude <= goal) | (ratio.magnitude >= goal))
    theory = table[(table.criterion == "random subspace") & (table["mask"] == "magnitude")]
    theory = theory.set_index(["seed", "level"]).predicted.reindex(goal.index)
    return Verdicts([
        _share(e, "3", "fig-limits",
               f"the maximum ratio for random pruning is {within} by the theory of random subspaces",
               where("random subspace", "random")),
        _share(e, "3", "fig-limits",
               "magnitude pruning does better: its measured maximum is above that of random pruning",
               ratio.magnitude > ratio.random),
        _share(e, "3", "fig-ways", "magnitude pruning moves along flatter directions than random pruning",
               flatness(displacements).flatter),
        _share(e, "3", "fig-sweep", "no one-shot pruning gets to the sparsest matching level of IMP (measured)",
               (ratio.magnitude < goal)[decided]),
        _share(e, "3", "fig-sweep", "no one-shot pruning gets to the sparsest matching level of IMP (theory)",
               (theory < goal)[asked]),
        _share(e, "3", "fig-limits",
               f"beyond the paper: the maximum for random pruning is {within} by the exact quadratic",
               where("exact quadratic", "random")),
        _share(e, "3", "fig-limits",
               f"beyond the paper: the maximum for magnitude pruning is {within} by the exact quadratic",
               where("exact quadratic", "magnitude"))])


# Finding 4

def with_refilled(gaps: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The table with a column `refilled`: is the gap below the old threshold filled again?

    Before the cut the share `prune_fraction` of the survivors was below it. The gap counts as filled if at least
    `gap_refilled` times as large a share is there again.
    """
    return gaps.assign(refilled=gaps.below >= experiment.gap_refilled * experiment.prune_fraction)


def cuts_compared(cuts: pd.DataFrame) -> pd.DataFrame:
    """One row for each seed and level that can be cut with and without retraining before it: the `length` and
    `test_error` of both, in columns such as `length_retrained` and `length_continued`."""
    both = pd.MultiIndex.from_product([("length", "test_error"), ("continued", "retrained")])
    wide = cuts.pivot(index=["seed", "level", "density"], columns="cut", values=["length", "test_error"])
    wide = wide.reindex(columns=both).dropna()
    wide.columns = ["_".join(names) for names in wide.columns]
    return wide.reset_index()


def methods_compared(levels: pd.DataFrame, methods: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """One row for each seed and level: `matching`, `refilled`, `below`, `test_error` and `barrier` of every method.

    Columns are pairs (quantity, kind); the index is seed, level, density.
    """
    table = with_refilled(methods, experiment).assign(matching=is_matching(methods, levels, experiment))
    return table.pivot(index=["seed", "level", "density"], columns="kind",
                       values=["matching", "refilled", "below", "test_error", "barrier"])


def retraining_in_numbers(levels: pd.DataFrame, gaps: pd.DataFrame, refill: pd.DataFrame, cuts: pd.DataFrame,
                          methods: pd.DataFrame, experiment: Experiment) -> dict[str, float]:
    """The numbers that the prose of Finding 4 quotes, by name; shares and errors in percent, NaN where there is none.

    `below_*`: mean share of survivors below the old threshold, from the last rewind step. `settled_*`: share of
    retraining from which on the mean over seeds and levels stays within one point of where it ends.
    """
    e = experiment
    late = gaps[gaps.rewind_step == e.rewind_steps[-1]].groupby("stage").below.mean()
    course = refill.groupby(["share", "kind"]).below.mean().unstack()
    unsettled = (course - course.iloc[-1]).abs() > 0.01
    compared = cuts_compared(cuts)
    last = cuts[cuts.level == e.levels].groupby("cut").test_error.mean()
    kinds = methods.groupby("kind")[["below", "barrier"]].mean()
    pairs = methods_compared(levels, methods, e)
    return _common_numbers(e) | {
        "prune_fraction": 100 * e.prune_fraction, "gap_refilled": 100 * e.gap_refilled,
        "refilled_from": 100 * e.gap_refilled * e.prune_fraction,
        "below_rewound": float(100 * late["rewound"]), "below_retrained": float(100 * late["retrained"]),
        "length_ratio": float((compared.length_continued / compared.length_retrained).median()),
        "last_density": float(100 * cuts.density.min()), "middle_level": float(e.levels // 2),
        "last_cut_retrained": float(100 * last["retrained"]), "last_cut_continued": float(100 * last["continued"])
        if "continued" in last else float("nan"), "last_cut_one_shot": float(100 * last["one-shot"]),
        "matching_imp": float(100 * pairs["matching"]["imp"].mean())} | {
        f"{name}_{kind.replace('-', '_')}": float(100 * kinds[name][kind])
        for name in ("below", "barrier") for kind in kinds.index} | {
        f"settled_{kind.replace('-', '_')}": float(100 * course.index[~unsettled[kind][::-1].cummax()[::-1]].min())
        for kind in course}


def role_of_retraining(levels: pd.DataFrame, gaps: pd.DataFrame, cuts: pd.DataFrame, methods: pd.DataFrame | None,
                       experiment: Experiment) -> Verdicts:
    """Finding 4: retraining makes new small weights to prune. Without `methods`, only what IMP's chains tell."""
    e = experiment
    stages = {stage: part for stage, part in with_refilled(gaps, e).groupby("stage")}
    compared = cuts_compared(cuts)
    filled = (f"at least {e.gap_refilled * e.prune_fraction:.0%} of the survivors are below the old threshold, where "
              f"{e.prune_fraction:.0%} were before the cut")
    rows = [
        _share(e, "4", "fig-magnitudes", "pruning opens a gap: no survivor is below the threshold",
               stages["pruned"].below == 0),
        _share(e, "4", "fig-gap", f"retraining fills the gap: {filled}", stages["retrained"].refilled),
        _share(e, "4", "fig-cuts", "the next cut removes a shorter vector with retraining before it than without",
               compared.length_retrained < compared.length_continued),
        _share(e, "4", "fig-cuts", "the error after the next cut is lower with retraining before it than without",
               compared.test_error_retrained < compared.test_error_continued)]
    if methods is None:
        return Verdicts(rows)
    pairs = methods_compared(levels, methods, e)
    sparse = pairs[pairs.index.get_level_values("density") <= e.ticket_density]
    sparse = sparse[sparse["matching"]["imp"].astype(bool)]
    where = f"where weight rewinding matches with at most {e.ticket_density:.0%} of the weights"
    return Verdicts(rows + [
        _share(e, "4", "fig-gap", "learning-rate rewinding fills the gap as well", pairs["refilled"]["lr-rewound"]),
        _share(e, "4", "fig-gap", "fine-tuning fills less of the gap than weight rewinding",
               pairs["below"]["fine-tuned"] < pairs["below"]["imp"]),
        _share(e, "4", "fig-methods",
               f"{where}, learning-rate rewinding does as well", sparse["matching"]["lr-rewound"]),
        _share(e, "4", "fig-methods",
               f"{where}, fine-tuning does not", ~sparse["matching"]["fine-tuned"].astype(bool))])


def plane_barriers(landscape: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The pairs of solutions that are pictured: barrier along the plane's segment, and does the next level match?

    Columns: seed, rewind_step, level, next_level, barrier, connected (by it), and of `next_level`: density, excess,
    matching.
    """
    keys = ["seed", "rewind_step", "level", "next_level"]
    ours = landscape[(landscape.plane == "solutions") & (landscape.what == "segment")]
    barriers = ours.groupby(keys)[["t", "test_error"]].apply(barrier).rename("barrier")
    return _with_next_level(barriers.reset_index(), levels, experiment)


def landscape_in_numbers(landscape: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> dict[str, float]:
    """The numbers that the prose of the picture quotes, by name; errors in percent."""
    e = experiment
    pairs = plane_barriers(landscape, levels, e).set_index("rewind_step")
    numbers = _common_numbers(e) | {
        "early_step": float(e.rewind_steps[0]), "level": float(pairs.level.iloc[0]),
        "next_level": float(pairs.next_level.iloc[0]), "plane_points": float(e.plane_points),
        "density": 100 * (1 - e.prune_fraction) ** float(pairs.level.iloc[0])}
    for name, step in (("early", e.rewind_steps[0]), ("late", e.rewind_steps[-1])):
        here = landscape[(landscape.rewind_step == step)]
        solutions = here[here.plane == "solutions"].set_index("what")
        numbers |= {f"{name}_barrier": float(100 * pairs.barrier[step]),
                    f"{name}_distance": float(solutions.x["next level"]),
                    f"{name}_cut": float(solutions.y["level"]),
                    f"{name}_projection": float(100 * solutions.test_error["projection"]),
                    f"{name}_error": float(100 * solutions.test_error["level"])}
    return numbers


def error_landscape(landscape: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> Verdicts:
    """The picture, of one seed: is the segment between two solutions flat in the plane that is drawn?"""
    e = experiment
    pairs = plane_barriers(landscape, levels, e)
    first, last = (pairs[pairs.rewind_step == step] for step in (e.rewind_steps[0], e.rewind_steps[-1]))
    rows = [
        _share(e, "picture", "fig-solutions",
               "from the last rewind step, the pictured pair matches, and the plane has no hill between its networks",
               last.matching & last.connected, needed=1)]
    if len(e.rewind_steps) > 1:
        rows.append(_share(e, "picture", "fig-solutions",
                           "from the first rewind step, the pictured pair does not match, and the plane has a hill "
                           "between its networks",
                           ~first.matching & ~first.connected, needed=1))
    return Verdicts([row | {"seeds": 1} for row in rows])
