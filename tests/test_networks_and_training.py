"""The network against a textbook construction, training against torch's optimizer, and the loop's
invariants."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import textbook
from unmask import data, networks, pruning
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.train import Start, batches, evaluate, generator, is_finite, learning_rate
from unmask.train import resolve_device, train


def flat(tensor):
    """A kernel of `networks`, whose last dimension is 1, as a textbook's; all else as it is."""
    return tensor.squeeze(-1) if tensor.dim() == 4 else tensor


def plain(state, e):
    network = textbook.network(e)
    network.load_state_dict({name: flat(tensor) for name, tensor in state.items()}, strict=False)
    return network


@pytest.mark.parametrize("name", ["resnet1d", "resnet1d-strided"])
@pytest.mark.parametrize("training", [True, False])
def test_network_equals_the_textbook_network(name, training):
    e = experiment("miniature", network=name)
    state = networks.initial_state(e, generator("test"))
    ours, theirs = networks.build(e), plain(state, e)
    networks.load_state(ours, state)
    x, y = torch.randn(64, 1, 40, generator=generator("x")), torch.arange(64) % 10
    gradients = []
    for network in (ours, theirs):
        network.double().train(training)
        loss = F.cross_entropy(network(x.double()), y)
        parts = torch.autograd.grad(loss, list(network.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    torch.testing.assert_close(ours(x.double()), theirs(x.double()), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    for (n, a), b in zip(ours.named_buffers(), theirs.buffers()):
        if not n.endswith("tracked"):
            torch.testing.assert_close(a, b, msg=n)


def test_parameter_counts_are_those_of_the_paper_page():
    def count(name):
        network = networks.build(experiment("miniature", network=name))
        return sum(parameter.numel() for parameter in network.parameters())

    assert count("resnet1d") == 7474 and count("resnet1d-strided") == 7490


@pytest.fixture
def setting(tiny, store):
    split = data.load(tiny, store).train
    state = networks.initial_state(tiny, generator(0, "initialisation"))
    dense = pruning.dense_mask(networks.build(tiny))
    return tiny, split, state, dense


def trained(e, split, start):
    """The state at the end."""
    return train(e, split, [start])[0].states[e.steps]


def test_training_equals_torch_sgd_on_the_textbook_network(setting):
    e, split, state, dense = setting
    e = e.but(weight_decay=0.01, milestones=(0.5,), lr=0.05)
    mask = pruning.prune_random(dense, 1000, generator("mask"))
    ours = trained(e, split, Start(state, mask, ("order",)))

    network = plain(pruning.apply(mask, state), e)
    rates = dict(lr=e.lr, momentum=e.momentum, weight_decay=e.weight_decay)
    optimizer = torch.optim.SGD(network.parameters(), **rates)
    for step, (x, y) in enumerate(batches(e, split, [("order",)], 0, e.steps)):
        optimizer.param_groups[0]["lr"] = learning_rate(e, step)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for n, p in network.named_parameters():
                if n in mask:
                    p.mul_(flat(mask[n]))
    for n, tensor in network.state_dict().items():
        if not n.endswith("tracked"):
            torch.testing.assert_close(flat(ours[n]), tensor, rtol=2e-3, atol=2e-4, msg=n)


def test_pruned_weights_are_zero_at_all_times_and_survivors_move(setting):
    e, split, state, dense = setting
    mask = pruning.prune_random(dense, 500, generator("mask"))
    start = Start(state, mask, ("order",))
    ((recorded, observed),) = train(e, split, [start], snapshots=range(e.steps + 1))
    assert list(recorded) == list(range(e.steps + 1)) and observed == {}
    for step, now in recorded.items():
        for name, kept in mask.items():
            assert (now[name][~kept] == 0).all(), (step, name)
    rewound = recorded[0]
    for name, kept in mask.items():
        assert torch.equal(rewound[name], state[name] * kept)
    assert not torch.equal(recorded[e.steps]["stem.weight"], rewound["stem.weight"])


def test_training_is_deterministic_and_leaves_its_arguments_alone(setting):
    e, split, state, dense = setting
    before = {name: tensor.clone() for name, tensor in state.items()}
    torch.manual_seed(1)
    first = trained(e, split, Start(state, dense, ("order",)))
    torch.manual_seed(2)
    second = trained(e, split, Start(state, dense, ("order",)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], state[name]) for name in state)
    other = trained(e, split, Start(state, dense, ("another order",)))
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


@pytest.mark.parametrize("network", ["resnet1d", "resnet1d-strided"])
def test_replicates_get_to_the_bit_what_each_gets_alone(setting, network):
    e, split, *_ = setting
    e = e.but(network=network)
    dense = pruning.dense_mask(networks.build(e))
    starts = []
    for i, keep in enumerate((400, 900, 1800)):
        mask = pruning.prune_random(dense, keep, generator("mask", i))
        starts.append(Start(networks.initial_state(e, generator(i)), mask, ("order", i)))
    steps = (3, 10, e.steps)
    options = dict(start=3, snapshots=steps, observe=mean, observed_at=(3, 7))
    for start, found in zip(starts, train(e, split, starts, **options)):
        (alone,) = train(e, split, [start], **options)
        assert alone.observed == found.observed and list(found.observed) == [3, 7]
        for step in steps:
            expected = alone.states[step].items()
            assert all(torch.equal(found.states[step][name], tensor) for name, tensor in expected)


def mean(start, state):
    """A number to observe: of a replicate's own survivors."""
    return float(pruning.surviving(state, start.mask).mean())


def test_a_late_start_sees_the_batches_of_a_whole_run(setting):
    e, split, *_ = setting
    whole = list(batches(e, split, [("order",)], 0, e.steps))
    late = list(batches(e, split, [("order",)], 7, e.steps))
    assert len(whole) == e.steps and len(late) == e.steps - 7
    for (x, y), (late_x, late_y) in zip(whole[7:], late):
        assert torch.equal(x, late_x) and torch.equal(y, late_y)


def test_an_epoch_shows_every_sample_once(setting):
    e, split, *_ = setting
    length = len(split.y) // e.batch_size
    epoch = torch.cat([x for x, _ in batches(e, split, [("order",)], 0, length)])
    assert torch.equal(epoch.flatten(1).sort(0).values, split.x.flatten(1).sort(0).values)


def test_schedule():
    e = experiment("smoke", lr=1.0, steps=40, milestones=(0.5, 0.75))
    rates = [learning_rate(e, step) for step in (0, 19, 20, 29, 30, 39)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    e = experiment("smoke", steps=25_020, milestones=(0.55,), lr=1.0)
    assert 0.55 * e.steps > 13_761  # by rounding
    assert [learning_rate(e, step) for step in (13_760, 13_761)] == pytest.approx([1, 0.1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_smooth_schedules_are_those_of_torch(schedule):
    e = experiment("smoke", schedule=schedule, milestones=(), steps=41, lr=0.5, lr_decay=0.01)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=e.lr)
    if schedule == "linear":
        theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, e.lr_decay, e.steps - 1)
    else:
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, e.lr * e.lr_decay)
    for step in range(e.steps):
        assert learning_rate(e, step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_snapshots_outside_the_schedule_are_refused(setting):
    e, split, state, dense = setting
    for snapshots in ([e.steps + 1], [3]):
        with pytest.raises(UnmaskError, match="must be between start"):
            train(e, split, [Start(state, dense, ("order",))], start=5, snapshots=snapshots)


def test_what_diverges_is_not_finite_and_errs_as_by_chance(setting):
    e, split, state, dense = setting
    e = e.but(lr=1e6, steps=60)
    states = train(e, split, [Start(state, dense, ("order",))])[0].states
    assert is_finite(state) and not is_finite(states[60])
    network = networks.build(e)
    networks.load_state(network, states[60])
    share = float((split.y != 0).double().mean())  # all logits are alike: the first class is named
    assert evaluate(network, split).error == pytest.approx(share)


def test_evaluation_equals_the_textbook(setting):
    e, split, state, _ = setting
    network = networks.build(e)
    networks.load_state(network, state)
    error, loss = evaluate(network, split)
    logits = plain(state, e).eval()(split.x).detach()
    assert error == pytest.approx(float((logits.argmax(1) != split.y).double().mean()))
    assert loss == pytest.approx(float(F.cross_entropy(logits, split.y)), rel=1e-5)


def test_data_is_deterministic_and_leaves_the_global_generators_alone(tiny, store, tmp_path):
    from unmask.store import Store

    np.random.seed(5)
    expected = np.random.RandomState(5).rand(3)
    one = data.load(tiny, store)
    assert np.array_equal(np.random.rand(3), expected)
    other = data.load(tiny, Store(tmp_path / "other"))
    for a, b in zip(one, other):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    assert one.train.x.shape == (200, 1, 40) and one.test.x.shape == (100, 1, 40)
    assert set(one.train.y.tolist()) == set(range(10))
    assert torch.cat([one.train.x, one.test.x]).std() == pytest.approx(1, abs=0.01)


def test_devices_that_do_not_exist_are_refused():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UnmaskError, match="device='cuda:99': this machine has"):
        resolve_device("cuda:99")
