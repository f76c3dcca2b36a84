"""Curvature: the Hessian of the train loss at a solution, its spectrum, and how much can be pruned at once (Finding 3).

The Hessian is that of the mean cross-entropy over a split, in nats, in evaluation mode, restricted to a mask's
survivors: D x D, where D counts survivors, in the order of `surviving`. Arrays are float64; products are computed in
the network's own precision, so a float32 network resolves eigenvalues down to about 1e-6 of the largest.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from . import networks
from .data import Split
from .errors import UnmaskError
from .networks import State
from .pruning import Mask

# torch says this of itself when it first differentiates forward.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

# How many vectors and samples go through the network together: what the caches of a CPU core hold, or for large images
# (by the number of values in them) the memory of a GPU.
_VECTORS, _SAMPLES, _VALUES = 8, 500, 500_000


def surviving(tensors: State | Mask, mask: Mask) -> np.ndarray:
    """The entries of a state, or of another mask, where `mask` keeps a weight: (D,), layer by layer."""
    picked = torch.cat([tensors[name].cpu()[kept.cpu()] for name, kept in mask.items()]).numpy()
    return picked if picked.dtype == bool else picked.astype(np.float64)


class _Hessian:
    """Products with the Hessian by forward over reverse differentiation: `H u = d/dt grad L(w + t u)`.

    Works on a copy of the network, so loading another state into the original changes nothing here.
    """

    def __init__(self, network: nn.Module, mask: Mask, split: Split):
        if any(module.training for module in network.modules()):
            raise UnmaskError("the network is in training mode, where batch norm sees the batch: call network.eval()")
        known = dict(network.named_parameters())
        if wrong := [name for name in mask if name not in known or mask[name].shape != known[name].shape]:
            raise UnmaskError(f"mask of {wrong[0]!r}: the network has no such weight of this shape")
        if len(split.y) == 0 or not any(kept.any() for kept in mask.values()):
            raise UnmaskError("the Hessian needs at least one sample and one surviving weight")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.weights = {name: dict(self.network.named_parameters())[name] for name in mask}
        self.alive = {name: kept.flatten().nonzero().squeeze(1).to(split.x.device) for name, kept in mask.items()}
        self.sizes = [len(alive) for alive in self.alive.values()]
        x, y, *_ = split.first(len(split.y))  # normalised, if they are images
        self.split = Split(x.to(next(iter(self.weights.values())).dtype), y)

    def product(self, directions: dict[str, np.ndarray], wanted: list[str]) -> np.ndarray:
        """The rows of `H U` that belong to the layers `wanted`, (survivors in these layers, k).

        `directions`: U by layer, (survivors in the layer, k); layers left out do not move.
        """
        still = {name: self.weights[name] for name in wanted}
        start = {name: self.weights[name] for name in directions}
        tangents = {}
        for name, columns in directions.items():
            flat = start[name].new_zeros(columns.shape[1], start[name].numel())
            flat[:, self.alive[name]] = torch.from_numpy(columns.T.copy()).to(flat)
            tangents[name] = flat.view(-1, *start[name].shape)

        total = 0.0
        with networks.kernels(self.network):
            for x, y in self.split.chunks(max(1, min(_SAMPLES, _VALUES // self.split.x[0].numel()))):
                def loss(weights):
                    return F.cross_entropy(functional_call(self.network, weights, (x,)), y, reduction="sum")

                rows = vmap(lambda u: jvp(lambda moved: grad(loss)(still | moved), (start,), (u,))[1])(tangents)
                total = total + torch.cat([rows[n].flatten(1)[:, self.alive[n]] for n in wanted], 1).double()
        return total.cpu().numpy().T / len(self.split.y)


def hessian_operator(network: nn.Module, mask: Mask, split: Split) -> LinearOperator:
    """The Hessian as a SciPy operator, (D, D). A product with several vectors takes half the time of one by one.

    Raises:
        UnmaskError: the network is in training mode, the mask does not fit it, or there are no survivors or samples.
    """
    hessian, layers = _Hessian(network, mask, split), list(mask)

    def matmat(vectors: np.ndarray) -> np.ndarray:
        chunks = np.split(np.asarray(vectors, np.float64), range(_VECTORS, vectors.shape[1], _VECTORS), axis=1)
        ends = np.cumsum(hessian.sizes)[:-1]
        return np.hstack([hessian.product(dict(zip(layers, np.split(chunk, ends))), layers) for chunk in chunks])

    size = sum(hessian.sizes)
    return LinearOperator((size, size), matvec=lambda v: matmat(v.reshape(-1, 1))[:, 0], matmat=matmat, dtype=float)


def exact_hessian(network: nn.Module, mask: Mask, split: Split) -> np.ndarray:
    """The whole Hessian, (D, D), exactly symmetric: for small networks.

    Layer by layer, along unit vectors. Rows of the layers before are known by symmetry, so what lies below a layer is
    not differentiated again. Memory: 8 D^2 bytes.

    Raises:
        UnmaskError: as `hessian_operator`.
    """
    hessian, layers, start = _Hessian(network, mask, split), list(mask), 0
    matrix = np.empty((sum(hessian.sizes),) * 2)
    for index, (layer, size) in enumerate(zip(layers, hessian.sizes)):
        for first in range(0, size, _VECTORS):
            units = np.eye(size, min(_VECTORS, size - first), -first)
            here = slice(start + first, start + first + units.shape[1])
            matrix[here, start:] = hessian.product({layer: units}, layers[index:]).T
        block = matrix[start:start + size, start:start + size]
        block[:] = (block + block.T) / 2
        matrix[start + size:, start:start + size] = matrix[start:start + size, start + size:].T
        start += size
    return matrix


class Spectrum(NamedTuple):
    """Eigenvalues with weights, both (probes, n): each row estimates `sum_i f(lambda_i)` by `sum_k w_k f(v_k)`.

    The weights of a row sum to D. The exact spectrum, `Spectrum.exact`, is one row of D values of weight 1.
    """

    values: np.ndarray
    weights: np.ndarray

    @classmethod
    def exact(cls, eigenvalues: np.ndarray) -> Spectrum:
        return cls(np.array([eigenvalues], float), np.ones((1, len(eigenvalues))))

    def estimate(self, f: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """`sum_i f(lambda_i)`: the mean over rows and its standard error (nan for one row)."""
        rows = (self.weights * f(self.values)).sum(1)
        return float(rows.mean()), float(rows.std(ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else np.nan

    def density(self, grid: np.ndarray, width: float) -> np.ndarray:
        """Share of the eigenvalues per unit of curvature at each point of `grid`, smoothed by a Gaussian of `width`."""
        bumps = np.exp(-((grid[:, None] - self.values.ravel()) / width) ** 2 / 2) / (width * np.sqrt(2 * np.pi))
        return bumps @ self.weights.ravel() / self.weights.sum()


def lanczos(operator: LinearOperator, start: np.ndarray, steps: int) -> Spectrum:
    """Ritz values from each column of `start`, (D, probes), and D times the squared share of the column along them.

    These are the eigenvalues of the tridiagonal matrix of Lanczos and the squared first entries of its eigenvectors:
    nodes and weights of a Gaussian quadrature (Golub & Welsch 1969). All columns step together, with full
    re-orthogonalisation, twice. At most D steps are taken; where a Krylov space ends early the rest has weight 0.

    Raises:
        UnmaskError: fewer than one step.
    """
    return _lanczos(operator, start, (steps,))[0]


def _lanczos(operator: LinearOperator, start: np.ndarray, stops: Sequence[int]) -> list[Spectrum]:
    """`lanczos` for several numbers of steps at the price of the largest: fewer steps are the beginning of more."""
    if min(stops) < 1:
        raise UnmaskError(f"steps={min(stops)!r}: must be 1 or more")
    (size, probes), steps = start.shape, min(max(stops), len(start))
    basis, diagonal, beside = np.zeros((probes, steps, size)), np.zeros((probes, steps)), np.zeros((probes, steps))
    vectors = start / np.linalg.norm(start, axis=0)
    for step in range(steps):
        basis[:, step] = vectors.T
        images = operator.matmat(vectors)
        diagonal[:, step] = (vectors * images).sum(0)
        for found, image in zip(basis[:, :step + 1], images.T):
            for _ in range(2):
                image -= found.T @ (found @ image)
        length = np.linalg.norm(images, axis=0)
        vectors = np.divide(images, length, out=np.zeros_like(images), where=np.tile(length > 0, (size, 1)))
        beside[:, step] = length
    spectra = []
    for stop in stops:
        rows = [scipy.linalg.eigh_tridiagonal(d[:stop], b[:min(stop, steps) - 1]) for d, b in zip(diagonal, beside)]
        spectra.append(Spectrum(np.array([values for values, _ in rows]),
                                size * np.array([vectors[0] ** 2 for _, vectors in rows])))
    return spectra


def spectral_density(operator: LinearOperator, probes: int, steps: int, generator: torch.Generator) -> Spectrum:
    """The spectrum by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017): `lanczos` from random sign vectors.

    The largest values are the largest eigenvalues. The bulk is only resolved to about `lambda_max / steps^2`, which the
    spread over probes does not show: compare with twice the steps.

    Raises:
        UnmaskError: fewer than one probe or step.
    """
    return spectral_densities(operator, probes, (steps,), generator)[0]


def spectral_densities(operator: LinearOperator, probes: int, stops: Sequence[int], generator: torch.Generator,
                       ) -> list[Spectrum]:
    """`spectral_density` by each of several numbers of steps, from the same probes, at the price of the largest."""
    if probes < 1:
        raise UnmaskError(f"probes={probes!r}: must be 1 or more")
    signs = torch.randint(2, (probes, operator.shape[0]), generator=generator).numpy().T * 2.0 - 1
    return _lanczos(operator, signs, stops)


def trace(operator: LinearOperator, probes: int, generator: torch.Generator) -> tuple[float, float]:
    """The trace and its standard error, from `z' H z` of random sign vectors z (Hutchinson 1990).

    Raises:
        UnmaskError: fewer than one probe.
    """
    return spectral_density(operator, probes, 1, generator).estimate(lambda values: values)


def top_eigenvalues(operator: LinearOperator, k: int, generator: torch.Generator) -> np.ndarray:
    """The k largest eigenvalues, falling, to a relative 1e-5 (ARPACK's restarted Lanczos).

    Raises:
        UnmaskError: k is not between 1 and the number of dimensions.
    """
    size = operator.shape[0]
    if not 1 <= k <= size:
        raise UnmaskError(f"k={k!r}: must be between 1 and the {size} dimensions")
    if k == size:  # ARPACK finds all but one at most
        return np.linalg.eigvalsh(operator.matmat(np.eye(size)))[::-1]
    start = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
    return np.sort(eigsh(operator, k, which="LA", v0=start, tol=1e-5, return_eigenvectors=False))[::-1]


def curvature_along(operator: LinearOperator, vectors: np.ndarray) -> np.ndarray:
    """`v' H v / v' v` for each column v of `vectors`, (D, k).

    Raises:
        UnmaskError: a vector is zero.
    """
    squares = (vectors ** 2).sum(0)
    if not (squares > 0).all():
        raise UnmaskError("the curvature along a zero vector is not defined")
    return (vectors * operator.matmat(vectors)).sum(0) / squares


# The maximum pruning ratio, by the theory of random subspaces (paper, Finding 3, after Larsen et al. 2022).


def random_distances(weights: np.ndarray) -> np.ndarray:
    """`R = sqrt(m / D) ||w||`, the root mean square distance to the projection when m = 0 ... D random weights go."""
    return np.sqrt(np.linspace(0, 1, len(weights) + 1)) * np.linalg.norm(weights)


def magnitude_distances(weights: np.ndarray) -> np.ndarray:
    """R, the distance to the projection when the m = 0 ... D weights of smallest magnitude go, (D + 1,)."""
    return np.sqrt(np.cumsum(np.concatenate([[0], np.sort(weights ** 2)])))


def predicted_dimension(spectrum: Spectrum, distance: float, eps: float, floor: float = 0.0) -> np.ndarray:
    """`sum_i r_i^2 / (r_i^2 + R^2)`, `r_i^2 = 2 eps / lambda_i`, for each row of the spectrum.

    So many dimensions can go before a random subspace through a random point at `distance` R misses the ellipsoid of
    loss rise `eps` (an approximation from below: in truth some more). Eigenvalues up to `floor`, the noise of their
    estimate, and negative ones count as flat: 1 each.

    Raises:
        UnmaskError: `eps` is not positive and finite, `distance` is negative, the spectrum is empty or not finite.
    """
    _check_eps(eps)
    if not distance >= 0:
        raise UnmaskError(f"distance={distance!r}: must be 0 or more")
    if spectrum.values.size == 0 or not np.isfinite(spectrum.values).all():
        raise UnmaskError("the spectrum is empty or has values that are not finite")
    sharp = np.where(spectrum.values > floor, spectrum.values, 0)
    return (spectrum.weights * 2 * eps / (2 * eps + sharp * distance ** 2)).sum(1)


def max_pruning_ratio(spectrum: Spectrum, distances: np.ndarray, eps: float, floor: float = 0.0) -> np.ndarray:
    """The largest m / D with `m <= predicted_dimension` at R(m), for each row of the spectrum.

    m rises, and the right side does not, as it falls in R and R grows with m: what is allowed ends at one m, found by
    bisection. Assumes a random subspace, and a gradient of zero at the solution. An estimated spectrum must resolve
    eigenvalues of about `2 eps / R^2`, where flat ends.

    Args:
        distances: R for m = 0 ... D, (D + 1,); see `random_distances` and `magnitude_distances`.

    Raises:
        UnmaskError: as `predicted_dimension`, or the distances fall or do not fit the spectrum's dimensions.
    """
    size = len(distances) - 1
    predicted_dimension(spectrum, 0, eps)  # raises what it raises
    if not np.allclose(spectrum.weights.sum(1), size):
        raise UnmaskError(f"distances for {size} dimensions: the spectrum has {spectrum.weights[0].sum():.0f}")
    if not (np.diff(distances) >= 0).all():
        raise UnmaskError("distances must not fall as more weights are removed")

    def allowed(row: Spectrum) -> int:
        low, high = 0, size + 1  # 0 is allowed, size + 1 is not
        while high - low > 1:
            m = (low + high) // 2
            fits = m <= predicted_dimension(row, distances[m], eps, floor)[0] * (1 + 1e-9)
            low, high = (m, high) if fits else (low, m)
        return low

    return np.array([allowed(Spectrum(v[None], w[None])) for v, w in zip(*spectrum)]) / size


# The maximum pruning ratio, by the quadratic in the axial subspace itself.


def convexify(hessian: np.ndarray, cutoff: float = 1e-8) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues, rising, and the Hessian with those below `cutoff` times the largest raised to that.

    A quadratic with negative curvature has no minimum. Here such directions are almost flat instead: almost free, as
    in the theory. The result is nowhere below the quadratic of `hessian`, so what it allows, that allows too.

    Raises:
        UnmaskError: no eigenvalue is positive.
    """
    values, vectors = scipy.linalg.eigh(hessian)
    least = cutoff * values[-1]
    if least <= 0:
        raise UnmaskError(f"no direction has positive curvature (largest eigenvalue {values[-1]:.3g})")
    low = int((values < least).sum())
    raised = vectors[:, :low] * np.sqrt(least - values[:low])
    del vectors
    convex = raised @ raised.T
    convex += hessian
    return values, convex


def least_rises(hessian: np.ndarray, weights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The least loss rise in the axial subspace after each removal: (D + 1,), from 0, never falling.

    For removed weights p and kept weights k it is `1/2 w_p' (H_pp - H_pk H_kk^-1 H_kp) w_p`: the kept weights make up
    for the removed ones as well as they can (Optimal Brain Surgeon, Hassibi & Stork 1993). Put the first to be removed
    last and factorise `H = L L'`: the Schur complement of the last m is `M M'`, where M is the last m x m block of L.
    The rise is half the squared length of the last m entries of `L' w`: one factorisation gives every m.

    Args:
        hessian: (D, D), positive definite; see `convexify`.
        weights: (D,), the solution, where the gradient is taken to be zero.
        order: (D,), a permutation: which weight is removed first, second, ...

    Raises:
        UnmaskError: `order` is not a permutation, or the Hessian is not positive definite.
    """
    if not np.array_equal(np.sort(order), np.arange(len(weights))):
        raise UnmaskError(f"order must name each of the {len(weights)} weights once")
    backwards = np.asarray(order)[::-1]
    try:
        factor = torch.linalg.cholesky(torch.from_numpy(hessian[np.ix_(backwards, backwards)])).numpy()
    except torch.linalg.LinAlgError:
        raise UnmaskError("the Hessian is not positive definite: take that of convexify(hessian)") from None
    return np.concatenate([[0], np.cumsum((weights[backwards] @ factor)[::-1] ** 2 / 2)])


def exact_quadratic(hessian: np.ndarray, weights: np.ndarray, removed: np.ndarray) -> float:
    """The least loss rise in the axial subspace without the weights where `removed`, (D,) of bool, is true.

    Raises:
        UnmaskError: as `least_rises`.
    """
    return float(least_rises(hessian, weights, np.argsort(~removed, kind="stable"))[removed.sum()])


def largest_ratio(rises: np.ndarray, eps: float) -> float:
    """The largest m / D whose rise, of `least_rises`, is at most `eps`.

    Raises:
        UnmaskError: `eps` is not positive and finite.
    """
    _check_eps(eps)
    return float((np.searchsorted(rises, eps, side="right") - 1) / (len(rises) - 1))


def _check_eps(eps: float) -> None:
    if not (np.isfinite(eps) and eps > 0):
        raise UnmaskError(f"eps={eps!r}: must be positive and finite")
