"""What decides: barriers, matching and connected networks, and verdicts on claims about them.

Everything here works on tables alone, without torch. Thresholds are those that the preset fixed
beforehand. A verdict is "holds", "fails", or "not decidable" where fewer than `CASES_NEEDED` cases
could be looked at (a case is a pair of networks; a claim about seeds needs one).
"""

from __future__ import annotations

import html
from collections.abc import Callable

import pandas as pd

from .experiments import Experiment

METRICS = ("test_error", "train_error", "train_loss")
CASES_NEEDED = 5
COLUMNS = ("finding", "claim", "statistic", "rule", "cases", "seeds", "verdict", "figure")
Tables = dict[str, pd.DataFrame]

_ROUNDING = 1e-9  # errors are counts over counts: what is equal on paper differs by this at most


def barrier(segment: pd.DataFrame, metric: str = "test_error") -> float:
    """Error barrier of one segment, rows with `t`: the largest value on it minus the mean of the
    values at its two ends.

    Never negative: the ends belong to the segment, so it is at least half their difference. Frankle
    et al. 2020, section 2, there called linear interpolation instability."""
    ordered = segment.sort_values("t")[metric]
    return float(ordered.max() - (ordered.iloc[0] + ordered.iloc[-1]) / 2)


def is_at_most(values: pd.Series, limits: pd.Series | float) -> pd.Series:
    """`values <= limits`, where rounding does not decide between equals."""
    return values <= limits + _ROUNDING


def is_connected(barriers: pd.Series, experiment: Experiment) -> pd.Series:
    """Linearly mode connected: is the barrier below the threshold?"""
    return barriers < experiment.lmc_threshold - _ROUNDING


def dense_errors(levels: pd.DataFrame) -> pd.Series:
    """Test error of level 0, by seed."""
    return levels[levels.level == 0].groupby("seed").test_error.first()


def is_matching(networks: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment) -> pd.Series:
    """Is each network (a row with `seed` and `test_error`) epsilon-matching: at most epsilon
    worse than the dense one?"""
    limits = networks.seed.map(dense_errors(levels)) + experiment.epsilon
    return is_at_most(networks.test_error, limits)


def with_matching(levels: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The level table with columns `excess` (error above the dense one of the seed) and
    `matching`."""
    excess = levels.test_error - levels.seed.map(dense_errors(levels))
    return levels.assign(excess=excess, matching=is_matching(levels, levels, experiment))


def with_next_level(
    pairs: pd.DataFrame, levels: pd.DataFrame, experiment: Experiment
) -> pd.DataFrame:
    """Pairs of successive levels with `density`, `excess` and `matching` of `next_level`, and
    `connected` (by `barrier`)."""
    reached = with_matching(levels, experiment).rename(columns={"level": "next_level"})
    keys = ["seed", "rewind_step", "next_level"]
    table = pairs.merge(reached[[*keys, "density", "excess", "matching"]], on=keys)
    return table.assign(connected=is_connected(table.barrier, experiment))


def where_imp_matches(tables: Tables, e: Experiment) -> pd.DataFrame:
    """IMP and its controls, with `matching`, where the question is interesting: sparse levels
    (density at most `ticket_density`) at which IMP matches."""
    controls = tables["controls"]
    judged = controls.assign(matching=is_matching(controls, tables["levels"], e))
    sparse = judged.density <= e.ticket_density
    found = judged[(judged.kind == "imp") & judged.matching & sparse]
    return judged.merge(found[["seed", "level"]], on=["seed", "level"])


def settings_in_numbers(e: Experiment) -> dict[str, float]:
    """What the prose of every page may quote of an experiment, by name; shares in percent."""
    shares = "epsilon", "lmc_threshold", "agreement", "higher_sparsity", "prune_fraction"
    counts = {"seeds": e.seeds, "steps": e.steps, "early_step": e.earliest, "late_step": e.latest}
    chance = {"classes": e.classes, "chance_error": 100 * (1 - 1 / e.classes)}
    return counts | chance | {name: 100 * getattr(e, name) for name in shares}


def at_latest(table: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The rows of the last rewind step."""
    return table[table.rewind_step == experiment.latest]


# Verdicts


class Verdicts:
    """Verdicts to show at the end of a page: `rows`, a dict for each claim, or as a `table` with
    `COLUMNS`."""

    def __init__(self, rows: list[dict]):
        self.rows, self.table = rows, pd.DataFrame(rows, columns=list(COLUMNS))

    def _repr_html_(self) -> str:
        # What may differ from machine to machine carries a class of its own: the comparison of
        # committed with fresh verdicts allows for chance there, and for nothing elsewhere.
        rows = []
        for row in self.table.itertuples():
            share = "no case" if row.cases == 0 else f"{row.statistic:.1%}"
            rows.append(
                f"<td>{row.finding}</td><td>{_link(row)}</td>"
                f'<td class="statistic">{share}</td><td class="statistic">{row.cases}</td>'
                f'<td>{row.seeds}</td><td class="verdict"><strong>{row.verdict}</strong></td>'
            )
        return _html(("finding", "claim", "agreeing", "cases", "seeds", "verdict"), rows)

    def __repr__(self) -> str:
        return "\n".join(f"{row.verdict:>13}: {row.claim}" for row in self.table.itertuples())


class Claims:
    """The claims of one finding, judged one after the other."""

    def __init__(self, finding: str, experiment: Experiment):
        self.finding, self.experiment, self.rows = finding, experiment, []

    def add(self, figure: str, claim: str, agreeing: pd.Series, needed: int = CASES_NEEDED) -> None:
        """A claim about many cases: it holds if at least `experiment.agreement` of them agree.
        `figure` shows them."""
        e, cases = self.experiment, len(agreeing)
        share = float(agreeing.mean()) if cases else float("nan")
        verdict = "holds" if share >= e.agreement else "fails"
        if cases < needed:
            verdict = "not decidable"
        rule = f"at least {e.agreement:.0%}"
        row = self.finding, claim, share, rule, cases, e.seeds, verdict, figure
        self.rows.append(dict(zip(COLUMNS, row)))


_JUDGES: list[tuple[tuple[str, ...], Callable]] = []


def judge(finding: str, needs: tuple[str, ...]) -> Callable:
    """Declare how a finding is judged: `function(claims, tables, experiment)` adds claims.

    `needs`: names of tables without which there is nothing to judge. What is declared is a function
    of tables and experiment, to `Verdicts`."""

    def declare(function: Callable) -> Callable[[Tables, Experiment], Verdicts]:
        def judged(tables: Tables, experiment: Experiment) -> Verdicts:
            claims = Claims(finding, experiment)
            function(claims, tables, experiment)
            return Verdicts(claims.rows)

        judged.__doc__ = function.__doc__
        _JUDGES.append((needs, judged))
        return judged

    return declare


def all_verdicts(tables: Tables, experiment: Experiment) -> Verdicts:
    """Every verdict of every finding whose tables are there, from the tables of one experiment."""
    judges = [judged for needs, judged in _JUDGES if set(needs) <= set(tables)]
    return Verdicts([row for judged in judges for row in judged(tables, experiment).rows])


class Overview:
    """The verdicts of several presets side by side; a claim leads to its figure.

    Args:
        verdicts: by the preset's name.
        pages: by finding, the page with its figures, seen from the page that shows this.
        headings: by finding, what stands above its claims, as HTML."""

    def __init__(
        self, verdicts: dict[str, Verdicts], pages: dict[str, str], headings: dict[str, str]
    ):
        self.presets, self.pages, self.headings = list(verdicts), pages, headings
        parts = [shown.table.assign(preset=preset) for preset, shown in verdicts.items()]
        self.table = pd.concat(parts, ignore_index=True)

    def _repr_html_(self) -> str:
        rows = []
        for finding, heading in self.headings.items():
            here = self.table[self.table.finding == finding]
            if len(here):
                rows.append(f'<th colspan="{len(self.presets) + 1}">{heading}</th>')
            for _, group in here.groupby("claim", sort=False):
                link = _link(group.iloc[0], self.pages[finding])
                found = {row.preset: self._cell(row) for row in group.itertuples()}
                cells = [found.get(preset, "<td>–</td>") for preset in self.presets]
                rows.append(f"<td>{link}</td>{''.join(cells)}")
        # names of presets may be broken after each _, which leaves room for the claims
        names = [preset.replace("_", "_<wbr>") for preset in self.presets]
        return _html(("claim", *names), rows, "verdicts overview")

    @staticmethod
    def _cell(row) -> str:
        share = "no case" if row.cases == 0 else f"{row.statistic:.1%} of {row.cases}"
        return (
            f'<td><span class="verdict"><strong>{row.verdict}</strong></span><br>'
            f'<span class="statistic">{share}</span></td>'
        )

    def __repr__(self) -> str:
        return repr(self.table.set_index(["claim", "preset"]).verdict.unstack())


def _html(names: tuple[str, ...], rows: list[str], kind: str = "verdicts") -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<table class="table {kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def _link(row, page: str = "") -> str:
    return f'<a href="{page}#{row.figure}">{html.escape(row.claim)}</a>'
