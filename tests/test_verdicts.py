"""What decides: matching, connected, and how verdicts are given, ordered and shown."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest
from hand_made import E, controls, levels

import unmask
from unmask import verdicts
from unmask.findings import FINDINGS, tickets
from unmask.verdicts import Claims, Overview, all_verdicts, is_connected, is_matching

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def published():
    """The experiment and the tables of a preset for which all were published."""
    return unmask.published("mnist_lenet")[:2]


def ticket_verdicts(seeds=6):
    tables = {"levels": levels(seeds=seeds), "controls": controls(seeds=seeds)}
    return tickets.verdicts(tables, E)


def test_matching_is_relative_to_the_same_seeds_dense_error():
    table = levels()
    table.loc[(table.seed == 0) & (table.level == 0), "test_error"] = 0.10
    judged = verdicts.with_matching(table, E).set_index(["seed", "rewind_step", "level"])
    assert judged.matching[0, 0, 1] and not judged.matching[1, 0, 1]
    assert judged.excess[1, 0, 1] == pytest.approx(0.06)


@pytest.mark.parametrize("wrong", range(100, 400, 7))
def test_rounding_does_not_decide_at_a_threshold(wrong):
    """Of 10,000 samples: exactly epsilon worse is matching, a barrier of exactly the threshold is
    not connected."""
    errors = [count / 10_000 for count in (wrong, wrong + 100, wrong + 101)]
    table = pd.DataFrame({"seed": 0, "level": (0, 1, 2), "test_error": errors})
    assert is_matching(table, table, E).tolist() == [True, True, False]
    ends = wrong / 10_000, (wrong + 51) / 10_000
    middles = [(2 * wrong + 51 + above) / 20_000 for above in (399, 400, 401)]
    barriers = pd.Series(middles) - sum(ends) / 2
    assert is_connected(barriers, E).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "agreeing, needed, verdict",
    [
        ([True] * 9 + [False], 5, "holds"),  # exactly the share that is asked for
        ([True] * 8 + [False] * 2, 5, "fails"),
        ([True] * 4, 5, "not decidable"),
        ([False] * 4, 5, "not decidable"),
        ([True], 1, "holds"),
        ([], 1, "not decidable"),
    ],
)
def test_a_claim_holds_by_the_share_of_cases_that_agree(agreeing, needed, verdict):
    claims = Claims("0", E)
    claims.add("fig-a", "it is so", pd.Series(agreeing, dtype=bool), needed)
    (row,) = claims.rows
    assert E.agreement == 0.9 and row["rule"] == "at least 90%"
    assert (row["verdict"], row["cases"], row["figure"]) == (verdict, len(agreeing), "fig-a")


def test_verdicts_are_given_in_the_order_in_which_they_were_declared(monkeypatch):
    monkeypatch.setattr(verdicts, "_JUDGES", [])

    def declare(finding, *needs):
        @verdicts.judge(finding, needs=needs)
        def judged(claims, tables, e):
            """How."""
            claims.add("fig", f"{finding} is so", tables["a"] == 1, needed=1)

        return judged

    second, first = declare("2", "a"), declare("1", "a", "b")
    tables = {"a": pd.Series([1]), "b": pd.Series([2])}
    assert first(tables, E).table.claim.tolist() == ["1 is so"] and second.__doc__ == "How."
    assert all_verdicts(tables, E).table.finding.tolist() == ["2", "1"]
    assert all_verdicts({"a": tables["a"]}, E).table.finding.tolist() == ["2"]


def test_findings_are_judged_and_measured_in_their_order(published):
    e, tables = published
    assert all_verdicts(tables, e).table.finding.unique().tolist() == list(FINDINGS)
    measured = [unmask.tables.TABLES[name].__module__ for name in unmask.tables.known_tables()]
    modules = [module.__name__ for module in FINDINGS.values()]
    assert list(dict.fromkeys(measured)) == modules


def test_verdicts_are_given_of_the_tables_that_are_there(published):
    e, tables = published

    def judged(*names):
        return all_verdicts({name: tables[name] for name in names}, e).table

    chains = judged("levels", "segments", "pairs")
    with_controls = judged("levels", "segments", "pairs", "controls")
    assert set(chains.finding) == set(with_controls.finding) == {"0", "1"}
    assert set(with_controls.figure) - set(chains.figure) == {"fig-controls", "fig-mask"}
    same = with_controls[with_controls.claim.isin(chains.claim)]
    assert chains.verdict.tolist() == same.verdict.tolist()
    more = "gaps", "next_cuts", "retraining_methods"
    assert set(judged("levels", *more).finding) == {"0", "4"}
    assert set(judged("levels", *more, "landscape").finding) == {"0", "4", "picture"}
    assert len(judged()) == 0


def test_no_verdict_is_left_out_of_the_page():
    shown = ticket_verdicts()
    page, count = shown._repr_html_(), len(shown.table)
    assert page.count("<tr>") == count + 1 and page.count('class="statistic"') == 2 * count
    assert repr(shown).count("\n") == count - 1


def test_the_overview_has_a_line_for_each_claim_and_a_dash_where_there_is_no_verdict():
    one, other = ticket_verdicts(), ticket_verdicts(seeds=2)
    other.table, count = other.table.iloc[:-1], len(one.table)
    pages = {"0": "pages/tickets.html", "1": "pages/connectivity.html"}
    headings = {"0": "Tickets exist.", "1": "They are connected."}
    page = Overview({"here": one, "there": other}, pages, headings)._repr_html_()
    assert page.count("<tr>") == 1 + 1 + count  # the head, what the paper reports, the claims
    assert page.count('class="verdict"') == 2 * count - 1 and page.count("<td>–</td>") == 1
    assert page.count('<a href="pages/tickets.html#fig-') == count
    assert headings["0"] in page and headings["1"] not in page


def test_every_claim_leads_to_a_figure_of_its_page(published):
    e, tables = published
    pages = dict(zip(FINDINGS, sorted((ROOT / "notebooks").glob("0*.ipynb"))))
    shown = {
        finding: {
            cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            for cell in nbformat.read(page, 4).cells
        }
        for finding, page in pages.items()
    }
    for row in all_verdicts(tables, e).rows:
        assert row["figure"] in shown[row["finding"]], row["claim"]
