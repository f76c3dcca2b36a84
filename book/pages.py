"""What belongs to the book alone: its pages, what the paper reports, and what everything costs."""

from __future__ import annotations

import html
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import yaml
from scipy.stats import ttest_ind

import unmask
from unmask import results, tables
from unmask.chains import RETRAININGS
from unmask.findings import FINDINGS
from unmask.verdicts import FAILS, HOLDS, MEASURED, Evidence, Tables, Verdicts, at_latest, captioned
from unmask.verdicts import counted, holm, link, mark, settings_in_numbers, statistic, with_matching

_PAGES = yaml.safe_load(Path(__file__).with_name("pages.yml").read_text())
PAGES = {finding: about["page"] for finding, about in _PAGES["findings"].items()}
REPORTED = {finding: about["reported"] for finding, about in _PAGES["findings"].items()}
PUBLISHED = _PAGES["published"]


class Overview:
    """The verdicts of several settings side by side, a table for each finding; a claim leads to its
    figure.

    Args:
        verdicts: by the setting's name.
        folder: of the findings' pages, seen from the page that shows this."""

    def __init__(self, verdicts: dict[str, Verdicts], folder: str = "../notebooks/"):
        self.verdicts, self.folder = verdicts, folder

    def _repr_html_(self) -> str:
        return "\n".join(self._table(finding) for finding in REPORTED if self._claims(finding))

    def _claims(self, finding: str) -> dict:
        evidence = [one for shown in self.verdicts.values() for one in shown.evidence]
        return {one.claim: one for one in evidence if one.finding == finding}

    def _table(self, finding: str) -> str:
        claims, page = self._claims(finding), f"{self.folder}{PAGES[finding]}.html"
        words = [f"{link(one, page)}<br><small>{one.unit}</small>" for one in claims.values()]
        columns = {"claim": words}
        for name, shown in self.verdicts.items():
            found = {one.claim: one for one in shown.evidence}
            # names of presets may be broken after each _, which leaves room for the claims
            column, each = name.replace("_", "_<wbr>"), map(found.get, claims)
            cells = (f"{mark(one)}<br>{statistic(one.words())}" if one else "–" for one in each)
            columns[column] = list(cells)
        said = f"Finding {finding}. The paper reports: <em>{html.escape(REPORTED[finding])}</em>"
        return captioned(pd.DataFrame(columns), said, "verdicts overview").to_html()

    def __repr__(self) -> str:
        return "\n\n".join(f"{name}\n{shown}" for name, shown in self.verdicts.items())


def headlines(shown: Verdicts) -> Verdicts:
    """The claims that stand for the findings."""
    return Verdicts([one for one in shown.evidence if one.headline])


def headline_table(shown: Verdicts) -> pd.DataFrame:
    """The headline claims: the interval, the exact sign test, and the p-value with Holm's
    correction for there being several findings."""
    corrected, rows = holm(shown.evidence), []
    for one in headlines(shown).evidence:
        tests = f"{one.sign_p:.2g}", f"{corrected[one.headline]:.2g}"
        claim = link(one, f"../notebooks/{PAGES[one.finding]}.html")
        rows.append((mark(one), claim, one.words(), *tests))
    columns = ["verdict", "claim", "mean [90 % interval]", "sign test", "Holm"]
    return pd.DataFrame(rows, columns=columns)


def judged_in_both(shown: Verdicts, other: Verdicts) -> list[tuple[Evidence, Evidence, float]]:
    """The claims that two runs of different seeds judge, and the p-value of their difference
    (Welch's t-test), NaN where there is none."""

    def p_value(one: pd.Series, other: pd.Series) -> float:
        varies = min(len(one), len(other)) > 1 and one.std() + other.std() > 1e-9
        return ttest_ind(one, other, equal_var=False).pvalue if varies else np.nan

    known = {one.claim: one for one in other.evidence}
    pairs = [(one, known[one.claim]) for one in shown.evidence if one.judged and one.claim in known]
    return [(one, other, p_value(one.values, other.values)) for one, other in pairs]


def other_seeds_table(pairs: list[tuple[Evidence, Evidence, float]]) -> pd.DataFrame:
    """Of the headline claims, what two runs of different seeds say."""
    rows = []
    for one, other, p in (both for both in pairs if both[0].headline):
        claim = link(one, f"../notebooks/{PAGES[one.finding]}.html")
        rows.append((claim, mark(one), one.words(), mark(other), other.words(), p))
    columns = ["claim", "seeds above", "mean [90 %]", "other seeds", "mean [90 %] ", "p, same mean"]
    return pd.DataFrame(rows, columns=columns)


def agreement(pairs: list[tuple[Evidence, Evidence, float]]) -> dict[str, int]:
    """How many claims there are, have the same verdict, hold in one run and fail in the other, and
    have means that chance would part one time in a thousand."""
    verdicts = [{one.verdict, other.verdict} for one, other, _ in pairs]
    found = {"claims": len(pairs), "same": sum(len(both) == 1 for both in verdicts)}
    found["opposed"] = sum(both == {HOLDS, FAILS} for both in verdicts)
    return found | {"told": sum(p < 0.001 for *_, p in pairs)}


def counts(verdicts: dict[str, Verdicts], folder: str = "../notebooks/") -> pd.DataFrame:
    """How many claims hold, fail and are undecided, by question and setting, which lead to their
    pages."""
    rows = {}
    for name, shown in verdicts.items():
        table = shown.table[shown.table.verdict != MEASURED]
        page = f"{folder}{PUBLISHED[name]['page']}.html" if name in PUBLISHED else ""
        column = name.replace("_", "_<wbr>")
        column = f'<a href="{page}">{column}</a>' if page else column
        rows[column] = table.groupby("finding").verdict.apply(counted)
    table = pd.DataFrame(rows).fillna("–")
    pages = [PAGES[finding] for finding in table.index]
    table.index = [f'<a href="{folder}{p}.html">{html.escape(title(p))}</a>' for p in pages]
    return table.rename_axis("question")


def title(page: str) -> str:
    """The question that a notebook asks: its heading."""
    path = Path(__file__).parents[1] / f"notebooks/{page}.ipynb"
    return nbformat.read(path, 4).cells[0].source.splitlines()[0].removeprefix("# ")


def numbers(shown: Tables, e: unmask.Experiment, provenance: dict) -> dict[str, float | str]:
    """What published results are of and where they come from, by name, and the numbers of each
    finding whose tables are there, its name in front; errors and shares in percent."""
    levels, settings = shown["levels"], settings_in_numbers(e)
    late = at_latest(with_matching(shown, e), e)
    networks = {"lenet-300-100": "LeNet-300-100", "resnet20": "ResNet-20"}
    networks |= {"resnet8-strided": "a strided ResNet-8"}
    images = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar10-jpeg": "CIFAR-10 (JPEG copy)"}
    found = {
        "setting": networks.get(e.network, e.network),
        "data": images.get(e.folder or e.dataset, e.folder or e.dataset),
        "weights": levels.survivors.max(),
        "dense_error": 100 * late[late.level == 0].test_error.mean(),
        "sparsest": 100 * late[late.matching].groupby("seed").density.min().mean(),
        "last_error": 100 * late[late.level == e.levels].test_error.mean(),
        "last_density": 100 * levels.density.min(),
        "core_hours": sum(one["core_seconds"] for one in provenance["instalments"]) / 3600,
        "commit": results.told(provenance, "published from commit"),
        "processor": results.told(provenance, "processor"),
    }
    days = sorted(results.told(provenance, "computed").replace(" to", ",").split(", "))
    found["computed"] = " to ".join(sorted({days[0], days[-1]}))
    for finding, about in _PAGES["findings"].items():
        if set(about["tables"]) <= set(shown):
            module = FINDINGS[finding]
            name = module.__name__.rpartition(".")[2]
            of_it = module.numbers(shown, e).items()
            found |= {f"{name}_{key}": value for key, value in of_it if key not in settings}
            found[f"{name}_seeds"] = min(shown[table].seed.nunique() for table in about["tables"])
    return settings | found


# What it costs: `measured` is what `make bench` wrote

_COLUMNS = {
    "per second": ("per second", 1, "{:,.0f}"),
    "GFLOP/s": ("GFLOP/s", 1, "{:.1f}"),
    "% of matrix product": ("of matrix product", 100, "{:.0f}"),
    "ours, times as fast": ("ours, times as fast", 1, "{:.1f}"),
    "peak MB": ("peak MB", 1, "{:,.0f}"),
}
# work, column, what to multiply it by, the most milliseconds or the least of another, unit
_TARGETS = (
    ("training miniature", "textbook ratio", 1, 5, "times the textbook loop"),
    ("training mnist_lenet", "textbook ratio", 1, 15, "times the textbook loop"),
    ("training mnist_lenet", "of matrix product", 100, 50, "% of the matrix product's rate"),
    ("training cifar10_resnet8", "of matrix product", 100, 60, "% of the matrix product's rate"),
    ("open_lth's training of LeNet-300-100", "ours, times as fast", 1, 10, "times our time"),
    ("book, empty store", "milliseconds", 1 / 60_000, 12, "minutes"),
    ("book, full store", "milliseconds", 1 / 1000, 75, "seconds"),
    ("start of unmask presets", "milliseconds", 1 / 1000, 0.2, "seconds"),
    ("imports of a notebook", "milliseconds", 1 / 1000, 3, "seconds"),
)
GPU = 10  # TFLOP/s that one is taken to sustain


def bench_table(measured: dict) -> pd.DataFrame:
    """Times, rates, and ratios of one run."""
    wanted = ["milliseconds", *(column for column, *_ in _COLUMNS.values())]
    rows = pd.DataFrame(measured["rows"]).T
    ratios, kept = rows["textbook ratio"], rows.reindex(columns=["from commit"])["from commit"]
    rows = rows.reindex(columns=wanted).fillna({"ours, times as fast": ratios})
    table = pd.DataFrame({"time": rows.milliseconds.map(_time)}, index=rows.index)
    for name, (column, scale, form) in _COLUMNS.items():
        table[name] = [form.format(scale * cell) if cell == cell else "–" for cell in rows[column]]
    names = [f"{name} (before, at {at})" if at == at else name for name, at in kept.items()]
    return table.set_axis(names).rename_axis("work")


def _time(milliseconds: float) -> str:
    unit = "ms" if milliseconds < 1000 else "s" if milliseconds < 60_000 else "min"
    return f"{milliseconds / {'ms': 1, 's': 1000, 'min': 60_000}[unit]:.3g} {unit}"


def bench_targets(measured: dict) -> pd.DataFrame:
    """What was aimed at before anything was measured, and what was found; works that were not timed
    are left out."""
    rows = []
    for work, column, scale, aim, unit in _TARGETS:
        if work in measured["rows"]:
            found, most = scale * measured["rows"][work][column], column == "milliseconds"
            met = "yes" if (found <= aim if most else found >= aim) else "no"
            aimed = f"at {'most' if most else 'least'} {aim} {unit}"
            rows.append((work, aimed, f"{found:.1f}", met))
    return pd.DataFrame(rows, columns=["work", "aim", "measured", "met"]).set_index("work")


def costs(measured: dict) -> pd.DataFrame:
    """Core-hours of training from an empty store, by preset: millions of steps counted, times the
    time of one; and hours of a GPU, their operations at the rate of `GPU`.

    A step that was not timed takes as long as another preset's of as many operations; where there
    is none it is extrapolated from their number, at the rate of ResNet-20's (≈)."""
    rows, timed, operations = {}, measured["rows"], measured["GFLOP a step"]
    for name, e in unmask.PRESETS.items():
        if name == "smoke" or name not in operations:  # made for tests, or after the bench was run
            continue
        same = [f"training {n}" for n, one in operations.items() if one == operations[name]]
        row, steps = next((timed[n] for n in same if n in timed), None), training_steps(e)
        seconds = operations[name] / timed["training cifar10_resnet20"]["GFLOP/s"]
        step = row["milliseconds"] if row else 1000 * seconds
        rows[name] = {purpose: f"{count / 1e6:,.2f}" for purpose, count in steps.items()}
        hours = sum(steps.values()) * step / 3.6e6
        rows[name]["core-hours"] = f"{hours:,.1f}" if row else f"≈{float(f'{hours:.2g}'):,.0f}"
        hours = sum(steps.values()) * operations[name] / (3.6e6 * GPU)
        rows[name][f"GPU hours at {GPU} TFLOP/s"] = f"{hours:,.1f}"
    return pd.DataFrame(rows).T.rename_axis("preset")


def training_steps(e: unmask.Experiment) -> dict[str, float]:
    """How many training steps of one network an empty store costs, by what they are for."""
    purposes = {"perturbations": "Finding 2", "prunings": "Finding 3"}
    purposes |= dict.fromkeys(RETRAININGS, "Finding 4")
    steps = dict.fromkeys(("Findings 0 and 1", *purposes.values()), 0)
    for node in tables.graph(e, tables.known_tables()):  # of a kind of network, or of a table
        steps[purposes.get(node[0], "Findings 0 and 1")] += tables.work(e, node)[0]
    return steps


def provenances(folder: Path = results.FOLDER) -> pd.DataFrame:
    """Where each published result comes from, a row for each instalment."""
    rows = []
    for name in results.published_names(folder):
        for one in results.provenance(name, folder)["instalments"]:
            seeds = f"{one['first_seed']} to {one['first_seed'] + one['seeds'] - 1}"
            hours = f"{one['core_seconds'] / 3600:.1f}"
            where = one["processor"].partition(" (")[0] if one["device"] == "cpu" else one["device"]
            about = one["computed"], where, one["published from commit"]
            rows.append((name, len(one["tables"]), seeds, hours, *about))
    columns = ["published", "tables", "seeds", "core-hours", "computed", "where"]
    return pd.DataFrame(rows, columns=[*columns, "published from commit"])
