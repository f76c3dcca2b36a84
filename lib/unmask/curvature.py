"""Curvature: the Hessian of the train loss at a solution, its Gauss-Newton part, and spectra.

The Hessian is that of the mean cross-entropy over a split, in nats, in evaluation mode, restricted
to a mask's survivors: D x D, where D counts survivors, in the order of `pruning.surviving`. Arrays
are float64; products are computed in the network's own precision, so a float32 network resolves
eigenvalues down to about 1e-6 of the largest.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator
from torch import nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import networks
from .data import Split
from .errors import Degenerate, UnmaskError
from .pruning import Mask

# torch says this of itself when it first differentiates forward.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

# How many vectors and samples go through the network together: what the caches of a CPU core hold,
# or for large images (by the number of values in them) the memory of a GPU.
_VECTORS, _SAMPLES, _VALUES = 8, 500, 500_000


class _Hessian(LinearOperator):
    """Products with the Hessian by forward over reverse differentiation: `H u = d/dt grad L(w + t
    u)`.

    Works on a copy of the network, so loading another state into the original changes nothing here.
    """

    def __init__(self, network: nn.Module, mask: Mask, split: Split):
        if any(module.training for module in network.modules()):
            raise UnmaskError("the network is in training mode: call network.eval()")
        known = dict(network.named_parameters())
        for name, kept in mask.items():
            if name not in known or kept.shape != known[name].shape:
                raise UnmaskError(f"mask of {name!r}: the network has no such weight of this shape")
        if len(split.y) == 0 or not any(kept.any() for kept in mask.values()):
            raise UnmaskError("the Hessian needs at least one sample and one surviving weight")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.weights = {name: dict(self.network.named_parameters())[name] for name in mask}
        self.alive = {n: m.flatten().nonzero().squeeze(1).to(split.device) for n, m in mask.items()}
        self.sizes = [len(alive) for alive in self.alive.values()]
        x, y, *_ = split.as_inputs(len(split.y))
        self.split = Split(x.to(next(iter(self.weights.values())).dtype), y)
        super().__init__(np.float64, (sum(self.sizes),) * 2)

    def _matmat(self, vectors: np.ndarray) -> np.ndarray:
        layers, ends, products = list(self.weights), np.cumsum(self.sizes)[:-1], []
        for chunk in np.split(vectors, range(_VECTORS, vectors.shape[1], _VECTORS), axis=1):
            by_layer = dict(zip(layers, np.split(chunk, ends)))
            products.append(self.product(by_layer, layers))
        return np.hstack(products)

    def product(self, directions: dict[str, np.ndarray], wanted: list[str]) -> np.ndarray:
        """The rows of `H U` that belong to the layers `wanted`, (survivors in these layers, k).

        `directions`: U by layer, (survivors in the layer, k); layers left out do not move."""
        still = {name: self.weights[name] for name in wanted}
        start = {name: self.weights[name] for name in directions}
        tangents = {}
        for name, columns in directions.items():
            flat = start[name].new_zeros(columns.shape[1], start[name].numel())
            flat[:, self.alive[name]] = torch.from_numpy(columns.T.copy()).to(flat)
            tangents[name] = flat.view(-1, *start[name].shape)

        total = 0.0
        size = max(1, min(_SAMPLES, _VALUES // self.split.x[0].numel()))
        # attention in plain operations: its fused kernels are not differentiated forward
        with networks.kernels(self.network), sdpa_kernel(SDPBackend.MATH):
            for x, y in self.split.chunks(size):
                one = functools.partial(self._one, still, start, x, y)
                try:
                    rows = vmap(one)(tangents)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    said = str(error).partition(". ")[0]
                    raise Degenerate(f"no curvature of this network by torch: {said}") from None
                rows = [rows[name].flatten(1)[:, self.alive[name]] for name in wanted]
                total = total + torch.cat(rows, 1).double()
        return total.cpu().numpy().T / len(self.split.y)

    def _logits(self, weights, x):
        return functional_call(self.network, weights, (x,))

    def _one(self, still, start, x, y, u):
        """The product with one direction `u`, summed over the samples (x, y), in layers `still`."""

        def loss(weights):
            return F.cross_entropy(self._logits(weights, x), y, reduction="sum")

        def gradient(moved):
            return grad(loss)(still | moved)

        return jvp(gradient, (start,), (u,))[1]


class _GaussNewton(_Hessian):
    """Products with `J' S J`, where J is the Jacobian of the logits and S the Hessian of the loss
    in them, `diag(p) - p p'`: the Hessian without the curvature of the network itself. It has no
    negative eigenvalue (Schraudolph 2002)."""

    def _one(self, still, start, x, y, u):
        logits, along = jvp(lambda moved: self._logits(still | moved, x), (start,), (u,))
        p = logits.softmax(1)
        along = p * (along - (p * along).sum(1, keepdim=True))
        _, pull = vjp(lambda weights: self._logits(weights, x), still)
        return pull(along)[0]


HESSIAN, GAUSS_NEWTON = "hessian", "gauss-newton"
_MATRICES = {HESSIAN: _Hessian, GAUSS_NEWTON: _GaussNewton}


def hessian_operator(
    network: nn.Module, mask: Mask, split: Split, matrix: str = HESSIAN
) -> LinearOperator:
    """The Hessian, or its Gauss-Newton part, as a SciPy operator, (D, D). Products with several
    vectors at once are faster.
    Raises UnmaskError: the network is in training mode, the mask does not fit it, or there are no
    survivors or samples. A product raises Degenerate: torch cannot differentiate it twice."""
    return _MATRICES[matrix](network, mask, split)


def exact_hessian(
    network: nn.Module, mask: Mask, split: Split, matrix: str = HESSIAN
) -> np.ndarray:
    """The whole Hessian, or its Gauss-Newton part, (D, D), exactly symmetric: for small networks.
    Memory: 8 D^2 bytes.
    Raises UnmaskError: as `hessian_operator`."""
    hessian, layers = _MATRICES[matrix](network, mask, split), list(mask)
    whole, start = np.empty(hessian.shape), 0
    for index, (layer, size) in enumerate(zip(layers, hessian.sizes)):
        # Rows along unit vectors of this layer. Those of the layers before are known by symmetry,
        # so what lies below this layer is not differentiated again.
        for first in range(0, size, _VECTORS):
            units = np.eye(size, min(_VECTORS, size - first), -first)
            here = slice(start + first, start + first + units.shape[1])
            whole[here, start:] = hessian.product({layer: units}, layers[index:]).T
        end = start + size
        # Rounding leaves the layer's own block not quite symmetric; the rest is copied.
        block = whole[start:end, start:end]
        block[:] = (block + block.T) / 2
        whole[end:, start:end] = whole[start:end, end:].T
        start = end
    return whole


def loss_gradient(network: nn.Module, mask: Mask, split: Split) -> np.ndarray:
    """The gradient of the train loss in the survivors, (D,), in nats per unit of weight.
    Raises UnmaskError: as `hessian_operator`."""
    where = _Hessian(network, mask, split)

    def loss(weights):
        return F.cross_entropy(where._logits(weights, where.split.x), where.split.y)

    found = grad(loss)(where.weights)
    parts = [found[name].flatten()[alive] for name, alive in where.alive.items()]
    return torch.cat(parts).double().cpu().numpy()


class Spectrum(NamedTuple):
    """Eigenvalues with weights, both (probes, n): a row estimates `sum_i f(lambda_i)` by `sum_k
    w_k f(v_k)`. The weights of a row sum to D; the exact spectrum is one row of weights 1."""

    values: np.ndarray
    weights: np.ndarray

    def estimate(self, f: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """`sum_i f(lambda_i)`: the mean over rows and its standard error (unknown for one row)."""
        rows = (self.weights * f(self.values)).sum(1)
        error = rows.std(ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.nan
        return float(rows.mean()), float(error)


def spectral_densities(
    operator: LinearOperator, probes: int, stops: Sequence[int], generator: torch.Generator
) -> list[Spectrum]:
    """The spectrum by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017) from random sign
    vectors, by each of several numbers of steps: fewer are the beginning of more.

    The largest values are the largest eigenvalues. The bulk is only resolved to about `lambda_max /
    steps^2`, which the spread over probes does not show: compare with twice the steps.
    Raises UnmaskError: fewer than one probe or step."""
    if probes < 1 or min(stops) < 1:
        raise UnmaskError(f"probes={probes!r}, steps={min(stops)!r}: must be 1 or more")
    signs = torch.randint(2, (probes, operator.shape[0]), generator=generator).numpy().T * 2.0 - 1
    return lanczos(operator, signs, stops)


def lanczos(operator: LinearOperator, start: np.ndarray, stops: Sequence[int]) -> list[Spectrum]:
    """After each number of steps: Ritz values from each column of `start`, (D, probes), and D times
    the squared share of the column along them.

    These are the eigenvalues of the tridiagonal matrix of Lanczos and the squared first entries of
    its eigenvectors: nodes and weights of a Gaussian quadrature (Golub & Welsch 1969). At most D
    steps are taken; where a Krylov space ends early the rest has weight 0."""
    (size, probes), steps = start.shape, min(max(stops), len(start))
    basis = np.zeros((probes, steps, size))
    diagonal, beside = np.zeros((probes, steps)), np.zeros((probes, steps))
    vectors = start / np.linalg.norm(start, axis=0)
    for step in range(steps):
        # One step of every column: the next direction is the image of the last.
        basis[:, step] = vectors.T
        images = operator.matmat(vectors)
        diagonal[:, step] = (vectors * images).sum(0)
        # Re-orthogonalised against all vectors before, twice: once leaves copies of eigenvalues.
        for found, image in zip(basis[:, : step + 1], images.T):
            for _ in range(2):
                image -= found.T @ (found @ image)
        # What is left has length 0 where the Krylov space has ended.
        length = np.linalg.norm(images, axis=0)
        left = np.tile(length > 0, (size, 1))
        vectors = np.divide(images, length, out=np.zeros_like(images), where=left)
        beside[:, step] = length
    # The first steps of the tridiagonal matrix are that of fewer steps.
    spectra = []
    for stop in stops:
        sides = zip(diagonal[:, :stop], beside[:, : min(stop, steps) - 1])
        rows = [scipy.linalg.eigh_tridiagonal(*both) for both in sides]
        values, vectors = (np.array(each) for each in zip(*rows))
        spectra.append(Spectrum(values, size * vectors[:, 0] ** 2))
    return spectra


def curvature_along(operator: LinearOperator, vectors: np.ndarray) -> np.ndarray:
    """`v' H v / v' v` for each column v of `vectors`, (D, k).
    Raises UnmaskError: a vector is zero."""
    squares = (vectors**2).sum(0)
    if not (squares > 0).all():
        raise Degenerate("the curvature along a zero vector is not defined")
    return (vectors * operator.matmat(vectors)).sum(0) / squares
