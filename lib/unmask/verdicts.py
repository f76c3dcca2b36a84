"""What decides: barriers, matching and connected networks, and verdicts on claims about them.

Everything here works on tables alone, without torch. A claim is a statement about seeds: for each
seed one signed number M, positive where the claim is right, in the claim's own unit. Its verdict is
where the t-interval of their mean lies: above 0 it "holds", below it "fails", or else it is
"undecided". Thresholds and the levels that M is a mean over are those that the preset fixed
beforehand.
"""

import html
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from .errors import UnmaskError
from .experiments import Experiment

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

METRICS = ("test_error", "train_error", "train_loss")
CONFIDENCE = 0.9
SEEDS_NEEDED = 3  # fewer decide nothing, however much they agree
HOLDS, FAILS, UNDECIDED, MEASURED = "holds", "fails", "undecided", "measured"
SYMBOLS = {HOLDS: "●", FAILS: "✕", UNDECIDED: "○", MEASURED: "◆"}
Tables = dict[str, pd.DataFrame]

_ROUNDING = 1e-9  # errors are counts over counts: what is equal on paper differs by this at most


def barrier(segment: pd.DataFrame, metric: str = "test_error") -> float:
    """Error barrier of one segment, rows with `t`: the largest value on it minus the mean of the
    values at its two ends.

    Never negative: the ends belong to the segment, so it is at least half their difference. Frankle
    et al. 2020, section 2, there called linear interpolation instability."""
    ordered = segment.sort_values("t")[metric]
    return float(ordered.max() - (ordered.iloc[0] + ordered.iloc[-1]) / 2)


def barriers(segments: pd.DataFrame, keys: list[str], metrics=("test_error",)) -> pd.DataFrame:
    """The same of many segments, by `keys`: a column for each metric."""
    of_each = segments.sort_values("t").groupby(keys)[list(metrics)]
    ends = of_each.first(skipna=False) + of_each.last(skipna=False)
    return of_each.max() - ends / 2


def is_at_most(values: pd.Series, limits: pd.Series | float) -> pd.Series:
    """`values <= limits`, where rounding does not decide between equals."""
    return values <= limits + _ROUNDING


def is_connected(barriers: pd.Series, e: Experiment) -> pd.Series:
    """Linearly mode connected: is the barrier below the threshold?"""
    return barriers < e.lmc_threshold - _ROUNDING


def in_sublevel_set(networks: pd.DataFrame, e: Experiment) -> pd.Series:
    """Is each network (a row with `test_error`, `solution_error` and the `barrier` between it and
    that solution) in the solution's linearly connected sublevel set: no more than epsilon worse,
    and no barrier between the two?"""
    as_good = is_at_most(networks.test_error, networks.solution_error + e.epsilon)
    return as_good & is_connected(networks.barrier, e)


def log_barrier(barriers: pd.Series, e: Experiment) -> pd.Series:
    """`log10(B / theta)`: below 0 where connected. A barrier of 0 counts as half a test sample."""
    return np.log10(barriers.clip(lower=0.5 / e.evaluated[0]) / e.lmc_threshold)


def reference_errors(tables: Tables) -> pd.Series:
    """By seed, the test error that its networks are compared with: the mean of the dense run and
    of those retrained from the last rewind point with nothing pruned, where the table "references"
    is there."""
    levels = tables["levels"]
    dense = levels[levels.level == 0].groupby("seed").test_error.first()
    if "references" not in tables:
        return dense
    again = tables["references"].groupby("seed").test_error.agg(["sum", "count"])
    return (dense + again["sum"]) / (1 + again["count"])


def retraining_spread(tables: Tables) -> float:
    """Standard deviation of the test error over retrainings of the same seed, or 0 if unknown."""
    if "references" not in tables:
        return 0.0
    levels, columns = tables["levels"], ["seed", "test_error"]
    first = levels[(levels.level == 0) & (levels.rewind_step == levels.rewind_step.min())]
    together = pd.concat([first[columns], tables["references"][columns]])
    return float(together.groupby("seed").test_error.var().mean() ** 0.5)


def is_matching(networks: pd.DataFrame, tables: Tables, e: Experiment) -> pd.Series:
    """Is each network (a row with `seed` and `test_error`) epsilon-matching: at most epsilon
    worse than the seed's reference?"""
    return is_at_most(networks.test_error, networks.seed.map(reference_errors(tables)) + e.epsilon)


def is_at_chance(networks: pd.DataFrame, tables: Tables, e: Experiment) -> pd.Series:
    """Is each network no better than always naming the most frequent class, within three standard
    errors of an error so large?"""
    levels = tables["levels"]
    # of `test_samples=all` the table knows how many; those published before do not say
    chance, count = levels.chance.iloc[0], levels.get("tested", pd.Series(e.evaluated[0])).max()
    spread = (chance * (1 - chance) / count) ** 0.5
    return networks.test_error >= chance - 3 * spread


def seeds_that_learn(tables: Tables, e: Experiment) -> list[int]:
    """The seeds whose dense network is better than chance: others decide nothing."""
    dense = tables["levels"].query("level == 0").groupby("seed").first()
    return sorted(dense.index[~is_at_chance(dense, tables, e)])


def with_matching(tables: Tables, e: Experiment) -> pd.DataFrame:
    """The level table with columns `excess` (error above the seed's reference), `matching` and
    `lost` (is at chance)."""
    levels = tables["levels"]
    excess = levels.test_error - levels.seed.map(reference_errors(tables))
    lost = is_at_chance(levels, tables, e)
    return levels.assign(excess=excess, matching=is_matching(levels, tables, e), lost=lost)


def with_next_level(pairs: pd.DataFrame, tables: Tables, e: Experiment) -> pd.DataFrame:
    """Pairs of successive levels with `density`, `excess`, `matching` and `lost` of `next_level`,
    and `connected` (by `barrier`)."""
    reached = with_matching(tables, e).rename(columns={"level": "next_level"})
    keys = ["seed", "rewind_step", "next_level"]
    table = pairs.merge(reached[[*keys, "density", "excess", "matching", "lost"]], on=keys)
    return table.assign(connected=is_connected(table.barrier, e))


def where_imp_matches(tables: Tables, e: Experiment) -> pd.DataFrame:
    """IMP and its controls where the question is interesting: sparse levels (density at most
    `ticket_density`) at which IMP matches."""
    controls = tables["controls"]
    imp = controls[(controls.kind == "imp") & (controls.density <= e.ticket_density)]
    found = imp[is_matching(imp, tables, e)]
    return controls.merge(found[["seed", "level"]], on=["seed", "level"])


def settings_in_numbers(e: Experiment) -> dict[str, float]:
    """What the prose of every page may quote of an experiment, by name; shares in percent."""
    shares = "epsilon", "lmc_threshold", "higher_sparsity", "prune_fraction"
    counts = {"seeds": e.seeds, "steps": e.steps, "early_step": e.earliest, "late_step": e.latest}
    chance = {"classes": e.classes, "chance_error": 100 * (1 - 1 / e.classes)}
    return counts | chance | {name: 100 * getattr(e, name) for name in shares}


def at_latest(table: pd.DataFrame, e: Experiment) -> pd.DataFrame:
    """The rows of the last rewind step."""
    return table[table.rewind_step == e.latest]


def at_earliest(table: pd.DataFrame, e: Experiment) -> pd.DataFrame:
    """The rows of the first rewind step."""
    return table[table.rewind_step == e.earliest]


def restricted(tables: Tables, to: Tables) -> Tables:
    """Of another run's tables, what is about the same seeds, rewind steps, levels and lengths as
    the tables `to`, as far as these have them."""
    places, found = ("seed", "rewind_step", "level", "length"), {}
    for name, wanted in to.items():
        keys = [key for key in places if key in wanted]
        table = tables[name]
        found[name] = table.merge(wanted[keys].drop_duplicates(), on=keys) if keys else table
    return found


def by_seed(table: pd.DataFrame, values: pd.Series) -> pd.Series:
    """The mean of `values`, which go by the rows of `table`, for each seed: cases of one seed are
    never counted as several."""
    return values.groupby(table.seed).mean()


def area(values: pd.Series, positive: pd.Series) -> float:
    """Under the receiver operating characteristic (AUC): of all two cases of which one is positive,
    the share where that has the larger value; equal values count half, NaN if there are none."""
    yes, no = values[positive], values[~positive]
    cases = len(yes) * len(no)
    return stats.mannwhitneyu(yes, no).statistic / cases if cases else np.nan


# Verdicts


class Evidence:
    """What the seeds say of one claim, in its `unit`.

    `values`: M by seed. `bounds`: seeds whose M is at least that. `spread`: the least that their
    standard deviation is taken to be; of errors, that of one error over retrainings. `headline`:
    the finding whose headline it is, or ""."""

    def __init__(
        self, finding, figure, claim, unit, values, judged=True, bounds=(), spread=0.0, headline=""
    ):
        self.finding, self.figure, self.claim, self.unit = finding, figure, claim, unit
        self.values = values.dropna().astype(float).sort_index()
        self.bounds = sorted(set(bounds) & set(self.values.index))
        self.judged, self.spread, self.headline = judged, spread, headline
        self.mean, self.low, self.high = interval(self.values, spread)

    @property
    def verdict(self) -> str:
        if not self.judged:
            return MEASURED
        if len(self.values) < SEEDS_NEEDED:
            return UNDECIDED
        if self.low > 0:
            return HOLDS  # of bounds, as if they were the numbers
        return FAILS if self.high < 0 and not self.bounds else UNDECIDED

    @property
    def p(self) -> float:
        """Of the mean being 0 or less: one-sided t-test."""
        if len(self.values) < 2:
            return 1.0
        error = _standard_error(self.values, self.spread)
        if error == 0:
            return float(self.mean <= 0)
        return float(stats.t.sf(self.mean / error, len(self.values) - 1))

    @property
    def sign_p(self) -> float:
        """Of the signs alone: exact sign test, two-sided; zeros do not count."""
        above, below = int((self.values > 0).sum()), int((self.values < 0).sum())
        return float(stats.binomtest(above, above + below).pvalue) if above + below else 1.0

    def words(self) -> str:
        """Mean and interval, as text."""
        if self.values.empty:
            return "no seed has a case"
        at_least = "≥ " if self.bounds else ""
        ends = "" if np.isnan(self.low) else f" [{_rounded(self.low)}, {_rounded(self.high)}]"
        return f"{at_least}{_rounded(self.mean)}{ends}"


def interval(values: pd.Series, spread: float = 0.0) -> tuple[float, float, float]:
    """Mean of the seeds' numbers and the two ends of its t-interval, NaN for fewer than two.

    `spread`: the least that their standard deviation is taken to be."""
    count, mean = len(values), float(values.mean())
    if count < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * _standard_error(values, spread)
    return mean, mean - half, mean + half


def _standard_error(values: pd.Series, spread: float) -> float:
    return max(float(values.std()), spread) / len(values) ** 0.5


def in_numbers(name: str, values: pd.Series, scale: Callable = lambda value: value) -> dict:
    """For prose: the mean over seeds and the ends of its interval, under `name`, `name_low` and
    `name_high`; `scale` turns the claim's unit into that of the page."""
    mean, low, high = map(scale, interval(values.dropna()))
    return {name: mean, f"{name}_low": min(low, high), f"{name}_high": max(low, high)}


def _rounded(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def holm(evidence: list[Evidence]) -> dict[str, float]:
    """By headline, the p-value corrected for there being several (Holm 1979). A headline of two
    claims needs both: the larger p-value counts."""
    named = [one for one in evidence if one.headline]
    p = pd.Series([one.p for one in named], [one.headline for one in named], dtype=float)
    worst = p.groupby(level=0).max().sort_values()
    return (worst * np.arange(len(worst), 0, -1)).clip(upper=1).cummax().to_dict()


class Claims:
    """The claims of one finding, judged one after the other, on the seeds that decide."""

    def __init__(self, finding: str, tables: Tables, e: Experiment):
        self.finding, self.evidence = finding, []
        known = "levels" in tables
        self.seeds = seeds_that_learn(tables, e) if known else list(e.all_seeds)
        # of a test error, in points
        self.spread = 100 * retraining_spread(tables) if known else 0.0

    def add(self, figure: str, claim: str, unit: str, values: pd.Series, headline=False, **options):
        """A claim, shown by `figure`; is it a `headline`? Other options are those of `Evidence`."""
        about = self.finding, figure, claim, unit, values[values.index.isin(self.seeds)]
        named = self.finding if headline else ""
        self.evidence.append(Evidence(*about, headline=named, **options))

    def measure(self, figure: str, words: str, unit: str, values: pd.Series, **options) -> None:
        """A quantity that is shown with its interval, and of which nothing is claimed."""
        self.add(figure, words, unit, values, judged=False, **options)


class Verdicts(NamedTuple):
    """Verdicts to show: `evidence` on each claim, in order."""

    evidence: list[Evidence]

    @property
    def table(self) -> pd.DataFrame:
        """One row for each claim, without the seeds' own numbers."""
        names = ("finding", "claim", "unit", "mean", "low", "high", "sign_p", "verdict", "figure")
        rows = [[getattr(one, name) for name in names] for one in self.evidence]
        return pd.DataFrame(rows, columns=list(names))

    def _repr_html_(self) -> str:
        above = (f"{(one.values > 0).sum()} of {len(one.values)} seeds" for one in self.evidence)
        columns = {
            "verdict": map(mark, self.evidence),
            "claim": map(link, self.evidence),
            f"mean [{CONFIDENCE:.0%} interval]": [statistic(one.words()) for one in self.evidence],
            "unit": [one.unit for one in self.evidence],
            "above 0": map(statistic, above),
        }
        said = f"What the seeds say: {counted(one.verdict for one in self.evidence)}."
        return captioned(pd.DataFrame(columns), said, "verdicts").to_html()

    def __repr__(self) -> str:
        return "\n".join(f"{one.verdict:>9}: {one.claim}: {one.words()}" for one in self.evidence)


def statistic(words: str) -> str:
    """What may differ from machine to machine, as HTML: it has a class of its own."""
    return f'<span class="statistic">{html.escape(words)}</span>'


def mark(one: Evidence) -> str:
    """The verdict as HTML, told by a symbol, a word and a class."""
    return f'<span class="verdict {one.verdict}">{SYMBOLS[one.verdict]} {one.verdict}</span>'


def counted(verdicts: Iterable[str]) -> str:
    """How many there are of each, as HTML."""
    found = pd.Series(list(verdicts), dtype=object).value_counts()
    words = {HOLDS: "hold", FAILS: "fail"}  # of several
    shown = (
        f'<span class="verdict {name}">{SYMBOLS[name]} {found[name]} '
        f"{words.get(name, name) if found[name] > 1 else name}</span>"
        for name in SYMBOLS
        if name in found
    )
    return " · ".join(shown)


def link(one: Evidence, page: str = "") -> str:
    """The claim, which leads to the figure that shows it; bold if it is a headline."""
    claim = html.escape(one.claim).replace("d_L", "d<sub>L</sub>")
    found = f'<a href="{page}#{one.figure}">{claim}</a>'
    return f"<strong>{found}</strong>" if one.headline else found


def captioned(table: pd.DataFrame, caption: str, kind: str = "numbers") -> "Styler":
    """A table as it stands on a page: a caption, one row of headers with the index in front, words
    at the left, numbers at the right with as many digits as the column needs, at most two."""
    table = table.rename_axis(columns=None)
    if table.index.names != [None]:
        table = table.reset_index()
    shown = table.style.set_caption(caption).hide(axis="index")
    shown = shown.set_table_attributes(f'class="dataframe {kind}"')
    for name, column in table.items():
        if pd.api.types.is_float_dtype(column):
            digits = (len(f"{x:.2f}".rstrip("0").partition(".")[2]) for x in column)
            decimals = max(digits, default=0)
            shown = shown.format(precision=decimals, thousands=",", na_rep="–", subset=[name])
        elif not column.astype(str).str.match(r"[-–≈≥]?\s*\d|–$").all():
            left = [{"selector": "", "props": "text-align: left; white-space: normal"}]
            shown = shown.set_table_styles({name: left}, overwrite=False)
    shown.cell_ids = False
    return shown.set_uuid(re.sub(r"\W+", "-", re.sub("<.*?>", "", caption))[:40])


_JUDGES: list[tuple[tuple[str, ...], Callable]] = []


def judge(finding: str, needs: tuple[str, ...]) -> Callable:
    """Declare how a finding is judged: `function(claims, tables, experiment)` adds claims.

    `needs`: names of tables without which there is nothing to judge. What is declared is a function
    of tables and experiment, to `Verdicts`."""

    def declare(function: Callable) -> Callable[[Tables, Experiment], Verdicts]:
        def judged(tables: Tables, e: Experiment) -> Verdicts:
            claims = Claims(finding, tables, e)
            function(claims, tables, e)
            return Verdicts(claims.evidence)

        judged.__doc__ = function.__doc__
        _JUDGES.append((needs, judged))
        return judged

    return declare


def all_verdicts(tables: Tables, e: Experiment) -> Verdicts:
    """Every verdict of every finding whose tables are there, from the tables of one experiment.
    Raises UnmaskError: no finding has been imported."""
    if not _JUDGES:
        raise UnmaskError("nobody judges yet: import unmask.findings")
    judges = [judged for needs, judged in _JUDGES if set(needs) <= set(tables)]
    return Verdicts([one for judged in judges for one in judged(tables, e).evidence])
