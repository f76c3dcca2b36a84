"""Verdicts from hand-made tables whose answers are known."""

import pandas as pd
import pytest

from unmask import claims
from unmask.experiments import experiment

E = experiment("miniature", levels=3, rewind_steps=(0, 10), seeds=1)
DENSITY = [1.0, 0.4, 0.15, 0.1]


def levels(late=(0.04, 0.04, 0.045, 0.10), early=(0.04, 0.10, 0.12, 0.20), seeds=6):
    return pd.DataFrame([
        {"seed": seed, "rewind_step": step, "level": level, "density": DENSITY[level], "test_error": error}
        for seed in range(seeds) for step, errors in ((0, early), (10, late)) for level, error in enumerate(errors)])


def segments(table, bump):
    """A midpoint that lies `bump(rewind_step, level)` above the mean of the ends."""
    rows = []
    for (seed, step), chain in table.groupby(["seed", "rewind_step"]):
        errors = chain.set_index("level").test_error
        for level in range(3):
            ends = errors[level], errors[level + 1]
            middle = sum(ends) / 2 + bump(step, level)
            rows += [{"seed": seed, "rewind_step": step, "level": level, "next_level": level + 1, "norms": norms, "t": t,
                      "test_error": error, "train_error": error / 2, "train_loss": 3 * error} for norms in ("interpolated", "re-estimated")
                     for t, error in ((0, ends[0]), (0.5, middle), (1, ends[1]))]
    return pd.DataFrame(rows)


def pairs(table, barrier):
    return pd.DataFrame([{"seed": seed, "rewind_step": step, "level": a, "other": b, "barrier": barrier(step, a, b)}
                         for (seed, step), _ in table.groupby(["seed", "rewind_step"])
                         for a in range(4) for b in range(a + 1, 4)])


def controls(error=0.3, barrier=0.5, seeds=6):
    kinds = {"imp": (0.045, 0.0)} | {kind: (error, barrier) for kind in (
        "random", "shuffled", "reinitialized", "one-shot")}
    return pd.DataFrame([{"seed": seed, "kind": kind, "level": 2, "density": 0.15, "test_error": e, "previous_error": 0.04,
                          "barrier": b} for seed in range(seeds) for kind, (e, b) in kinds.items()])


PAPER = dict(bump=lambda step, level: 0.6 if step == 0 or level == 2 else 0.0,
             barrier=lambda step, a, b: 0.6 if step == 0 or b == 3 else 0.0)


def verdicts(bump, barrier, others=None):
    table = levels()
    others = controls() if others is None else others
    made = claims.linear_connectivity(table, segments(table, bump), pairs(table, barrier), others, E)
    return made.table.verdict.tolist()


def test_matching_is_relative_to_the_same_seeds_dense_error():
    table = levels()
    table.loc[(table.seed == 0) & (table.level == 0), "test_error"] = 0.10
    judged = claims.with_matching(table, E).set_index(["seed", "rewind_step", "level"])
    assert judged.matching[0, 0, 1] and not judged.matching[1, 0, 1]
    assert judged.excess[1, 0, 1] == pytest.approx(0.06)


def test_the_quoted_densities_agree_with_what_matches():
    exact = levels(late=(0.015, 0.025, 0.025, 0.025), early=(0.015, 0.025, 0.026, 0.1))
    assert 0.025 - 0.015 > E.epsilon == 0.01  # by rounding
    numbers = claims.tickets_in_numbers(exact, E)
    assert (numbers["ticket_density"], numbers["early_lost_density"]) == pytest.approx((10, 15))


@pytest.mark.parametrize("wrong", range(100, 400, 7))
def test_rounding_does_not_decide_at_a_threshold(wrong):
    """Of 10,000 samples: exactly epsilon worse is matching, a barrier of exactly the threshold is not connected."""
    table = pd.DataFrame({"seed": 0, "level": (0, 1, 2), "test_error": [count / 10_000 for count in (wrong, wrong + 100, wrong + 101)]})
    assert claims.is_matching(table, table, E).tolist() == [True, True, False]
    ends = wrong / 10_000, (wrong + 51) / 10_000
    barriers = pd.Series([(2 * wrong + 51 + above) / 20_000 - sum(ends) / 2 for above in (399, 400, 401)])
    assert claims.is_connected(barriers, E).tolist() == [True, False, False]


def test_the_papers_picture_holds_throughout():
    assert verdicts(**PAPER) == ["holds"] * 8
    assert claims.winning_tickets(levels(), controls(), E).table.verdict.tolist() == ["holds"] * 6


def test_barriers_everywhere_fail_what_they_should():
    made = verdicts(lambda step, level: 0.6, lambda *_: 0.6)
    assert made[:2] == ["fails", "fails"] and made[2] == "not decidable"  # nothing is connected
    assert made[3] == "holds" and made[4] == "fails"


def test_no_barrier_anywhere_fails_what_it_should():
    made = verdicts(lambda step, level: 0.0, lambda *_: 0.0)
    assert made[0] == "fails" and made[1] == "holds" and made[2] == "fails" and made[3] == "fails"


def test_controls_as_good_as_imp_fail_the_claims_that_they_are_not():
    made = verdicts(**PAPER, others=controls(0.045, 0.0))
    assert made[6:] == ["fails", "fails"]
    assert claims.winning_tickets(levels(), controls(0.045, 0.0), E).table.verdict.tolist()[2:] == ["fails"] * 4


def test_early_rewinding_is_judged_where_late_rewinding_matches():
    as_good = claims.winning_tickets(levels(early=(0.04, 0.04, 0.045, 0.04)), controls(), E).table
    assert as_good.verdict[1] == "fails" and as_good.cases[1] == 6  # level 2 of six seeds; level 3 is lost to both


def test_few_cases_are_not_decidable():
    table = levels(seeds=1)
    made = claims.linear_connectivity(table, segments(table, PAPER["bump"]), pairs(table, PAPER["barrier"]),
                                      controls(seeds=1), E).table
    assert made.verdict.tolist()[-1] == "not decidable" and made.cases.tolist()[-1] == 1


def test_contingency_and_exceptions_count_and_name():
    table = levels(seeds=2)
    judged = claims.successive(table, segments(table, lambda step, level: 0.0), E)
    counts = claims.contingency(judged)
    assert counts.loc[("all", "matching"), "connected"] == 4 and counts.loc[("all", "not matching")].sum() == 8
    assert counts.loc[10].to_numpy().sum() == counts.loc[0].to_numpy().sum() == 6
    odd = claims.exceptions(judged)
    assert set(odd.which) == {"connected, not matching"}
    assert len(odd) == ((judged.connected) & ~judged.matching).sum()
    # rewound to 0, level 0 to 1: half the difference of the ends is a barrier of 3 points even on a straight line
    assert not judged.set_index(["seed", "rewind_step", "level"]).connected[0, 0, 0]


def test_barriers_of_train_error_and_loss_stand_beside_the_headline():
    table = levels(seeds=1)
    judged = claims.successive(table, segments(table, lambda step, level: 0.6), E)
    assert judged.train_error_barrier.to_numpy() == pytest.approx(judged.barrier.to_numpy() / 2)
    assert judged.train_loss_barrier.to_numpy() == pytest.approx(3 * judged.barrier.to_numpy())
    shown = claims.barriers_by_metric(judged)
    assert shown.loc[(0, "not matching"), "test error (points)"] == pytest.approx(60)


def test_no_verdict_is_left_out_of_the_page():
    table = claims.winning_tickets(levels(), controls(), E)
    page = table._repr_html_()
    assert page.count("<tr>") == len(table.table) + 1 and page.count('class="statistic"') == 2 * len(table.table)
    assert repr(table).count("\n") == len(table.table) - 1


def test_the_overview_has_a_line_for_each_claim_and_a_dash_where_there_is_no_verdict():
    one, other = claims.winning_tickets(levels(), controls(), E), claims.winning_tickets(levels(seeds=2), controls(), E)
    other.table = other.table.iloc[:-1]
    shown = claims.Overview({"here": one, "there": other}, "pages/")
    page = shown._repr_html_()
    assert page.count("<tr>") == 1 + 1 + len(one.table)  # the head, what the paper reports, the claims
    assert page.count('class="verdict"') == 2 * len(one.table) - 1 and page.count("<td>–</td>") == 1
    assert page.count('<a href="pages/01_winning_tickets.html#fig-') == len(one.table)
    assert claims.REPORTED["0"] in page and claims.REPORTED["1"] not in page


def test_every_claim_leads_to_a_figure_of_its_page():
    import nbformat
    from pathlib import Path

    made = claims.winning_tickets(levels(), controls(), E).rows + claims.linear_connectivity(
        levels(), segments(levels(), PAPER["bump"]), pairs(levels(), PAPER["barrier"]), controls(), E).rows
    for row in made:
        page = Path(__file__).parent.parent / "notebooks" / f"{claims.PAGES[row['finding']]}.ipynb"
        names = [cell.metadata.get("mystnb", {}).get("figure", {}).get("name") for cell in nbformat.read(page, 4).cells]
        assert row["figure"] in names


def gap_table(retrained=0.15, seeds=6):
    stages = {"solution": 0.2, "pruned": 0.0, "rewound": 0.3, "retrained": retrained}
    return pd.DataFrame([{"seed": seed, "rewind_step": step, "level": level, "density": DENSITY[level], "stage": stage,
                          "below": below} for seed in range(seeds) for step in (0, 10) for level in (1, 2, 3)
                         for stage, below in stages.items()])


def cut_table(continued=(2.0, 0.3), seeds=6):
    cuts = {"retrained": (1.0, 0.1), "continued": continued, "one-shot": (3.0, 0.6)}
    return pd.DataFrame([{"seed": seed, "level": level, "density": DENSITY[level], "cut": cut, "length": length,
                          "test_error": error} for seed in range(seeds) for level in (1, 2, 3)
                         for cut, (length, error) in cuts.items() if level > 1 or cut != "continued"])


def method_table(fine_tuned=(0.2, 0.01), seeds=6):
    kinds = {"imp": (0.045, 0.15), "lr-rewound": (0.045, 0.12), "fine-tuned": fine_tuned}
    return pd.DataFrame([{"seed": seed, "level": level, "density": DENSITY[level], "kind": kind, "test_error": error,
                          "below": below, "barrier": 0.0} for seed in range(seeds) for level in (1, 2)
                         for kind, (error, below) in kinds.items()])


def test_a_single_level_has_no_cut_without_retraining_to_compare_with():
    cuts = cut_table()
    assert len(claims.cuts_compared(cuts[cuts.cut != "continued"])) == 0 < len(claims.cuts_compared(cuts))


def retraining_verdicts(gaps=None, cuts=None, methods=None):
    tables = [gap_table() if gaps is None else gaps, cut_table() if cuts is None else cuts,
              method_table() if methods is None else methods]
    return claims.role_of_retraining(levels(), *tables, E).table.verdict.tolist()


def test_the_papers_role_of_retraining_holds_throughout():
    assert retraining_verdicts() == ["holds"] * 8


def test_each_claim_on_retraining_can_fail():
    assert retraining_verdicts(gaps=gap_table(retrained=0.09)) == ["holds", "fails"] + ["holds"] * 6
    assert retraining_verdicts(cuts=cut_table((0.9, 0.1)))[2:4] == ["fails", "fails"]
    assert retraining_verdicts(methods=method_table((0.045, 0.15)))[4:] == ["holds", "fails", "holds", "fails"]


def test_methods_are_judged_where_weight_rewinding_matches_and_is_sparse():
    made = claims.role_of_retraining(levels(), gap_table(), cut_table(), method_table(), E).table
    assert made.cases.tolist()[-2:] == [6, 6]  # level 2 only: level 1 keeps more than the ticket density
    none = method_table().assign(test_error=0.9)
    assert retraining_verdicts(methods=none)[-2:] == ["not decidable", "not decidable"]


def test_a_gap_is_refilled_from_the_presets_share_on():
    judged = claims.with_refilled(pd.DataFrame({"below": [0.0999, 0.1, 0.3]}), E)
    assert judged.refilled.tolist() == [False, True, True]


def picture(middle, table, spread=0.0):
    """Segments of seed 0 from level 1 to 2, as the plane's rows have them; `middle` is the error half-way, by step."""
    rows = []
    for step in middle:
        errors = table[(table.seed == 0) & (table.rewind_step == step)].set_index("level").test_error
        rows += [{"seed": 0, "rewind_step": step, "plane": "solutions", "level": 1, "next_level": 2, "what": "segment",
                  "t": t, "x": t, "y": 0.0, "test_error": error}
                 for t, error in ((0.0, errors[1]), (0.5, middle[step]), (1.0, errors[2] + spread))]
    return pd.DataFrame(rows)


def test_the_picture_is_judged_by_its_segments():
    table = levels()

    def judged(middle):
        return claims.error_landscape(picture(middle, table), table, E)

    made = judged({0: 0.7, 10: 0.04})
    assert made.table.verdict.tolist() == ["holds"] * 2 and set(made.table.seeds) == {1}
    assert judged({0: 0.1, 10: 0.04}).table.verdict.tolist() == ["holds", "fails"]
    assert judged({0: 0.7, 10: 0.5}).table.verdict.tolist() == ["fails", "holds"]
    only, late = E.but(rewind_steps=(10,)), table[table.rewind_step == 10]  # the first is the last: nothing to set against it
    assert claims.error_landscape(picture({10: 0.04}, late), late, only).table.verdict.tolist() == ["holds"]


def test_verdicts_are_given_of_the_tables_that_are_there():
    table = levels()
    tables = {"levels": table, "segments": segments(table, PAPER["bump"]), "pairs": pairs(table, PAPER["barrier"])}
    chains = claims.all_verdicts(tables, E).table
    first = claims.all_verdicts(tables | {"controls": controls()}, E).table
    assert set(chains.finding) == set(first.finding) == {"0", "1"}
    assert set(first.figure) - set(chains.figure) == {"fig-controls", "fig-mask"}
    assert chains.verdict.tolist() == first[first.claim.isin(chains.claim)].verdict.tolist()
    tables |= {"gaps": gap_table(), "next_cuts": cut_table(), "retraining_methods": method_table()}
    assert set(claims.all_verdicts(tables, E).table.finding) == {"0", "1", "4"}
    tables |= {"landscape": picture({0: 0.7, 10: 0.04}, table)}
    assert set(claims.all_verdicts(tables, E).table.finding) == {"0", "1", "4", "picture"}
    assert len(claims.all_verdicts({}, E).table) == 0
