"""The leading principal components of wide rows, from a few readings: a block Krylov space of their cross products.

Each reading multiplies the cross products C of the features by some directions, block by block, without ever forming C:
memory is features times directions. The products are the next directions, once what is known already is taken off.
All of them together hold the leading eigenvectors to far more digits than the last ones alone (power iteration), so
that few readings do; what is still missing is known exactly, and decides when to stop. The first readings, of dense
rows, are in float32, which takes half the time; what they have found is where the others, in float64, begin.

References
----------
Golub, Underwood (1977), The block Lanczos method for computing eigenvalues. Halko, Martinsson, Tropp (2011), Finding
structure with randomness. Musco, Musco (2015), Randomized block Krylov methods for stronger and faster approximate
singular value decomposition. Wu, Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems.
Carson, Higham (2018), Accelerating the solution of linear systems by iterative refinement in three precisions.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
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
#: The same where products are in float32, and only say where to begin.
_ROUGH_TOLERANCE, _ROUGH_ROUNDING = 1e-5, 1e-6
#: Between which the largest of these products must lie.
_ROUGH_RANGE = (1e-20, 1e30)
#: Blocks of directions that are held; then the best half is kept, and the rest is found again if it matters.
_MOST_BLOCKS = 12
#: Directions at least: to move rows through memory costs more than to multiply them by some more of these.
_FEWEST_DIRECTIONS = 16
#: Features whose products are added up at a time, in the cache of a core.
_FEATURES_AT_A_TIME = 4096
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
    """Squared deviations of all features; of dense rows it is counted in the first reading only."""
    products: np.ndarray
    """Of shape (n_features, n_directions), and of the type of the directions."""
    along: np.ndarray
    """The mean along each direction; of shape (n_directions,)."""
    dtype: np.dtype[Any]
    sparse: bool

    @np.errstate(invalid="ignore", over="ignore")  # infinity is refused when all blocks are joined
    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        n = self.n_rows + other.n_rows
        apart, both = other.mean - self.mean, self.n_rows * (other.n_rows / n)
        products = self.products + other.products
        if apart.any():  # all readings but the first one are about the mean of all rows
            along = other.along - self.along
            _add_outer(products, both, apart, along)
        return type(self)(
            n,
            self.mean + apart * (other.n_rows / n),
            self.total + other.total + both * float(apart @ apart),
            products,
            self.along + (other.along - self.along) * (other.n_rows / n),
            np.result_type(self.dtype, other.dtype),
            self.sparse or other.sparse,
        )


@dataclass(frozen=True, eq=False)
class Directions:
    """Wants the cross products multiplied by some directions."""

    directions: np.ndarray
    """Of shape (n_features, n_directions); in float32, all is worked out in it."""
    about: np.ndarray | None = None
    """What is taken off the rows, once something near their mean is known."""
    is_mean: bool = False
    """Whether that is their mean to the last digit."""
    spare: list[np.ndarray] = field(default_factory=list, init=False, repr=False)
    """Memory for slices of rows that nobody works on: to fetch it anew for each block takes longer than the work."""
    name: ClassVar[str] = "products with the leading directions"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "spare": []}

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> Products:
        """Read one block."""
        sums = self.begun()
        sums.add(X)
        return sums.state()

    def begun(self) -> "_Sums":
        """Begin with no rows, and add up blocks in place."""
        return _Sums(self)


class _Sums:
    """Sums over some blocks of deviations from a point, of their squares, and their products with the directions."""

    def __init__(self, wanted: Directions) -> None:
        self._wanted = wanted
        self._about = wanted.about
        self._real = wanted.directions.dtype
        self._n, self._total = 0, 0.0
        self._dtype: Any = None
        self._sparse = False
        self._out: Any = None
        self._held: np.ndarray | None = None

    @np.errstate(invalid="ignore", over="ignore")
    def add(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> None:
        """Add the rows of one block."""
        matrix = numbers(X)
        self._dtype = matrix.dtype if self._dtype is None else np.result_type(self._dtype, matrix.dtype)
        self._sparse = self._sparse or bool(sp.issparse(matrix))
        self._n += matrix.shape[0]
        with single_threaded_blas():
            if sp.issparse(matrix):
                self._add_sparse(matrix)
            else:
                self._add_dense(matrix)

    @np.errstate(invalid="ignore", over="ignore")
    def state(self) -> Products:
        """Give what was added up, about the mean of these rows."""
        directions, n = self._wanted.directions, self._n
        k = directions.shape[1]
        if self._held is not None:
            self._wanted.spare.append(self._held)
            self._held = None
        with single_threaded_blas():
            if self._is_mean_known:
                mean = self._about
                products, total = self._out.T, self._total
            else:
                off = self._out[k] / n
                mean = off if self._about is None else self._about + off
                products = self._out[:k].T
                _add_outer(products, -n, off, off @ directions)
                total = self._total - n * float(off @ off)
            assert mean is not None
            along = mean.astype(self._real, copy=False) @ directions
            return Products(n, mean, total, products, along, self._dtype, self._sparse)

    @property
    def _is_mean_known(self) -> bool:
        return self._wanted.is_mean and not self._sparse

    def _add_dense(self, matrix: np.ndarray) -> None:
        n, width = matrix.shape
        k = self._wanted.directions.shape[1]
        if self._about is None:
            self._about = matrix[0].astype(np.float64)
        about = self._about.astype(self._real, copy=False)
        # a last column of ones adds up the deviations themselves
        with_ones = k + (not self._is_mean_known)
        if self._held is None:
            size = max(_SLICE_NBYTES // (self._real.itemsize * width), 16)
            self._held = _popped(self._wanted.spare, (size, width), self._real)
            self._out = np.zeros((with_ones, width), self._real)
        held, all_scores = self._held, np.ones((min(n, len(self._held)), with_ones), self._real)
        for first in range(0, n, len(held)):
            m = min(len(held), n - first)
            rows, scores = held[:m], all_scores[:m]
            np.subtract(matrix[first : first + m], about, out=rows, casting="same_kind")
            np.matmul(rows, self._wanted.directions, out=scores[:, :k])
            # BLAS could add to what is there, but SciPy's way to it stops all other threads of Python
            for start in range(0, width, _FEATURES_AT_A_TIME):
                some = slice(start, start + _FEATURES_AT_A_TIME)
                self._out[:, some] += scores.T @ rows[:, some]
            if not self._is_mean_known:  # the squares are known then, too
                self._total += float(np.vdot(rows, rows))

    def _add_sparse(self, matrix: Any) -> None:
        # a sparse matrix is not shifted: that would fill it
        self._about, values = None, matrix.astype(np.float64)
        products = np.asarray(values.T @ (values @ self._wanted.directions))
        sums = np.asarray(values.sum(axis=0)).reshape(-1, 1)
        out = np.vstack([products.T, sums.T])
        self._out = out if self._out is None else np.add(self._out, out, out=self._out)
        self._total += float((values.data**2).sum())


def n_directions(wanted: int, oversamples: int) -> int:
    """Choose how many directions are multiplied at a time.

    Examples
    --------
    >>> n_directions(5, oversamples=10), n_directions(50, oversamples=10)
    (16, 60)
    """
    return max(wanted + oversamples, _FEWEST_DIRECTIONS)


def nbytes_held(width: int, wanted: int, oversamples: int) -> tuple[int, int]:
    """Count the bytes of what one block gives, and of all that is held where the next directions are chosen.

    Examples
    --------
    >>> nbytes_held(65_000, 5, oversamples=10)
    (8320000, 141440000)
    """
    state = 8 * width * n_directions(wanted, oversamples)
    return state, (_MOST_BLOCKS + 5) * state


def _popped(spare: list[np.ndarray], shape: tuple[int, int], dtype: Any) -> np.ndarray:
    try:
        return spare.pop()
    except IndexError:
        return np.empty(shape, dtype)


def _add_outer(products: np.ndarray, factor: float, left: np.ndarray, right: np.ndarray) -> None:
    """Add a multiple of an outer product, in place."""
    for column, one in zip(products.T, right, strict=True):
        column += (factor * one) * left


def _orthonormal(vectors: np.ndarray, least: float) -> np.ndarray:
    """Give an orthonormal basis of some vectors, without what is no longer than `least`."""
    q, triangle = scipy.linalg.qr(vectors, mode="economic", overwrite_a=True, check_finite=False)
    # to choose among long columns is slow: it is done on their small triangle
    turn, r, _ = scipy.linalg.qr(triangle, pivoting=True)
    return np.asarray((turn[:, np.abs(np.diag(r)) > least].T @ q.T).T)


def _orthonormal_again(vectors: np.ndarray) -> np.ndarray:
    """Give an orthonormal basis of vectors that once were one, without those of which less than half is left."""
    lengths, turn = scipy.linalg.eigh(vectors.T @ vectors)  # the squares: exact enough for what is long
    kept = lengths > 0.25
    return np.asarray(((turn[:, kept] / np.sqrt(lengths[kept])).T @ vectors.T).T)


class _Krylov:
    """The directions so far, and the cross products of the features as seen from them."""

    def __init__(
        self, start: np.ndarray, wanted: int, *, centred: bool, tolerance: float, rounding: float
    ) -> None:
        self._wanted, self._centred = wanted, centred
        self._tolerance, self._rounding = tolerance, rounding
        width, n = start.shape
        # memory that is not written to is not taken
        self._basis = np.empty((width, n * (_MOST_BLOCKS + 1)), order="F")
        self._spread = np.empty((0, 0))
        """Centred cross products between the directions."""
        self._along: np.ndarray = np.empty(0)
        """The mean along each."""
        self.values: np.ndarray = np.empty(0)
        self._vectors: np.ndarray = np.empty((0, 0))
        self._missed: np.ndarray = np.empty((width, 0))
        """What C makes of each wanted component, without its multiple."""
        self.missing: np.ndarray = np.empty(0)
        """How far each wanted component is from being an eigenvector, as `components` gives them."""
        self.next = start

    @property
    def _space(self) -> np.ndarray:
        return self._basis[:, : len(self._along)]

    def take(self, found: Products) -> None:
        """Take the products with `next`; find the components, what they miss, and the next directions."""
        new = self.next
        old, k = len(self._along), new.shape[1]
        self._basis[:, old : old + k] = new
        self._along = np.concatenate([self._along, found.mean @ new])
        products = np.array(found.products, dtype=np.float64, order="F")
        column = self._space.T @ products
        spread = np.empty((old + k, old + k))
        spread[:old, :old], spread[:, old:], spread[old:, :old] = self._spread, column, column[:old].T
        spread[old:, old:] = (column[old:] + column[old:].T) / 2
        self._spread = spread
        square = spread
        if not self._centred:
            _add_outer(products, found.n_rows, found.mean, found.along)
            square = spread + found.n_rows * np.outer(self._along, self._along)
        values, vectors = scipy.linalg.eigh(square)
        self.values, self._vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
        left = self._apart(self._apart(products))
        self._missed = left @ self._vectors[old:, : self._wanted]
        self.missing = self._improved(left)
        least = self._rounding * self.values[0]
        self.next = new[:, :0]
        if not self._is_converged:
            # what is left of a product may be short, and what is parallel to others of the same length
            self.next = _orthonormal_again(self._apart(_orthonormal(left, least)))
        if len(self._along) + k > self._basis.shape[1]:
            self._restart((_MOST_BLOCKS // 2) * k)

    def _improved(self, left: np.ndarray) -> np.ndarray:
        """Tell what the components will miss once what they miss now is added to them.

        That is what C makes of it: of what it has in common with the directions so far, no more than `left` is long;
        of the rest, no more than the largest value that is not found yet.
        """
        missing = np.linalg.norm(self._missed, axis=0)
        if not self._centred:
            return missing
        square = left.T @ left
        last = self._vectors[-len(square) :]
        lengths = np.sqrt(np.einsum("ij,ik,kj->j", last, square, last).clip(0.0))
        open_ones = lengths > 0.1 * self.values
        rest = (self.values + lengths)[open_ones].max(initial=self.values[-1])
        most = np.hypot(rest, np.sqrt(scipy.linalg.eigvalsh(square)[-1].clip(0.0)))
        return missing * np.minimum(most * self._shares(missing), 1.0)

    def _shares(self, missing: np.ndarray) -> np.ndarray:
        """One over each wanted value; infinity where a component is not found yet."""
        values = self.values[: self._wanted]
        found = missing < 0.1 * values
        return np.divide(1.0, values, out=np.full_like(values, np.inf), where=found)

    @property
    def _is_converged(self) -> bool:
        allowed = self._tolerance * self.values[: self._wanted] + self._rounding * self.values[0]
        return bool((self.missing <= allowed).all())

    @property
    def done(self) -> bool:
        """Whether all wanted components have converged, or nothing else is left in the rows."""
        return not self.next.shape[1]

    @property
    def error(self) -> float:
        """The largest of what the wanted components miss, as a share of their eigenvalues."""
        values = self.values[: self._wanted]
        return float((self.missing[values > 0] / values[values > 0]).max(initial=0.0))

    def components(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the wanted eigenvalues, the eigenvectors as rows, and the squared deviations along each."""
        chosen, values = self._vectors[:, : self._wanted], self.values[: self._wanted]
        vectors = self._space @ chosen
        if not self._centred:
            spread = np.einsum("ij,ik,kj->j", chosen, self._spread, chosen)
            return values, vectors.T, np.clip(spread, 0.0, None)
        lengths, shares = self._improve(vectors)
        squares, turn = scipy.linalg.eigh(vectors.T @ vectors)
        values = values + lengths**2 * shares
        return values, (turn @ (turn / np.sqrt(squares)).T) @ vectors.T, values

    def _improve(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add to the wanted components what they miss, in place; give how long that was, and its shares."""
        lengths = np.linalg.norm(self._missed, axis=0)
        shares = self._shares(lengths)
        shares[np.isinf(shares)] = 0.0
        vectors[:, : self._wanted] += self._missed * shares
        return lengths, shares

    def best(self, n: int) -> np.ndarray:
        """Give an orthonormal basis of what comes nearest to the leading n eigenvectors."""
        vectors = self._space @ self._vectors[:, :n]
        self._improve(vectors)
        return _orthonormal(vectors, 0.0)

    def _apart(self, vectors: np.ndarray) -> np.ndarray:
        """Take off what lies along the directions so far, in place."""
        space = self._space
        return np.asarray(dgemm(-1.0, space, space.T @ vectors, beta=1.0, c=vectors, overwrite_c=1))

    def _restart(self, kept: int) -> None:
        chosen = self._vectors[:, :kept]
        self._basis[:, :kept] = self._space @ chosen
        self._spread, self._along = chosen.T @ self._spread @ chosen, chosen.T @ self._along
        self._vectors = np.eye(kept)


def leading(
    width: int,
    wanted: int,
    *,
    oversamples: int,
    seed: int,
    centred: bool,
    sparse: bool,
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
    sparse : bool
        Whether the rows are sparse: their products are in float64 from the first reading on.
    check : callable
        Is given what the first reading in float64 has found, and raises if that does not do.
    """
    n = min(n_directions(wanted, oversamples), width)
    with single_threaded_blas():
        start = _orthonormal(np.random.default_rng(seed).standard_normal((n, width)).T, 0.0)
    about, n_rough = None, 0
    if not sparse:
        start, about, n_rough = yield from _approached(start, wanted, centred=centred)
    space = _Krylov(start, wanted, centred=centred, tolerance=TOLERANCE, rounding=_ROUNDING)
    is_mean, total = False, 0.0
    for _ in range(MOST_READINGS - n_rough):
        (found,) = yield (Directions(space.next, about, is_mean),)
        if not is_mean:
            check(found)
            about, is_mean, total = found.mean, True, found.total
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
        values, rows, spread = space.components()
    return Spectrum(found.n_rows, found.mean, values, rows, spread, total, found.dtype, found.sparse)


def _approached(
    start: np.ndarray, wanted: int, *, centred: bool
) -> Generator[tuple[Any, ...], Sequence[Any], tuple[np.ndarray, np.ndarray | None, int]]:
    """Find directions near the leading eigenvectors and the mean but for rounding, in float32; count the readings."""
    space = _Krylov(start, wanted, centred=centred, tolerance=_ROUGH_TOLERANCE, rounding=_ROUGH_ROUNDING)
    mean, n_readings = None, 0
    while n_readings < MOST_READINGS // 3:
        (found,) = yield (Directions(space.next.astype(np.float32), mean, is_mean=mean is not None),)
        n_readings += 1
        # squares may leave the range of float32, or there is something in the rows that is not a number
        if not _ROUGH_RANGE[0] < np.abs(found.products).max() < _ROUGH_RANGE[1]:
            return start, None, n_readings
        mean = found.mean
        with single_threaded_blas():
            space.take(found)
        if space.done:
            break
    with single_threaded_blas():
        return space.best(start.shape[1]), mean, n_readings
