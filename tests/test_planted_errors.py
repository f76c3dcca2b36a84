"""Errors that are easily made in such a code, planted into real trainings: the comparison of two
runs sees each of them."""

import pytest
from two_runs import disagreements

import unmask
from unmask import pruning
from unmask import train as training
from unmask.lab import Lab
from unmask.store import Store
from unmask.verdicts import all_verdicts

# large enough to learn something, for a network at chance decides nothing
LEARNS = dict(train_samples=1000, steps=150, lr=0.3, rewind_steps=(0, 20), levels=3)
E = unmask.experiment("smoke", **LEARNS, seeds=1, prune_fraction=0.4, ticket_density=0.5)
NAMES = ["levels", "controls"]


def verdicts(e, folder):
    return all_verdicts(unmask.measure(e, NAMES, Store(folder), jobs=1), e)


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return verdicts(E, tmp_path_factory.mktemp("right"))


def wrong_mask(monkeypatch):
    """The largest weights go."""
    right = pruning.prune_magnitude

    def wrong(state, mask, keep):
        upside_down = {name: 1 / (tensor.abs() + 1e-9) for name, tensor in state.items()}
        return right(upside_down, mask, keep)

    monkeypatch.setattr(pruning, "prune_magnitude", wrong)


def wrong_rewind_point(monkeypatch):
    """The weights of step 0, whatever the step."""
    monkeypatch.setattr(Lab, "rewind_point", lambda self, seed, step: self.initial(seed))


def momentum_goes_on(monkeypatch):
    """A training starts with the velocity that the one before ended with."""

    class Unfinished(training.Unfinished):
        left = {}  # by how many weights are trained side by side

        def resume(self, *about):
            first = super().resume(*about)
            velocity = self.runs[0].velocity
            velocity.copy_(self.left.get(len(velocity), velocity))
            return first

        def by_replicate(self):
            self.left[len(self.runs[0].velocity)] = self.runs[0].velocity
            return super().by_replicate()

    monkeypatch.setattr(training, "Unfinished", Unfinished)


def test_without_an_error_two_runs_are_the_same(right, tmp_path):
    again = verdicts(E, tmp_path)
    assert len(right.evidence) > 2 and disagreements(again, right, True, right) == []


@pytest.mark.parametrize("plant", [wrong_mask, wrong_rewind_point, momentum_goes_on])
def test_a_planted_error_is_seen(plant, right, monkeypatch, tmp_path):
    plant(monkeypatch)
    assert disagreements(verdicts(E, tmp_path), right, True, right)


def test_a_forgotten_weight_decay_is_seen(right, tmp_path):
    assert disagreements(verdicts(E.but(weight_decay=0.0), tmp_path), right, True, right)
