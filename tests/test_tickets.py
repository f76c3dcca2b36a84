"""Finding 0: verdicts and numbers from hand-made tables."""

import pytest
from hand_made import E, controls, levels

from unmask.findings import tickets


def judged(others=None, **errors):
    tables = {"levels": levels(**errors), "controls": controls() if others is None else others}
    return tickets.verdicts(tables, E).table


def test_the_papers_picture_holds_throughout():
    assert judged().verdict.tolist() == ["holds"] * 6


def test_no_sparse_level_that_matches_fails_the_first_claim_and_leaves_nothing_to_compare():
    found = judged(late=(0.04, 0.04, 0.2, 0.2), others=controls().assign(test_error=0.2))
    assert found.verdict.tolist() == ["fails"] + ["not decidable"] * 5


def test_controls_as_good_as_imp_fail_the_claims_that_they_are_not():
    assert judged(controls(0.045, 0.0)).verdict.tolist()[2:] == ["fails"] * 4


def test_early_rewinding_is_judged_where_late_rewinding_matches():
    found = judged(early=(0.04, 0.04, 0.045, 0.04))
    # level 2 of six seeds; level 3 is lost to late rewinding
    assert found.verdict[1] == "fails" and found.cases[1] == 6


def test_the_quoted_densities_agree_with_what_matches():
    by_epsilon = levels(late=(0.015, 0.025, 0.025, 0.025), early=(0.015, 0.025, 0.026, 0.1))
    assert 0.025 - 0.015 > E.epsilon == 0.01  # by rounding
    numbers = tickets.numbers({"levels": by_epsilon}, E)
    densities = numbers["ticket_density"], numbers["early_lost_density"]
    assert densities == pytest.approx((10, 15))
