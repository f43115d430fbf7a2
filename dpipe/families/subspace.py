"""The leading principal components of wide rows, from a few readings: a block Krylov space of their cross products.

Each reading multiplies the cross products C of the features by some directions, block by block, without ever forming C:
memory is features times directions. The products are the next directions, once what is known already is taken off.
All of them together hold the leading eigenvectors to far more digits than the last ones alone (power iteration), so
that few readings do; what is still missing is known exactly, and decides when to stop.

References
----------
Golub, Underwood (1977), The block Lanczos method for computing eigenvalues. Halko, Martinsson, Tropp (2011), Finding
structure with randomness. Musco, Musco (2015), Randomized block Krylov methods for stronger and faster approximate
singular value decomposition. Wu, Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.linalg.blas import dgemm
from sklearn.exceptions import ConvergenceWarning

from dpipe.blocks.table import Block, numbers
from dpipe.blocks.threads import single_threaded_blas
from dpipe.families.asking import Asking

#: Readings at most; one for each digit or two is usual, and a flat spectrum takes the most.
MOST_READINGS = 40
#: A component has converged when C maps it to its multiple, up to this share of the multiple.
TOLERANCE = 1e-8
#: What rounding leaves of a product, as a share of the largest eigenvalue.
_ROUNDING = 1e-14
#: Blocks of directions that are held; then the best half is kept, and the rest is found again if it matters.
_MOST_BLOCKS = 12
#: Directions at least: to move rows through memory costs more than to multiply them by some more of these.
_FEWEST_DIRECTIONS = 32
#: Bytes of rows that are worked on at a time, centred, in float64.
_SLICE_NBYTES = 16 * 2**20


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of the cross products of X, the largest first, and what is known of all of them."""

    n_rows: int
    mean: np.ndarray
    """Of shape (n_features,)."""
    values: np.ndarray
    """Of shape (n_found,)."""
    rows: np.ndarray
    """An eigenvector each; of shape (n_found, n_features)."""
    spread: np.ndarray
    """Squared deviations of the rows along each eigenvector; the eigenvalues if they are of centred products."""
    total: float
    """Squared deviations of all features."""
    dtype: np.dtype[Any]
    sparse: bool


@dataclass(frozen=True)
class Products:
    """The centred cross products of X, multiplied by some directions.

    References
    ----------
    Chan, Golub, LeVeque (1979), the update formula for covariances.
    """

    n_rows: int
    mean: np.ndarray
    total: float
    """Squared deviations of all features."""
    products: np.ndarray
    """float64 of shape (n_features, n_directions)."""
    along: np.ndarray
    """The mean along each direction; of shape (n_directions,)."""
    dtype: np.dtype[Any]
    sparse: bool

    @np.errstate(invalid="ignore", over="ignore")  # infinity is refused when all blocks are joined
    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        n = self.n_rows + other.n_rows
        apart, both = other.mean - self.mean, self.n_rows * (other.n_rows / n)
        return type(self)(
            n,
            self.mean + apart * (other.n_rows / n),
            self.total + other.total + both * float(apart @ apart),
            self.products + other.products + np.outer(apart, both * (other.along - self.along)),
            self.along + (other.along - self.along) * (other.n_rows / n),
            np.result_type(self.dtype, other.dtype),
            self.sparse or other.sparse,
        )


@dataclass(frozen=True, eq=False)
class Directions:
    """Wants the cross products multiplied by some directions."""

    directions: np.ndarray
    """Of shape (n_features, n_directions)."""
    about: np.ndarray | None = None
    """A point near the mean; None for the first row of each block."""
    name: ClassVar[str] = "products with the leading directions"

    @np.errstate(invalid="ignore", over="ignore")
    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> Products:
        """Read one block."""
        matrix = numbers(X)
        with single_threaded_blas():
            n, sums, total, products = (self._sparse if sp.issparse(matrix) else self._dense)(matrix)
            start = 0.0 if sp.issparse(matrix) else self._start(matrix)
            off = sums / n
            products -= np.outer(off, n * (off @ self.directions))
            mean = start + off
            total -= n * float(off @ off)
            along = mean @ self.directions
        return Products(n, mean, total, products, along, matrix.dtype, bool(sp.issparse(matrix)))

    def _start(self, matrix: np.ndarray) -> np.ndarray:
        return matrix[0].astype(np.float64) if self.about is None else self.about

    def _dense(self, matrix: np.ndarray) -> tuple[int, np.ndarray, float, np.ndarray]:
        """Sums of the deviations from the start, of their squares, and their products with the directions."""
        n, width = matrix.shape
        k = self.directions.shape[1]
        size = min(n, max(_SLICE_NBYTES // (8 * width), 16))
        held, start = np.empty((size, width)), self._start(matrix)
        # a last column of ones adds up the deviations themselves
        out, with_ones = np.zeros((width, k + 1), order="F"), np.ones((size, k + 1))
        total = 0.0
        for first in range(0, n, size):
            m = min(size, n - first)
            rows = np.subtract(matrix[first : first + m], start, out=held[:m], dtype=np.float64)
            np.matmul(rows, self.directions, out=with_ones[:m, :k])
            out = dgemm(1.0, rows.T, with_ones[:m], beta=1.0, c=out, overwrite_c=1)
            total += float(np.vdot(rows, rows))
        return n, out[:, k].copy(), total, out[:, :k]

    def _sparse(self, matrix: Any) -> tuple[int, np.ndarray, float, np.ndarray]:
        # a sparse matrix is not shifted: that would fill it
        values = matrix.astype(np.float64)
        products = np.asarray(values.T @ (values @ self.directions))
        return (
            len(values.indptr) - 1,
            np.asarray(values.sum(axis=0)).ravel(),
            float((values.data**2).sum()),
            products,
        )


def n_directions(wanted: int, oversamples: int) -> int:
    """Choose how many directions are multiplied at a time.

    Examples
    --------
    >>> n_directions(5, oversamples=10), n_directions(50, oversamples=10)
    (32, 60)
    """
    return max(wanted + oversamples, _FEWEST_DIRECTIONS)


def nbytes_held(width: int, wanted: int, oversamples: int) -> tuple[int, int]:
    """Count the bytes of what one block gives, and of all that is held where the next directions are chosen.

    Examples
    --------
    >>> nbytes_held(65_000, 5, oversamples=10)
    (16640000, 282880000)
    """
    state = 8 * width * n_directions(wanted, oversamples)
    return state, (_MOST_BLOCKS + 5) * state


def _orthonormal(vectors: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Give an orthonormal basis of some vectors as Q R, without what is no longer than `least`."""
    if not vectors.shape[1]:
        return vectors, np.empty((0, 0))
    q, r, order = scipy.linalg.qr(vectors, mode="economic", pivoting=True)
    found = int((np.abs(np.diag(r)) > least).sum())
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return np.ascontiguousarray(q[:, :found]), r[:found][:, back]


class _Krylov:
    """The directions so far, and the cross products of the features as seen from them."""

    def __init__(self, width: int, wanted: int, n: int, seed: int, *, centred: bool) -> None:
        self._wanted, self._centred = wanted, centred
        self._random = np.random.default_rng(seed)
        self._blocks: list[np.ndarray] = []
        self._spread = np.empty((0, 0))
        """Centred cross products between the directions."""
        self._along: np.ndarray = np.empty(0)
        """The mean along each."""
        self.values: np.ndarray = np.empty(0)
        self._vectors: np.ndarray = np.empty((0, 0))
        self.missing: np.ndarray = np.empty(0)
        """How far each wanted component is from being an eigenvector."""
        self.next, _ = _orthonormal(self._random.standard_normal((width, min(n, width))), 0.0)

    def take(self, found: Products) -> None:
        """Take the products with `next`; find the components, what they miss, and the next directions."""
        new = self.next
        self._blocks.append(new)
        old, k = len(self._along), new.shape[1]
        column = self._seen(found.products)
        spread = np.empty((old + k, old + k))
        spread[:old, :old], spread[:, old:], spread[old:, :old] = self._spread, column, column[:old].T
        spread[old:, old:] = (column[old:] + column[old:].T) / 2
        self._spread = spread
        self._along = np.concatenate([self._along, found.mean @ new])
        products, square = found.products, spread
        if not self._centred:
            products = products + np.outer(found.mean, found.n_rows * found.along)
            square = spread + found.n_rows * np.outer(self._along, self._along)
        values, vectors = scipy.linalg.eigh(square)
        self.values, self._vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
        least = _ROUNDING * self.values[0]
        self.next, left = _orthonormal(self._apart(self._apart(products)), least)
        # what is left of a product may be short, and what is parallel to others of the same length
        self.next, turned = _orthonormal(self._apart(self.next), 0.5)
        self.missing = np.linalg.norm(turned @ left @ self._vectors[old:, : self._wanted], axis=0)
        if len(self._along) + k > _MOST_BLOCKS * k:
            self._restart((_MOST_BLOCKS // 2) * k)

    @property
    def done(self) -> bool:
        """Whether all wanted components have converged, or nothing else is left in the rows."""
        allowed = TOLERANCE * self.values[: self._wanted] + _ROUNDING * self.values[0]
        return not self.next.shape[1] or bool((self.missing <= allowed).all())

    @property
    def error(self) -> float:
        """The largest of what the wanted components miss, as a share of their eigenvalues."""
        values = self.values[: self._wanted]
        return float((self.missing[values > 0] / values[values > 0]).max(initial=0.0))

    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the wanted eigenvectors as rows, and the squared deviations along each."""
        chosen = self._vectors[:, : self._wanted]
        spread = np.einsum("ij,ik,kj->j", chosen, self._spread, chosen)
        return self._made(chosen).T, np.clip(spread, 0.0, None)

    def _seen(self, vectors: np.ndarray) -> np.ndarray:
        return np.concatenate([block.T @ vectors for block in self._blocks])

    def _made(self, shares: np.ndarray) -> np.ndarray:
        made, start = 0.0, 0
        for block in self._blocks:
            made = made + block @ shares[start : start + block.shape[1]]
            start += block.shape[1]
        return np.asarray(made)

    def _apart(self, vectors: np.ndarray) -> np.ndarray:
        """Take off what lies along the directions so far."""
        return vectors - self._made(self._seen(vectors))

    def _restart(self, kept: int) -> None:
        chosen = self._vectors[:, :kept]
        self._blocks = [self._made(chosen)]
        self._spread, self._along = chosen.T @ self._spread @ chosen, chosen.T @ self._along
        self._vectors = np.eye(kept)


def leading(
    width: int,
    wanted: int,
    *,
    oversamples: int,
    seed: int,
    centred: bool,
    check: Callable[[Products], None],
) -> Asking:
    """Find the leading eigenvectors of the cross products, one reading after another; gives a `Spectrum`.

    Parameters
    ----------
    width : int
        Features.
    wanted : int
        Eigenvectors, at most `width`.
    oversamples : int
        Directions beyond them, at least.
    seed : int
        Of the first directions.
    centred : bool
        Whether the mean is taken off the rows.
    check : callable
        Is given what the first reading has found, and raises if that does not do.
    """
    with single_threaded_blas():
        space = _Krylov(width, wanted, n_directions(wanted, oversamples), seed, centred=centred)
    about = None
    for _ in range(MOST_READINGS):
        (found,) = yield (Directions(space.next, about),)
        if about is None:
            check(found)
            about = found.mean
        with single_threaded_blas():
            space.take(found)
        if space.done:
            break
    else:
        warnings.warn(
            f"After {MOST_READINGS} readings the components are eigenvectors up to {space.error:.0e} of their "
            "eigenvalues: those that differ by no more are not told apart. Ask for fewer components, for which the "
            "eigenvalues differ more, or use the exact way on fewer features.",
            ConvergenceWarning,
            stacklevel=2,
        )
    with single_threaded_blas():
        rows, spread = space.components()
    values = space.values[:wanted]
    return Spectrum(found.n_rows, found.mean, values, rows, spread, found.total, found.dtype, found.sparse)
