"""The Hessian against torch's own in float64, Lanczos against dense eigenvalues."""

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from torch import nn
from torch.func import functional_call

from unmask import curvature, networks, pruning
from unmask.curvature import curvature_along, exact_hessian, hessian_operator, lanczos
from unmask.curvature import spectral_densities
from unmask.data import Split
from unmask.errors import UnmaskError
from unmask.experiments import experiment
from unmask.pruning import surviving
from unmask.train import generator

# The Hessian


def samples(count):
    draws = torch.randn(count, 1, 40, generator=generator("samples"))
    return Split(draws, torch.arange(count) % 10)


def network_of(width, seed="weights"):
    """A residual network in float64 and evaluation mode, whose batch-norm statistics are not those
    it starts with."""
    e, draw = experiment("smoke", width=width), generator(seed)
    state = {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=draw)
        for name, tensor in networks.initial_state(e, draw).items()
    }
    network = networks.build(e).double().eval()
    networks.load_state(network, state)
    return network


def perceptron():
    layers = nn.Flatten(), nn.Linear(40, 3), nn.Tanh(), nn.Linear(3, 10)
    network = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator("perceptron")))
    return network


def random_mask(network, keep):
    return pruning.prune_random(pruning.dense_mask(network), keep, generator("mask"))


def loss_at(network, mask, split):
    """The loss as a function of the vector of surviving weights, as one would write it down."""
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def loss(vector):
        moved, rest = dict(weights), vector
        for name, kept in mask.items():
            moved[name] = weights[name].masked_scatter(kept, rest[: kept.sum()])
            rest = rest[kept.sum() :]
        return F.cross_entropy(functional_call(network, moved, (split.x.double(),)), split.y)

    return loss, torch.cat([weights[name][kept] for name, kept in mask.items()])


@pytest.fixture(params=["dense", "pruned", "a layer pruned away", "multilayer perceptron"])
def case(request):
    """(network, mask, split)"""
    if request.param == "multilayer perceptron":
        network = perceptron()
        return network, pruning.dense_mask(network), samples(30)
    network = network_of(width=4 if request.param == "pruned" else 1)
    if request.param == "pruned":
        return network, random_mask(network, 150), samples(70)
    mask = pruning.dense_mask(network)
    if request.param == "a layer pruned away":
        mask["blocks.1.conv1.weight"][:] = False
    return network, mask, samples(70)


def test_hessian_equals_torchs_dense_one(case, monkeypatch):
    # several unequal batches, and a last chunk of vectors
    monkeypatch.setattr(curvature, "_SAMPLES", 32)
    expected = torch.autograd.functional.hessian(*loss_at(*case)).numpy()
    size = sum(int(kept.sum()) for kept in case[1].values())
    assert expected.shape == (size, size) and np.abs(expected).max() > 1e-3

    exact = exact_hessian(*case)
    np.testing.assert_allclose(exact, expected, rtol=1e-9, atol=1e-12)
    assert np.array_equal(exact, exact.T) and exact.dtype == np.float64

    operator = hessian_operator(*case)
    vectors = np.random.default_rng(0).standard_normal((size, 11))
    close = dict(rtol=1e-9, atol=1e-10)
    assert operator.shape == (size, size) and operator.dtype == np.float64
    np.testing.assert_allclose(operator.matmat(vectors), expected @ vectors, **close)
    np.testing.assert_allclose(operator @ vectors[:, 0], expected @ vectors[:, 0], **close)


def test_gauss_newton_equals_the_jacobians_product(case, monkeypatch):
    """`J' (diag(p) - p p') J` of the logits, by torch's Jacobian, summed over samples; and it has
    no negative eigenvalue."""
    network, mask, split = case
    monkeypatch.setattr(curvature, "_SAMPLES", 3)
    weights = {name: p.detach() for name, p in network.named_parameters()}
    pruned = {name: weights[name] for name in mask}

    def logits(moved):
        return functional_call(network, weights | moved, (split.x.double(),))

    jacobian = torch.func.jacrev(logits)(pruned)
    jacobian = torch.cat([jacobian[name].flatten(2)[..., mask[name].flatten()] for name in mask], 2)
    p = logits({}).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = torch.einsum("nki,nkl,nlj->ij", jacobian, inner, jacobian) / len(split.y)
    found = exact_hessian(network, mask, split, "gauss-newton")
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-9, atol=1e-12)
    operator = hessian_operator(network, mask, split, "gauss-newton")
    vectors = np.random.default_rng(0).standard_normal((len(found), 2))
    np.testing.assert_allclose(operator.matmat(vectors), found @ vectors, rtol=1e-9, atol=1e-12)
    assert np.linalg.eigvalsh(found)[0] > -1e-12


def test_gradient_equals_torchs(case):
    network, mask, split = case
    loss, vector = loss_at(network, mask, split)
    expected = torch.func.grad(loss)(vector).numpy()
    found = curvature.loss_gradient(network, mask, split)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_single_precision_is_good_to_the_noise_that_is_stated():
    network, split = network_of(4), samples(600)
    mask = random_mask(network, 100)
    double = exact_hessian(network, mask, split)
    single = exact_hessian(network.float(), mask, split)
    error = np.linalg.norm(single - double, 2) / np.linalg.norm(double, 2)
    assert 0 < error < 2e-6


def test_pruned_weights_and_other_parameters_do_not_move():
    """A principal submatrix of the dense Hessian, at the same point."""
    network, split = network_of(1), samples(40)
    dense, mask = pruning.dense_mask(network), random_mask(network, 60)
    kept = surviving(mask, dense)
    part = exact_hessian(network, dense, split)[kept][:, kept]
    found = exact_hessian(network, mask, split)
    np.testing.assert_allclose(found, part, rtol=1e-9, atol=1e-12)


def test_operator_keeps_the_network_it_was_made_from():
    network, split = network_of(1), samples(20)
    mask = pruning.dense_mask(network)
    operator = hessian_operator(network, mask, split)
    ones = np.ones(operator.shape[0])
    before = operator @ ones
    networks.load_state(network, network_of(1, seed="others").state_dict())
    network.train()
    assert np.array_equal(operator @ ones, before)
    assert not np.allclose(hessian_operator(network.eval(), mask, split) @ ones, before)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_surviving_entries_come_in_the_order_of_the_hessian():
    network = network_of(1)
    mask, state = random_mask(network, 50), networks.state_of(network)
    _, expected = loss_at(network, mask, samples(10))
    assert np.array_equal(surviving(state, mask), expected.numpy())
    smaller = pruning.prune_magnitude(state, mask, 20)
    removed, sizes = ~surviving(smaller, mask), np.abs(expected.numpy())
    assert removed.dtype == bool and removed.sum() == 30
    assert sizes[removed].max() <= sizes[~removed].min()


def test_curvature_along_equals_second_differences_of_the_loss():
    network, split = network_of(2), samples(50)
    mask = random_mask(network, 200)
    loss, weights = loss_at(network, mask, split)
    vectors = np.random.default_rng(0).standard_normal((200, 3))
    found = curvature_along(hessian_operator(network, mask, split), vectors)
    for value, v in zip(found, vectors.T):
        step = torch.from_numpy(v / np.linalg.norm(v)) * 1e-4
        second = (loss(weights + step) + loss(weights - step) - 2 * loss(weights)) / 1e-8
        assert value == pytest.approx(float(second), rel=1e-3)
    with pytest.raises(UnmaskError, match="zero vector"):
        curvature_along(aslinearoperator(np.eye(3)), np.zeros((3, 1)))


@pytest.mark.parametrize("make", [hessian_operator, exact_hessian])
def test_what_does_not_fit_is_refused_in_one_line(make):
    network, split = network_of(1), samples(10)
    mask, partly = pruning.dense_mask(network), network_of(1)
    partly.blocks[0].norm1.train()
    nowhere = mask | {"nowhere.weight": torch.ones(1, dtype=torch.bool)}
    nothing = {name: torch.zeros_like(kept) for name, kept in mask.items()}
    for arguments, said in (
        ((network_of(1).train(), mask, split), "training mode"),
        ((partly, mask, split), "training mode"),
        ((network, nowhere, split), "'nowhere.weight'"),
        ((network_of(2), mask, split), "'stem.weight'"),
        ((network, mask, split.take(0)), "at least one sample"),
        ((network, nothing, split), "at least one sample and one surviving"),
    ):
        with pytest.raises(UnmaskError, match=said) as raised:
            make(*arguments)
        assert "\n" not in str(raised.value)


# Lanczos and what is estimated with it


def symmetric(eigenvalues):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    rotation = scipy.linalg.qr(starts(len(eigenvalues), len(eigenvalues)))[0]
    return (rotation * eigenvalues) @ rotation.T


def starts(size, probes, seed=0):
    return np.random.default_rng(seed).standard_normal((size, probes))


def spectrum_of(matrix, probes, steps, name="probes"):
    (found,) = spectral_densities(aslinearoperator(matrix), probes, [steps], generator(name))
    return found


@given(st.integers(1, 25), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_all_steps_of_lanczos_find_all_eigenvalues(size, seed):
    matrix = starts(size, size, seed)
    matrix += matrix.T
    expected, vectors = np.linalg.eigh(matrix)
    start = starts(size, 2, seed + 1)
    # more steps than there are dimensions
    ((values, weights),) = lanczos(aslinearoperator(matrix), start, [size + 7])
    assert values.shape == weights.shape == (2, size)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(values, [expected] * 2, atol=1e-9 * scale)
    shares = size * (vectors.T @ start / np.linalg.norm(start, axis=0)).T ** 2
    separated = np.concatenate([[np.inf], np.diff(expected), [np.inf]])
    clear = np.minimum(separated[:-1], separated[1:]) > 1e-4 * scale
    np.testing.assert_allclose(weights[:, clear], shares[:, clear], atol=1e-6)


def test_fewer_steps_of_lanczos_are_the_beginning_of_more():
    matrix, stops = symmetric(np.linspace(0, 1, 80)), (7, 14, 90)
    together = spectral_densities(aslinearoperator(matrix), 3, stops, generator("probes"))
    for steps, found in zip(stops, together):
        alone = spectrum_of(matrix, 3, steps)
        assert np.array_equal(found.values, alone.values)
        assert np.array_equal(found.weights, alone.weights)


def test_repeated_eigenvalues_end_the_krylov_space_and_keep_their_weight():
    repeated = aslinearoperator(np.diag(np.repeat([-1.0, 0.0, 5.0], [10, 70, 20])))
    ((values, weights),) = lanczos(repeated, np.ones((100, 1)), [30])
    for value, count in ((-1, 10), (0, 70), (5, 20)):
        assert weights[np.abs(values - value) < 1e-9].sum() == pytest.approx(count)
    # Orthogonality holds where plain Lanczos loses it: no copies of the eigenvalue far above the
    # rest.
    matrix = symmetric(np.concatenate([np.linspace(0, 1, 199), [1e4]]))
    ((values, _),) = lanczos(aslinearoperator(matrix), starts(200, 1), [100])
    assert (values > 2).sum() == 1 and values.max() == pytest.approx(1e4)


def test_extreme_ritz_values_converge_first():
    eigenvalues = np.concatenate([np.linspace(-0.1, 1, 290), np.linspace(5, 50, 10)])
    operator = aslinearoperator(symmetric(eigenvalues))
    ((values, _),) = lanczos(operator, starts(300, 1), [60])
    values = np.sort(values[0])
    np.testing.assert_allclose(values[-10:], eigenvalues[-10:], rtol=1e-8)
    assert values[0] >= -0.1 - 1e-9


def test_quadrature_is_exact_for_the_moments_of_each_probe():
    matrix = symmetric(np.linspace(-1, 4, 50))
    values, weights = spectrum_of(matrix, 3, 4)
    signs = torch.randint(2, (3, 50), generator=generator("probes")).numpy() * 2.0 - 1
    for power in range(8):  # up to 2 * steps - 1
        moments = ((signs @ np.linalg.matrix_power(matrix, power)) * signs).sum(1)
        np.testing.assert_allclose((weights * values**power).sum(1), moments, rtol=1e-10)


def test_estimates_are_as_far_off_as_their_standard_error_says():
    eigenvalues = np.concatenate([np.geomspace(1e-3, 1, 90), np.linspace(2, 20, 10)])
    matrix = symmetric(eigenvalues)
    spectrum = spectrum_of(matrix, 400, 40)
    for f in (lambda x: x, lambda x: x > 1.5, lambda x: 1 / (1 + 9 * x)):
        mean, error = spectrum.estimate(f)
        assert abs(mean - f(eigenvalues).sum()) < 4 * error < 0.2 * f(eigenvalues).sum()

    def trace(probes, *names):  # one step is enough for it
        operator, draws = aslinearoperator(matrix), generator(*names)
        return spectral_densities(operator, probes, [1], draws)[0].estimate(lambda x: x)

    found = [trace(10, "trace", i) for i in range(200)]
    scores = [(mean - eigenvalues.sum()) / error for mean, error in found]
    assert 0.8 < np.std(scores) < 1.4 and abs(np.mean(scores)) < 0.3
    assert np.isnan(trace(1, "one")[1])


def test_estimates_are_deterministic_and_leave_the_global_generators_alone():
    matrix = symmetric(np.linspace(0, 1, 40))
    np.random.seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    one, same, other = (spectrum_of(matrix, 2, 10, name) for name in ("same", "same", "other"))
    assert np.array_equal(one.values, same.values) and np.array_equal(one.weights, same.weights)
    assert not np.array_equal(one.values, other.values)
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize("probes, steps, said", [(0, 5, "probes=0"), (2, 0, "steps=0")])
def test_too_few_probes_or_steps_are_refused(probes, steps, said):
    with pytest.raises(UnmaskError, match=said):
        spectrum_of(np.eye(3), probes, steps)
