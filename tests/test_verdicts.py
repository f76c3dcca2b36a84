"""What decides: matching, connected, and how the seeds' numbers become verdicts."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from hand_made import E, SEEDS, controls, levels
from scipy import stats
from two_runs import disagreements

import unmask
from unmask import verdicts
from unmask.findings import FINDINGS, tickets
from unmask.verdicts import FAILS, HOLDS, MEASURED, SYMBOLS, UNDECIDED, Claims, Evidence, Verdicts
from unmask.verdicts import all_verdicts, captioned, holm, interval, is_connected, is_matching
from unmask.verdicts import restricted

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def published():
    """The experiment and the tables of a preset for which all were published."""
    return unmask.published("mnist_lenet")[:2]


def evidence(values, claim="it is so", **options):
    values = values if isinstance(values, pd.Series) else pd.Series(values, dtype=float)
    defaults = dict(judged=True, bounds=(), spread=0.0, headline="")
    return Evidence("1", "fig-a", claim, "points", values, **defaults | options)


def test_where_no_finding_was_imported_nobody_judges_and_that_is_said(monkeypatch, published):
    monkeypatch.setattr(verdicts, "_JUDGES", [])
    e, tables = published
    with pytest.raises(unmask.UnmaskError, match="import unmask.findings"):
        all_verdicts(tables, e)


# Matching


def test_matching_is_relative_to_the_same_seeds_dense_error():
    table = levels()
    table.loc[(table.seed == 0) & (table.level == 0), "test_error"] = 0.10
    judged = verdicts.with_matching({"levels": table}, E)
    judged = judged.set_index(["seed", "rewind_step", "level"])
    assert judged.matching[0, 0, 1] and not judged.matching[1, 0, 1]
    assert judged.excess[1, 0, 1] == pytest.approx(0.06)


def test_the_reference_is_the_mean_of_the_dense_run_and_of_those_retrained():
    again = pd.DataFrame(
        {"seed": [0, 0, 1, 1], "again": [0, 1] * 2, "test_error": [0.05, 0.06] * 2}
    )
    tables = {"levels": levels(seeds=2), "references": again}
    assert verdicts.reference_errors(tables).tolist() == pytest.approx([0.05, 0.05])
    # of 0.04, 0.05 and 0.06: a variance of 1e-4 within each seed
    assert verdicts.retraining_spread(tables) == pytest.approx(0.01)
    assert verdicts.retraining_spread({"levels": levels()}) == 0


@pytest.mark.parametrize("wrong", range(100, 400, 7))
def test_rounding_does_not_decide_at_a_threshold(wrong):
    """Of 10,000 samples: exactly epsilon worse is matching, a barrier of exactly the threshold is
    not connected."""
    errors = [count / 10_000 for count in (wrong, wrong + 100, wrong + 101)]
    table = pd.DataFrame({"seed": 0, "level": (0, 1, 2), "test_error": errors})
    assert is_matching(table, {"levels": table}, E).tolist() == [True, True, False]
    ends = wrong / 10_000, (wrong + 51) / 10_000
    middles = [(2 * wrong + 51 + above) / 20_000 for above in (399, 400, 401)]
    barriers = pd.Series(middles) - sum(ends) / 2
    assert is_connected(barriers, E).tolist() == [True, False, False]


def test_barriers_count_in_decades_of_the_threshold_and_zero_as_half_a_sample():
    found = verdicts.log_barrier(pd.Series([0.2, 0.02, 0.002, 0.0]), E)
    least = np.log10(0.5 / E.test_samples / E.lmc_threshold)
    assert found.tolist() == pytest.approx([1, 0, -1, least])


@pytest.mark.parametrize("error, lost", [(0.5, False), (0.89, False), (0.893, True), (0.9, True)])
def test_chance_is_the_most_frequent_class_within_three_standard_errors(error, lost):
    """Of ten equal classes and 10,000 samples: 90 % less 0.9 points."""
    table = levels().assign(test_error=error)
    assert verdicts.is_at_chance(table, {"levels": table}, E).all() == lost
    unequal = table.assign(chance=0.4)
    assert verdicts.is_at_chance(unequal, {"levels": unequal}, E).all()
    # of 400 samples it is 4.5 points
    few = table.assign(tested=400)
    assert verdicts.is_at_chance(few, {"levels": few}, E).all() == (error > 0.855)


def test_seeds_whose_dense_network_is_at_chance_decide_nothing():
    table = levels()
    table.loc[table.seed > 1, "test_error"] = 0.9
    tables = {"levels": table, "controls": controls()}
    assert verdicts.seeds_that_learn(tables, E) == [0, 1]
    shown = tickets.verdicts(tables, E)
    assert all(set(one.values.index) <= {0, 1} for one in shown.evidence)
    assert set(shown.table.verdict) <= {UNDECIDED, MEASURED}


# The rule


def test_the_interval_is_the_t_interval_of_the_mean():
    values = pd.Series([1.0, 2.0, 4.0, 8.0])
    mean, low, high = interval(values)
    expected = stats.t.interval(0.9, 3, loc=3.75, scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((3.75, *expected))


def test_the_spread_is_at_least_that_of_retraining():
    mean, low, high = interval(pd.Series([1.0, 1.0, 1.0, 1.0]), spread=2.0)
    half = stats.t.ppf(0.95, 3) * 2 / 2
    assert (mean, low, high) == pytest.approx((1, 1 - half, 1 + half))


@pytest.mark.parametrize(
    "values, options, verdict",
    [
        ([1.0, 1.2, 0.9], {}, HOLDS),
        ([-1.0, -1.2, -0.9], {}, FAILS),
        ([1.0, -1.2, 0.9], {}, UNDECIDED),
        ([1.0, 1.0], {}, UNDECIDED),  # two seeds are too few, however much they agree
        ([], {}, UNDECIDED),
        ([1.0, 1.2, np.nan, 0.9], {}, HOLDS),  # a seed without a case is left out
        ([1.0, 1.2, 0.9], {"spread": 3.0}, UNDECIDED),
        ([1.0, 1.2, 0.9], {"judged": False}, MEASURED),
        ([1.0, 1.2, 0.9], {"bounds": [0]}, HOLDS),  # could only be more
        ([-1.0, -1.2, -0.9], {"bounds": [0]}, UNDECIDED),  # could be more than 0
    ],
)
def test_a_verdict_is_where_the_interval_lies(values, options, verdict):
    assert evidence(values, **options).verdict == verdict


def test_cases_of_one_seed_are_not_counted_as_several():
    """A hundred cases of each of two seeds are two numbers."""
    table = pd.DataFrame({"seed": [0] * 100 + [1] * 100})
    values = pd.Series([1.0] * 100 + [3.0] * 100)
    assert verdicts.by_seed(table, values).to_dict() == {0: 1.0, 1: 3.0}


def test_the_sign_test_is_exact_and_two_sided():
    assert evidence([1.0] * 5).sign_p == pytest.approx(2 / 2**5)
    assert evidence([1.0] * 9 + [-1.0]).sign_p == pytest.approx(2 * 11 / 2**10)
    assert evidence([0.0, 0.0]).sign_p == 1


def test_holm_corrects_for_the_number_of_headlines_and_a_pair_needs_both():
    def with_p(name, p):
        one = evidence([0.0, 1.0, 2.0], headline=name)
        type(one).p, one.__class__ = one.__class__.p, type("Fixed", (Evidence,), {"p": p})
        return one

    found = holm([with_p("1", 0.01), with_p("1", 0.03), with_p("2", 0.001), with_p("3", 0.02)])
    # sorted: 0.001 * 3, 0.02 * 2, and 0.03 * 1 that may not be less than the one before
    assert found == pytest.approx({"2": 0.003, "3": 0.04, "1": 0.04})


def test_the_rule_is_wrong_as_often_as_it_says():
    """Where M is 0 on average, one claim in twenty holds and one in twenty fails; here with 2000
    draws of ten seeds."""
    draws = np.random.default_rng(0).normal(size=(2000, 10))
    found = [evidence(row).verdict for row in draws]
    for verdict in (HOLDS, FAILS):
        assert abs(found.count(verdict) - 100) < 3 * (2000 * 0.05 * 0.95) ** 0.5


def test_a_bound_and_an_empty_claim_are_told_in_words():
    assert evidence([1.0, 1.5, 2.0], bounds=[2]).words().startswith("≥ 1.50 [")
    assert evidence([]).words() == "no seed has a case"
    assert "nan" not in evidence([1.0]).words()


# Two runs of the same seeds


def runs(moved, seeds=10, live=2, draws=0):
    """A published run of many seeds, and a live one of the first, moved by some standard
    deviations and by as much noise as retraining may make."""
    noise = np.random.default_rng(draws).normal(size=(2, seeds))
    there = Verdicts([evidence(pd.Series(5 + noise[0]))])
    here = Verdicts([evidence(pd.Series(5 + noise[1] + moved)[:live])])
    part = Verdicts([evidence(there.evidence[0].values[:live])])
    return here, part, there


def test_two_runs_that_differ_by_retraining_alone_are_seldom_told_apart():
    alarms = sum(
        bool(disagreements(*runs(0, draws=n)[:2], False, runs(0, draws=n)[2])) for n in range(2000)
    )
    assert alarms <= 10  # 2 are expected of 2000, if retraining is all there is


def test_a_planted_error_is_told_apart():
    """Moved by ten standard deviations, as a wrong mask or rewind point moves errors."""
    here, part, there = runs(-10)
    assert len(disagreements(here, part, False, there)) == 1


def test_on_the_same_processor_the_numbers_have_to_be_the_same_to_the_bit():
    here, part, there = runs(0)
    same = Verdicts([evidence(part.evidence[0].values.copy())])
    assert disagreements(same, part, True, there) == []
    assert len(disagreements(here, part, True, there)) == 1


def test_what_holds_in_one_run_may_not_fail_in_the_other():
    wide = Verdicts([evidence([-50.0, 50.0, 100.0, -100.0])])
    holds, fails = (Verdicts([evidence([a, 1.1 * a, 0.9 * a])]) for a in (1.0, -1.0))
    assert len(disagreements(holds, fails, False, wide)) == 1
    assert disagreements(holds, holds, False, wide) == []


def test_of_another_run_the_same_seeds_steps_and_levels_are_compared():
    table = levels(seeds=4)
    to = {"levels": table[(table.seed < 2) & (table.rewind_step == 10)]}
    found = restricted({"levels": table, "controls": controls()}, to)
    assert list(found) == ["levels"] and len(found["levels"]) == len(to["levels"])


# Judges


def test_verdicts_are_given_in_the_order_in_which_they_were_declared(monkeypatch):
    monkeypatch.setattr(verdicts, "_JUDGES", [])

    def declare(finding, *needs):
        @verdicts.judge(finding, needs=needs)
        def judged(claims, tables, e):
            """How."""
            claims.add("fig", f"{finding} is so", "points", pd.Series([1.0]))

        return judged

    second, first = declare("2", "levels"), declare("1", "levels", "b")
    tables = {"levels": levels(), "b": pd.Series([2])}
    assert first(tables, E).table.claim.tolist() == ["1 is so"] and second.__doc__ == "How."
    assert all_verdicts(tables, E).table.finding.tolist() == ["2", "1"]
    assert all_verdicts({"levels": levels()}, E).table.finding.tolist() == ["2"]


def test_findings_are_judged_and_measured_in_their_order(published):
    e, tables = published
    found = all_verdicts(tables, e).table.finding.unique().tolist()
    assert found == [name for name in FINDINGS if name != "picture"]  # a picture decides nothing
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
    assert len(judged()) == 0


@pytest.mark.parametrize("name", ["miniature", "cifar10_resnet8_jpeg"])
def test_what_a_table_shows_is_said_of_the_seeds_that_it_has(name):
    e, tables, _ = unmask.published(name)
    kept = list(e.all_seeds)[:2]
    whole = {one.claim: one.values for one in all_verdicts(tables, e).evidence}
    fewer = 0
    for table in tables.keys() - unmask.results.COMPARED_WITH:
        part = tables | {table: tables[table][tables[table].seed.isin(kept)]}
        for one in all_verdicts(part, e).evidence:
            said = {*one.values.index}, {*whole[one.claim].index}
            assert said[0] in (said[1], said[1] & {*kept})
            # and they say of each seed what they say of it beside others
            pd.testing.assert_series_equal(one.values, whole[one.claim][one.values.index])
            fewer += len(one.values) < len(whole[one.claim])
    assert fewer > 20


def test_no_claim_is_made_twice_and_every_finding_but_the_first_has_a_headline(published):
    e, tables = published
    shown = all_verdicts(tables, e)
    assert not shown.table.claim.duplicated().any()
    assert {one.headline for one in shown.evidence} == {"", "1", "2", "3", "4"}


def test_no_verdict_is_left_out_of_the_page():
    tables = {"levels": levels(), "controls": controls()}
    shown = tickets.verdicts(tables, E)
    head, _, rows = shown._repr_html_().partition("<tbody>")
    count = len(shown.table)
    assert rows.count("<tr>") == count and rows.count('class="verdict ') == count
    assert repr(shown).count("\n") == count - 1
    for verdict, number in shown.table.verdict.value_counts().items():  # in the caption
        assert f"{SYMBOLS[verdict]} {number} {verdict.removesuffix('s')}" in head


def test_a_table_on_a_page_has_a_caption_one_row_of_headers_and_the_digits_it_needs():
    index = pd.Index(["a", "b"], name="mask")
    table = pd.DataFrame({"error": [0.5, 12.25], "level": [1, 2], "share": [np.nan, 1000.0]}, index)
    page = captioned(table, "What there is.").to_html()
    assert "<caption>What there is.</caption>" in page and page.count("<th ") == 4
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert cells == ["a", "0.50", "1", "–", "b", "12.25", "2", "1,000"]
    (left,) = re.findall(r"col(\d) {\s*text-align: left", page)
    assert left == "0"  # words; numbers are at the right
    assert captioned(table[:0], "Nothing.").to_html().count("<th ") == 4


def test_claims_leave_out_seeds_that_decide_nothing_and_those_without_a_number():
    claims = Claims("0", {"levels": levels()}, E)
    claims.add("fig", "it is so", "points", pd.Series({0: 1.0, 1: np.nan, SEEDS + 1: 5.0}))
    assert claims.evidence[0].values.to_dict() == {0: 1.0}


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
    for one in all_verdicts(tables, e).evidence:
        assert one.figure in shown[one.finding], one.claim
