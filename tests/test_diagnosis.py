"""The diagnosis of a network: answers agree with what they are made of, and say what is missing."""

import json
import math
import re
from types import SimpleNamespace

import hand_made
import numpy as np
import pandas as pd
import pytest
import torch

import unmask
from unmask.barriers import distance, moved
from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.findings import diagnosis, limit
from unmask.findings.diagnosis import ADAPTIVE, NOISE, PRUNING, Diagnosis, bracket, candidates
from unmask.lab import Lab
from unmask.train import Start, generator
from unmask.verdicts import FAILS, HOLDS, UNDECIDED, area, barrier


@pytest.fixture(scope="module")
def asked(smoke_store):
    """What `smoke` is told, with thresholds that let every question be asked."""
    e = experiment("smoke", first_seed=1, lmc_threshold=0.04)
    found = Diagnosis(e, smoke_store, jobs=1)
    return found, list(found.run())


def row(table, **keys):
    for name, value in keys.items():
        table = table[table[name] == value]
    (found,) = table.itertuples()
    return found


def test_five_questions_are_answered_from_the_first_seed(asked):
    found, answers = asked
    assert [answer.question for answer in answers][0] == "Does the network learn?"
    assert len(answers) == 5 and answers == found.answers
    assert answers[0].verdict == HOLDS and "1,876 weights" in answers[0].words
    assert all((table.seed == 1).all() for table in found.tables.values())
    steps = [
        int(re.search(r"\(([\d,]+) training", one.cost)[1].replace(",", "")) for one in answers
    ]
    assert steps[0] == found.e.steps and steps == sorted(steps)


def test_barriers_are_those_of_pairs_that_are_trained_by_hand(asked):
    found, _ = asked
    lab, e = found.lab, found.lab.experiment
    # the noise of SGD from the start: the dense run, and another order of the data
    other = Start(lab.initial(1), lab.dense_mask, (1, "order", 0, "second"))
    path = lab.path(lab.level(1, 0, 0).state, lab.trained([other], 0)[0])
    assert row(found.tables["stability"], rewind_step=0, length=NOISE).barrier == barrier(path)
    # apart by what the first mask of IMP takes from the rewind point
    pairs = found.tables["stability"]
    step = int(pairs[pairs.length == PRUNING].rewind_step.iloc[0])
    here, mask = lab.rewind_point(1, step), lab.level(1, step, 1).mask
    gone = torch.cat([here[name][~kept] for name, kept in mask.items()])
    measured = row(pairs, rewind_step=step, length=PRUNING)
    assert measured.step_length == pytest.approx(float(gone.norm()), rel=1e-5)
    draws = generator(1, "perturbation", step, 0, 0)
    along = unmask.barriers.direction(lab.dense_mask, draws)
    halves = [moved(here, along, by * measured.step_length / 2) for by in (1, -1)]
    assert distance(*halves) == pytest.approx(float(gone.norm()), rel=1e-4)
    orders = (1, "order", 0), (1, "order", 0, "second")
    starts = [Start(half, lab.dense_mask, order) for half, order in zip(halves, orders)]
    assert measured.barrier == barrier(lab.path(*lab.trained(starts, step)))
    assert e.rewind_steps == candidates(e)


def test_cuts_are_measured_against_the_dense_solution(asked):
    found, _ = asked
    lab, cuts = found.lab, found.tables["cuts"]
    level = int(cuts.level.iloc[0])
    dense = lab.level(1, 0, 0)
    mask = unmask.pruning.prune_magnitude(dense.state, dense.mask, lab.survivors(level))
    path = lab.path(dense.state, unmask.pruning.apply(mask, dense.state))
    projection = row(cuts, level=level, weights="projection")
    assert projection.barrier == barrier(path) and projection.density == lab.density(level)
    assert projection.solution_error == lab.evaluate(dense.state).error
    assert set(cuts.weights) == {"projection", "fine-tuned"}


def test_the_theory_is_that_of_the_exact_spectrum_if_lanczos_takes_enough_steps(asked, monkeypatch):
    found, answers = asked
    lab, quick = found.lab, found.tables["dense_limits"]
    monkeypatch.setattr(limit, "STEPS", 200)
    monkeypatch.setattr(limit, "PROBES", 1)
    many = limit.dense_limits(lab, 1)
    solution = limit.Solution(lab, 1, 0)
    values = np.linalg.eigvalsh(solution.exact("hessian"))[None]
    exact = unmask.curvature.Spectrum(values, np.ones_like(values))
    for gradient in (False, True):
        rises = limit.first_order_rises(
            solution.gradient(), solution.weights, solution.order("magnitude")
        )
        ratio = limit.max_pruning_ratio(
            exact,
            limit.magnitude_distances(solution.weights),
            lab.experiment.loss_height,
            rises if gradient else 0.0,
        )
        here = dict(mask="magnitude", reading="clipped", gradient=gradient)
        assert row(many, steps=200, **here).ratio == pytest.approx(ratio[0], abs=0.01)
        rows = quick[(quick["mask"] == "magnitude") & (quick.gradient == gradient)].ratio
        assert rows.min() <= ratio[0] <= rows.max()
    low, high = quick.query("mask == 'magnitude' and not gradient").ratio.agg(["min", "max"])
    assert f"lets {low:.0%} to {high:.0%} of the weights go" in answers[3].words


def test_vectors_of_a_large_network_are_fewer(asked, monkeypatch):
    found, _ = asked
    monkeypatch.setattr(limit, "AT_MOST", 8 * limit.PROBES * found.lab.total * 6.5)
    assert set(limit.dense_limits(found.lab, 1).steps) == {3, 6}


def test_what_torch_cannot_differentiate_twice_is_left_out(store, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        """
import torch

def network():
    flat = torch.nn.Flatten()
    return torch.nn.Sequential(flat, torch.nn.Linear(40, 10), torch.nn.RReLU())
"""
    )
    monkeypatch.chdir(tmp_path)
    found = Diagnosis(experiment("smoke", network="mine.py:network", epsilon=0.9), store, jobs=1)
    # as of a network that learned, whatever it did
    monkeypatch.setattr(diagnosis, "is_at_chance", lambda *_: np.array([False]))
    answer = list(found.run())[3]
    assert "fine-tuned for" in answer.words and "no curvature of this network" in answer.words
    assert answer.verdict == HOLDS and "dense_limits" not in found.tables


def test_the_check_is_the_chain_that_imp_trains(asked):
    found, _ = asked
    lab, below_first = found.lab, bracket(found.tables, found.e)
    for level in found.tables["imp_levels"].itertuples():
        assert level.rewind_step in below_first
        ends = [lab.level(1, level.rewind_step, at).state for at in (level.level - 1, level.level)]
        assert level.barrier == barrier(lab.path(*ends))
        assert level.test_error == lab.evaluate(ends[1]).error


def test_a_second_run_trains_nothing_and_says_the_same(asked, monkeypatch):
    found, answers = asked
    monkeypatch.setattr("unmask.train.train", lambda *_, **__: pytest.fail("trained"))
    again = Diagnosis(found.e, found.lab.store, minutes=0)
    assert list(again.run()) == answers
    assert again.record() == found.record()


@pytest.mark.parametrize("first", [0, 1, 5, 8, 9])
def test_bisection_finds_where_stability_begins(store, monkeypatch, first):
    """By a made-up barrier that falls below the threshold at one of nine steps, or at none."""
    e = experiment("smoke")
    steps, found, asked = candidates(e), Diagnosis(e, store, minutes=0), []

    def measured(name, *cases):
        asked.extend(cases)
        rows = [(at, length, 0.001 if at in steps[first:] else 0.5) for at, length in cases]
        rows = pd.DataFrame(rows, columns=["rewind_step", "length", "barrier"])
        found.tables[name] = pd.concat([found.tables.get(name), rows], ignore_index=True)
        return found.tables[name]

    monkeypatch.setattr(found, "measure", measured)
    found._steps()
    assert len(steps) == 9
    expected = [steps[at] if 0 <= at < 9 else None for at in (first - 1, first)]
    assert list(bracket(found.tables, e)) == expected
    assert sum(length == PRUNING for _, length in asked) <= 4
    assert [at for at, length in asked if length == NOISE] == [at for at in expected if at]


def tables(first=0.001, below=0.3, error=0.11, levels=(0.001, 0.3, 0.001)):
    """Made up: the dense network errs on 10 %; a bracket of steps 5 and 10."""
    pairs = [(0, NOISE, 0.5), (5, PRUNING, below), (10, PRUNING, first), (5, NOISE, 0.01)]
    pairs = [(*pair, 2.0, 10.0) for pair in pairs]
    names = ["rewind_step", "length", "barrier", "step_length", "start_norm"]
    cuts = [(1, 0.8, 0.1, 0.0), (2, 0.64, 0.1, 0.0), (3, 0.5, 0.12, 0.0), (4, 0.4, 0.1, 0.3)]
    cuts = [(*cut, 0.1) for cut in cuts]
    rows = [(10, 1, 0.8), (5, 1, 0.8), (10, 2, 0.64)]
    rows = [(*one, error, height) for one, height in zip(rows, levels)]
    return {
        "dense_error": pd.DataFrame({"test_error": [0.1], "chance": 0.9, "weights": 1234}),
        "stability": pd.DataFrame(pairs, columns=names),
        "cuts": pd.DataFrame(
            cuts, columns=["level", "density", "test_error", "barrier", "solution_error"]
        ),
        "imp_levels": pd.DataFrame(
            rows, columns=["rewind_step", "level", "density", "test_error", "barrier"]
        ),
    }


def test_answers_are_made_from_the_numbers():
    e, found = experiment("smoke"), tables()
    assert diagnosis.learns(found, e)[:2] == (HOLDS, "yes")
    assert diagnosis.stable_from_start(found, e)[:2] == (FAILS, "no")
    verdict, short, words = diagnosis.rewind_step(found, e)
    assert (verdict, short) == (HOLDS, "step 10")
    assert "by 20% of its length" in words and "25% of training" in words
    assert "0.1 points from step 10 and 30.0 points from step 5" in words
    assert "by the noise of SGD alone, 1.0 points." in words
    verdict, short, words = diagnosis.cut_at_once(found, e)
    assert (verdict, short) == (HOLDS, "36%")  # with half of them, it errs more
    assert "64% of its weights, those of level 2" in words and "With 50% it is not" in words
    assert "theory" not in words
    limits = pd.DataFrame({"mask": "magnitude", "gradient": [False, False, True]})
    for ratios, said in (
        ([0.5, 0.6, 0.3], "50% to 60% of the weights go, depending on how it is read; 30%"),
        ([0.1, 0.6, 0.3], "10% to 60% of the weights go, depending on how it is read: too wide"),
    ):
        limited = found | {"dense_limits": limits.assign(ratio=ratios)}
        assert said in diagnosis.cut_at_once(limited, e)[2]
    assert diagnosis.borne_out(found, e)[:2] == (HOLDS, "3 of 3 levels")


def test_answers_can_be_no():
    e = experiment("smoke")
    assert diagnosis.rewind_step(tables(first=0.3), e)[:2] == (FAILS, "none up to 10")
    verdict, short, _ = diagnosis.borne_out(tables(levels=(0.3, 0.3, 0.001)), e)
    assert (verdict, short) == (UNDECIDED, "2 of 3 levels")
    assert diagnosis.borne_out(tables(levels=(0.3, 0.001, 0.3)), e)[0] == FAILS
    # a level that does not match is not as predicted, connected or not
    assert diagnosis.borne_out(tables(error=0.2), e)[:2] == (UNDECIDED, "1 of 3 levels")
    found = tables()
    found["cuts"] = found["cuts"].query("level > 2")
    assert diagnosis.cut_at_once(found, e)[:2] == (FAILS, "less than 50%")


def published(noise, apart):
    """Of hand-made levels, where IMP matches from step 10 and not from step 0, with barriers of
    pairs from these two steps."""
    pairs = [
        (seed, at, 1, "opposite", length, height)
        for seed in range(hand_made.SEEDS)
        for length, both in ((0.0, noise), (1.0, apart))
        for at, height in zip((0, 10), both)
    ]
    columns = ["seed", "rewind_step", "level", "kind", "length", "barrier"]
    return {"levels": hand_made.levels(), "perturbations": pd.DataFrame(pairs, columns=columns)}


def test_pairs_that_tell_where_imp_matches_are_told_from_those_that_do_not():
    e = hand_made.E.but(probe_levels=(1,))

    def judged(noise, apart):
        found = published(noise, apart)
        by_length = diagnosis.told_apart(found, e).groupby("length")[["auc", "late"]].mean()
        return by_length.T.to_dict("list"), diagnosis.trusted(found, e).table.verdict.tolist()

    perfect, wrong, equal, careful = (0.5, 0.001), (0.001, 0.5), (0.3, 0.3), (0.5, 0.1)
    measured = ["measured"] * 2
    assert judged(equal, perfect) == ({0: [0.5, 1], 1: [1, 0]}, ["holds", "holds", *measured])
    assert judged(perfect, wrong) == ({0: [1, 0], 1: [0, -1]}, ["fails", "fails", *measured])
    # a pair can be right about the order, and yet above the threshold
    assert judged(perfect, careful)[0] == {0: [1, 0], 1: [1, 1]}
    assert len(diagnosis.told(published(perfect, careful), e).axes) == 2
    # pairs of another kind alone, as MNIST's published tables have them
    others = published(perfect, careful)
    others["perturbations"].kind = "same"
    assert diagnosis.trusted(others, e).evidence[0].words() == "no seed has a case"


def test_the_area_is_the_share_of_cases_that_are_in_order():
    values, positive = pd.Series([1.0, 2.0, 3.0, 3.0]), pd.Series([False, True, False, True])
    # 2 is above 1 and below 3; 3 is above 1 and equal to 3
    assert area(values, positive) == (1 + 0 + 1 + 0.5) / 4
    assert area(-values, positive) == 1 - (1 + 0 + 1 + 0.5) / 4
    assert pd.isna(area(values, positive | True))


def chains_that_end(heights, errors, seeds=4):
    """Levels with these errors, the dense one first, each behind such a barrier from the one
    before, from two rewind steps."""
    places = [(seed, step) for seed in range(seeds) for step in (5, 10)]
    levels = [(*at, level, error) for at in places for level, error in enumerate(errors)]
    pairs = [(*at, level, level + 1, high) for at in places for level, high in enumerate(heights)]
    pairs += [(*at, 0, len(heights), 0.9) for at in places]  # not successive: tells nothing
    names = ["seed", "rewind_step", "level"]
    levels = pd.DataFrame(levels, columns=[*names, "test_error"]).assign(density=0.5, chance=0.9)
    return {"levels": levels, "pairs": pd.DataFrame(pairs, columns=[*names, "other", "barrier"])}


def test_signs_that_the_next_level_will_not_match_are_told_from_those_that_do_not():
    e = hand_made.E.but(rewind_steps=[5, 10], levels=6, seeds=4)
    errors = [0.04, 0.04, 0.041, 0.042, 0.040, 0.2, 0.3]  # level 4 is the last that matches
    found = chains_that_end([0, 0, 0.003, 0.001, 0.004, 0.3, 0.4], errors)
    rows = diagnosis.last_matches(found, e).query("seed == 0 and rewind_step == 10")
    assert rows.level.tolist() == [2, 3, 4] and rows.ends.tolist() == [False, False, True]
    assert rows.barrier.tolist() == [0, 0.003, 0.001]
    assert rows.rise.tolist() == pytest.approx([0, 0.003, -0.002])
    assert rows.excess.tolist() == pytest.approx([0.001, 0.002, 0])
    told = {one.claim: one.mean for one in diagnosis.when_to_stop(found, e).evidence}
    # barrier: one of two in order; its rise and the error: none
    assert list(told.values()) == [0, 0.5, -0.5, 0, -0.5, 0.5]
    perfect = diagnosis.when_to_stop(chains_that_end([0, 0, 0.001, 0.009, 0.3, 0.4], errors), e)
    assert [one.verdict for one in perfect.evidence][:4] == ["holds"] * 4
    assert len(diagnosis.last_signs(found, e).axes) == 3
    # a chain that does not end has no case
    endless = diagnosis.when_to_stop(chains_that_end([0, 0, 0.001, 0, 0, 0], [0.04] * 7), e)
    assert {one.words() for one in endless.evidence} == {"no seed has a case"}


@pytest.mark.parametrize("epsilon, widest", [(0.03, 1), (0.3, 2), (0.6, 3), (0.99, 4)])
def test_the_widest_cut_in_a_quadratic_bowl_is_that_of_its_closed_form(epsilon, widest):
    """The error is the squared distance from the solution, whose weights are 1 to 100 over 200.
    Without the k smallest it rises by k (k + 1) (2 k + 1) / 6 / 200^2, and the barrier is half."""
    at = {"w": torch.arange(1.0, 101.0) / 200}
    kept = [round(100 * 0.8**level) for level in range(11)]
    heights = [k * (k + 1) * (2 * k + 1) / 6 / 200**2 / 2 for k in (100 - n for n in kept)]
    assert heights[widest] <= max(epsilon, heights[1]) and epsilon < heights[widest + 1]

    def path(one, other, places):
        points = (unmask.barriers.interpolate(one, other, t)["w"] - at["w"] for t in places)
        rows = [(t, float((point**2).sum())) for t, point in zip(places, points)]
        return pd.DataFrame(rows, columns=["t", "test_error"])

    lab = SimpleNamespace(
        experiment=experiment("smoke", epsilon=epsilon),
        survivors=kept.__getitem__,
        trained=lambda starts, *_, **__: [start.state for start in starts],  # it stays
        path=path,
    )

    def asked(most):
        mask = {"w": torch.ones(100, dtype=torch.bool)}
        return diagnosis.widest(lab, at, mask, 0, most, ("cut",))

    chosen, tries = asked(10)
    assert chosen == widest and 3 <= tries <= 4  # of 2 to 10
    assert asked(2)[0] == min(widest, 2)
    assert asked(1) == (1, 0)  # it needs no try


def test_chains_cut_what_they_say_from_the_rewind_point_and_masks_nest(smoke_store, monkeypatch):
    e, seen, trained = experiment("smoke", seeds=1), [], Lab.trained

    def watched(lab, starts, step, **options):
        seen.extend((start, options) for start in starts)
        return trained(lab, starts, step, **options)

    monkeypatch.setattr(Lab, "trained", watched)
    lab = Lab(e, smoke_store)
    table = diagnosis.schedules(lab, 0)
    assert diagnosis.goal(e) == 3 and set(table.stride) == {2, 3, ADAPTIVE}
    assert table[table.stride == 2].level.tolist() == [2, 3]
    assert table[table.stride == 3].level.tolist() == [3]
    here, sparser = lab.rewind_point(0, e.latest), {}
    starts = [start for start, options in seen if not options]
    assert len(starts) == len(table)  # all else is fine-tuned
    assert len(seen) - len(starts) == table[table.stride == ADAPTIVE].tried.max()
    chains = pd.concat([table[table.stride == stride] for stride in (2, 3, ADAPTIVE)])
    for start, one in zip(starts, chains.itertuples()):
        assert unmask.pruning.survivors(start.mask) == lab.survivors(one.level)
        assert start.order == (0, "order", one.trained)
        assert all(torch.equal(start.state[name], here[name]) for name in here)
        before = sparser.get(one.stride, lab.dense_mask)
        assert not any((start.mask[name] & ~before[name]).any() for name in before)
        sparser[one.stride] = start.mask
    # what is cut at once is cut from the dense solution, and trained as any other
    at_once = starts[2]
    dense = lab.level(0, 0, 0).state
    mask = unmask.pruning.prune_magnitude(dense, lab.dense_mask, lab.survivors(3))
    assert all(torch.equal(mask[name], at_once.mask[name]) for name in mask)
    (end,) = trained(lab, [at_once], e.latest)
    assert row(table, stride=3).test_error == lab.evaluate(end).error


def test_costs_count_every_training_and_every_look():
    e = experiment("miniature")
    assert diagnosis.goal(e) == 11 and 0.8**11 <= 0.1 < 0.8**10
    look = 10_000 / (3 * 128)  # forward alone
    assert diagnosis.cost(e, 0, 0) == 1200
    assert diagnosis.cost(e, 4, 0) == pytest.approx(1200 + 4 * (950 + look))
    assert diagnosis.cost(e, 4, 5) == pytest.approx(1200 + 4 * (950 + look) + 5 * (120 + 3 * look))


def test_whoever_misses_prunes_again_level_by_level():
    e = hand_made.E.but(seeds=4)  # of three levels, 0.8 of the weights each
    errors = {1: 0.045, 2: 0.045, 3: 0.2, ADAPTIVE: 0.045}
    rows = [(s, n, 3, 0.1, t, t - 1, errors[n]) for s in range(4) for n, t in
            ((2, 2), (3, 1), (ADAPTIVE, 2))]  # fmt: skip
    names = ["seed", "stride", "level", "density", "trained", "tried", "test_error"]
    levels = hand_made.levels(late=(0.04, 0.04, 0.045, 0.045), seeds=4)
    levels.loc[(levels.seed == 3) & (levels.level == 3), "test_error"] = 0.2
    found = {"levels": levels, "schedules": pd.DataFrame(rows, columns=names)}
    table, cost = diagnosis.at_goal(found, e), lambda *counts: diagnosis.cost(e, *counts)
    total = table.pivot(index="seed", columns="stride", values="total")
    assert total[1].tolist()[:3] == [cost(3, 0)] * 3 and total[1].isna()[3]
    assert set(total[2]) == {cost(2, 1)} and set(total[ADAPTIVE]) == {cost(2, 1)}
    assert total[3].tolist()[:3] == [cost(1, 0) + cost(3, 0) - e.steps] * 3 and total[3].isna()[3]
    told = {one.claim: one for one in diagnosis.cheaper(found, e).evidence}
    first, second, *_ = told.values()
    assert first.mean == pytest.approx(math.log(cost(3, 0) / cost(2, 1))) and len(first.values) == 3
    assert second.mean == 0 and len(second.values) == 4
    (ax,) = diagnosis.schedules_compared(found, e).axes
    assert [bar.get_height() for bar in ax.patches][0] == pytest.approx(cost(3, 0) / 1000)
    assert len(ax.get_xticklabels()) == 4


def test_a_network_at_chance_is_told_and_not_asked_further(store):
    e = experiment("smoke", lr=1e-6)
    found = Diagnosis(e, store, jobs=1)
    first, *others = found.run()
    assert first.verdict == FAILS and "no better than chance" in first.words
    assert [one.short for one in others] == ["not known"] * 4
    assert all(one.words == diagnosis.UNASKED for one in others)
    assert "stability" not in found.tables
    assert "no better than chance" in found.page()


def test_a_network_that_diverges_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path / "store"))
    output = ["--output", str(tmp_path / "out"), "--jobs", "1"]
    assert main(["diagnose", "smoke", "--set", "lr=1e6", *output]) == 0
    said = capsys.readouterr().out
    assert "training diverged: weights are not finite" in said and said.count("Not asked") == 4
    assert "training diverged" in (tmp_path / "out/diagnosis.html").read_text()


def test_what_does_not_fit_the_budget_is_left_out_and_said(store, monkeypatch):
    e = experiment("smoke")
    first, *others = Diagnosis(e, store, minutes=0).run()
    assert first.short == "not known" and first.words == "Left out: 0.0 of 0 minutes are left."
    assert all(one.words == diagnosis.UNASKED for one in others) and not store.root.exists()
    # with a minute for the dense network, which is in the store, but none for what takes longer
    list(zip(range(1), Diagnosis(e, store, jobs=1).run()))
    monkeypatch.setattr(Diagnosis, "_pace", lambda self: 2.0)
    answers = list(Diagnosis(e, store, minutes=1, jobs=1).run())
    assert answers[0].verdict == HOLDS
    assert answers[1].short == "not known" and "1.0 of 1 minutes are left" in answers[1].words
    assert answers[4].words == "Not asked: no rewind step is known to prune from."


def test_page_and_numbers_are_written(asked, tmp_path):
    found, answers = asked
    page = found.write(tmp_path / "new" / "folder").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)  # it needs no other file
    for one in answers:
        assert one.short in page and f'class="{one.verdict}"' in page
    record = json.loads((tmp_path / "new/folder/diagnosis.json").read_text())
    assert [one["words"] for one in record["answers"]] == [one.words for one in answers]
    assert record["identity"] == found.e.id
    cost, e = record["cost"], found.e
    steps = e.steps + e.levels * (e.steps - cost["imp_step"])
    assert cost["imp_steps"] == steps and f"{steps:,}" in page
    stored = {node: found.lab.store.provenance(unmask.tables.entry(found.lab, node))
              for node in found.nodes}  # fmt: skip
    assert cost["seconds"] == pytest.approx(sum(one["seconds"] for one in stored.values()))
    (tmp_path / "file").write_text("")
    with pytest.raises(UnmaskError, match="cannot be written"):
        found.write(tmp_path / "file" / "folder")


CODE = """
import torch
from torch import nn


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


def data():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > x[:, 1]).long() + (x[:, 2] > 0).long()
    return x[:200], y[:200], x[200:], y[200:]
"""


def test_own_network_on_own_tensors(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNMASK_STORE", str(tmp_path / "store"))
    settings = "network=mine.py:network dataset=mine.py:data classes=3 train_samples=all"
    settings += " test_samples=all batch_size=20 lr=0.1 steps=60 levels=4"
    words = [word for pair in settings.split() for word in ("--set", pair)]
    assert main(["diagnose", "smoke", *words, "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "● Does the network learn? yes" in said and "144 weights can be pruned" in said
    assert (
        "mine.py:network on mine.py:data"
        in (tmp_path / "build/diagnosis/diagnosis.html").read_text()
    )
    for wrong in (
        ["--set", "classes=2"],
        ["--minutes", "nan"],
        ["--minutes", "-1"],
        ["--jobs", "0"],
    ):
        assert main(["diagnose", "smoke", *words, *wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert wrong[-1].split("=")[0] in line or wrong[-1] in line


def test_no_experiment_has_these_tables_unless_asked():
    known = unmask.tables.known_tables()
    assert "schedules" not in known and "schedules" in unmask.tables.known_tables(asked=True)
    assert not {"stability", "cuts", "imp_levels", "dense_error", "ends"} & set(known)
    with pytest.raises(UnmaskError, match="table='stability': must be one of"):
        unmask.measure("smoke", ["stability"])


def test_a_table_that_is_asked_for_by_its_name_is_published(smoke_store, tmp_path):
    e = experiment("smoke", seeds=1)
    found = unmask.measure(e, ["schedules"], smoke_store, 1)
    assert set(found) == {"schedules"}
    unmask.results.publish(Lab(e, smoke_store), "named", tmp_path, wanted=list(found))
    _, back, _ = unmask.results.published("named", tmp_path)
    pd.testing.assert_frame_equal(back["schedules"], found["schedules"], check_exact=True)


def test_candidates_are_shares_of_the_steps():
    steps = candidates(experiment("miniature"))
    assert steps == (0, 9, 13, 19, 27, 38, 53, 75, 106, 150, 212, 300, 424, 600)
    assert candidates(experiment("smoke", steps=1, rewind_steps=[0])) == (0,)
