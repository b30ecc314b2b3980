"""Leading eigenvalues of 16 small symmetric matrices at once, in float32: the compiled part of `kernels`.

Each matrix is brought to tridiagonal form by Householder reflections (as EISPACK's TRED1, from the last row up), and
its eigenvalues found by bisection on the number of sign changes of the leading principal minors (Givens; Barth, Martin
and Wilkinson 1967). Only `kernels` imports this module: it needs Numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from inheritune.spectra.measure.lanes import (
    LANES,
    add,
    copy_sign,
    count_change,
    divide,
    everywhere,
    inverse_power,
    larger,
    least,
    load,
    magnitude,
    multiply,
    multiply_add,
    negative,
    or_zero,
    root,
    smaller,
    store,
    subtract,
    transpose_in,
    where_count,
)

HALVINGS = 25
"""Bisection steps: to 2^-26 of the upper bound."""

PART = 16
"""Numbers summed up at a time: a single sum would lose every one that is small beside it."""

ZERO = np.float32(0.0)
HALF = np.float32(0.5)
ONE = np.float32(1.0)
ABOVE = np.float32(1.0 + 1e-5)
"""What an upper bound is multiplied with, for its rounding."""

NEARLY_ZERO = np.float32(1e-30)
"""Squared length, of a matrix of trace 1, below which a row's outer part counts as zero."""

SPAN = np.float32(2.0**23)
"""What a matrix is scaled to for bisection, within a factor of two: five minors in a row then stay between 2^-126 and
2^127, however near a number is to an eigenvalue."""

LEAST_SCALED = np.float32(2.0**-30)
"""Bound on the eigenvalues below which a matrix is not scaled up further."""

LEAST_COUPLING = np.float32(2.0**-20)
"""Square below which an off-diagonal element of a matrix so scaled is raised to it, lest all minors after it be 0."""


@njit(nogil=True, cache=True)
def eigenvalues_of_all(gram: Any, share: Any, work: Any, found: Any) -> int:
    """Write the leading eigenvalues of each of n matrices; return the greatest number written.

    Args:
        gram: (n, T, T) float32, T >= 16, symmetric positive semi-definite, of trace about 1.
        share: the sum at which to stop.
        work: (rows, 16) float32 that begins at a multiple of 64 bytes; as many rows as `work_rows` says.
        found: (n, T) float32 zeros.
    """
    length, enough = gram.shape[1], np.float32(share)
    flat = gram.reshape(-1)
    most = 0
    for first in range(0, len(gram), LANES):
        count = min(LANES, len(gram) - first)
        _copy_in(flat, first, count, length, work)
        _tridiagonalise(work, length)
        most = max(most, _bisect(work, length, enough, found, first, count))
    return most


def work_rows(length: int) -> int:
    """Return how many rows of 16 the work on T x T matrices needs: the packed triangle, three vectors, the result."""
    return length * (length + 1) // 2 + LANES + 5 * length + 8


@njit(nogil=True, cache=True)
def _row(i: int) -> int:
    """Return where row i of the packed lower triangle begins."""
    return i * (i + 1) // 2


@njit(nogil=True, cache=True)
def _copy_in(flat: Any, first: int, count: int, length: int, work: Any) -> None:
    """Pack the triangles of 16 matrices, or of as many as are left, with copies of the last in the other lanes.

    Rows and columns are in reverse order: the first columns of attention are often the largest, and what is reduced
    first is rounded least often. What a row writes too much lies where the next row, written after it, begins.
    """
    base = first * length * length
    for i in range(length):
        source = base + (length - 1 - i) * length
        for start in range(0, i + 1, LANES):
            k = min(start, length - LANES)
            transpose_in(flat, source + length - LANES - k, length * length, count - 1, work, _row(i) + k)


@njit(nogil=True, cache=True)
def _tridiagonalise(work: Any, length: int) -> None:
    """Leave the diagonal and the squares of what is below it behind the packed matrix.

    The rank-2 update of one step is done in the pass over the matrix that multiplies it with the vector of the next.
    """
    zero = everywhere(ZERO)
    old = _row(length) + LANES  # u of the step before; later it lies in its row
    q = old + length
    y = q + length
    diagonal = y + length
    square = diagonal + length + 4
    for k in range(length):
        store(work, old + k, zero)
        store(work, q + k, zero)
    for r in range(length - 1, 0, -1):
        u = _row(r)
        size = _update_row(work, u, r, old, q)
        store(work, diagonal + r, load(work, u + r))
        pivot = load(work, u + r - 1)
        whole = multiply_add(pivot, pivot, size)
        store(work, square + r, whole)
        beta = negative(copy_sign(root(whole), pivot))
        store(work, u + r - 1, subtract(pivot, beta))
        h = subtract(whole, multiply(pivot, beta))
        inverse = or_zero(divide(everywhere(ONE), larger(h, everywhere(NEARLY_ZERO))), size, everywhere(NEARLY_ZERO))
        _update_and_multiply(work, r, u, old, q, y)
        _finish(work, r, u, y, inverse)
        old = u
        q, y = y, q
    store(work, diagonal, load(work, 0))


@njit(nogil=True, cache=True)
def _update_row(work: Any, row: int, r: int, old: int, q: int) -> Any:
    """Do the pending update of row r; return the sum of squares of its elements before r - 1."""
    minus_u, minus_q = negative(load(work, old + r)), negative(load(work, q + r))
    size = everywhere(ZERO)
    for start in range(0, r + 1, PART):
        part = everywhere(ZERO)
        for k in range(start, min(start + PART, r + 1)):
            a = _element(work, row + k, minus_u, minus_q, load(work, old + k), load(work, q + k))
            if k < r - 1:
                part = multiply_add(a, a, part)
        size = add(size, part)
    return size


@njit(nogil=True, cache=True)
def _element(work: Any, place: int, minus_u: Any, minus_q: Any, u: Any, q: Any) -> Any:
    """Do the pending update of one element and return it."""
    a = multiply_add(minus_q, u, multiply_add(minus_u, q, load(work, place)))
    store(work, place, a)
    return a


@njit(nogil=True, cache=True)
def _update_and_multiply(work: Any, r: int, x: int, old: int, q: int, y: int) -> None:
    """Do the pending update A - u q' - q u' of the first r rows and put A x into y, four rows at a time."""
    for i in range(r % 4):
        _one_row(work, i, x, old, q, y)
    for i in range(r % 4, r, 4):
        _four_rows(work, i, x, old, q, y)


@njit(nogil=True, cache=True)
def _one_row(work: Any, i: int, x: int, old: int, q: int, y: int) -> None:
    row = _row(i)
    minus_u, minus_q, own = negative(load(work, old + i)), negative(load(work, q + i)), load(work, x + i)
    total = everywhere(ZERO)
    for k in range(i):
        a = _element(work, row + k, minus_u, minus_q, load(work, old + k), load(work, q + k))
        total = multiply_add(a, load(work, x + k), total)
        store(work, y + k, multiply_add(a, own, load(work, y + k)))
    a = _element(work, row + i, minus_u, minus_q, load(work, old + i), load(work, q + i))
    store(work, y + i, multiply_add(a, own, total))


@njit(nogil=True, cache=True)
def _four_rows(work: Any, i: int, x: int, old: int, q: int, y: int) -> None:
    """Do rows i to i + 3 at once: what belongs to a column is read and written once for all four."""
    row_0, row_1, row_2, row_3 = _row(i), _row(i + 1), _row(i + 2), _row(i + 3)
    u_0, q_0, x_0 = negative(load(work, old + i)), negative(load(work, q + i)), load(work, x + i)
    u_1, q_1, x_1 = negative(load(work, old + i + 1)), negative(load(work, q + i + 1)), load(work, x + i + 1)
    u_2, q_2, x_2 = negative(load(work, old + i + 2)), negative(load(work, q + i + 2)), load(work, x + i + 2)
    u_3, q_3, x_3 = negative(load(work, old + i + 3)), negative(load(work, q + i + 3)), load(work, x + i + 3)
    total_0 = total_1 = total_2 = total_3 = everywhere(ZERO)
    for k in range(i):
        u_k, q_k, x_k = load(work, old + k), load(work, q + k), load(work, x + k)
        a = _element(work, row_0 + k, u_0, q_0, u_k, q_k)
        total_0 = multiply_add(a, x_k, total_0)
        y_k = multiply_add(a, x_0, load(work, y + k))
        a = _element(work, row_1 + k, u_1, q_1, u_k, q_k)
        total_1 = multiply_add(a, x_k, total_1)
        y_k = multiply_add(a, x_1, y_k)
        a = _element(work, row_2 + k, u_2, q_2, u_k, q_k)
        total_2 = multiply_add(a, x_k, total_2)
        y_k = multiply_add(a, x_2, y_k)
        a = _element(work, row_3 + k, u_3, q_3, u_k, q_k)
        total_3 = multiply_add(a, x_k, total_3)
        store(work, y + k, multiply_add(a, x_3, y_k))
    store(work, y + i, total_0)
    store(work, y + i + 1, total_1)
    store(work, y + i + 2, total_2)
    store(work, y + i + 3, total_3)
    for j in range(i, i + 4):  # the triangle at the end of the four rows
        own, minus_u, minus_q = load(work, x + j), negative(load(work, old + j)), negative(load(work, q + j))
        total = load(work, y + j)
        for k in range(i, j):
            a = _element(work, _row(j) + k, minus_u, minus_q, load(work, old + k), load(work, q + k))
            total = multiply_add(a, load(work, x + k), total)
            store(work, y + k, multiply_add(a, own, load(work, y + k)))
        a = _element(work, _row(j) + j, minus_u, minus_q, load(work, old + j), load(work, q + j))
        store(work, y + j, multiply_add(a, own, total))


@njit(nogil=True, cache=True)
def _finish(work: Any, r: int, u: int, y: int, inverse: Any) -> None:
    """Turn y = A u into q = y / h - (u'y / 2 h^2) u, with `inverse` 1 / h, so that the update is A - u q' - q u'."""
    inner = everywhere(ZERO)
    for start in range(0, r, PART):
        part = everywhere(ZERO)
        for k in range(start, min(start + PART, r)):
            part = multiply_add(load(work, u + k), load(work, y + k), part)
        inner = add(inner, part)
    factor = negative(multiply(multiply(inner, inverse), multiply(inverse, everywhere(HALF))))  # no overflow so
    for k in range(r):
        store(work, y + k, multiply_add(factor, load(work, u + k), multiply(inverse, load(work, y + k))))


@njit(nogil=True, cache=True)
def _bisect(work: Any, length: int, share: Any, found: Any, first: int, count: int) -> int:
    """Write eigenvalues, largest first and four at a time, until the sum of every lane reaches `share`."""
    diagonal = _row(length) + LANES + 3 * length
    square = diagonal + length + 4
    values = _row(length) + LANES
    padded = (length + 3) // 4 * 4
    total = everywhere(ZERO)
    trace, previous = _bounds(work, length, diagonal, square)
    scale = multiply(inverse_power(larger(previous, everywhere(LEAST_SCALED))), everywhere(SPAN))
    unscale = divide(everywhere(ONE), scale)
    _prepare(work, length, padded, diagonal, square, scale)
    done = 0
    while done < length and least(total) < share:
        bound = multiply(smaller(previous, larger(subtract(trace, total), everywhere(ZERO))), everywhere(ABOVE))
        a, b, c, d = _four_values(work, padded, diagonal, square, np.int32(padded - 1 - done), multiply(bound, scale))
        a = smaller(previous, multiply(a, unscale))
        b = smaller(a, multiply(b, unscale))
        c = smaller(b, multiply(c, unscale))
        previous = d = smaller(c, multiply(d, unscale))
        total = add(total, add(add(a, b), add(c, d)))
        store(work, values, a)
        store(work, values + 1, b)
        store(work, values + 2, c)
        store(work, values + 3, d)
        for k in range(min(4, length - done)):
            for lane in range(count):
                found[first + lane, done + k] = work[values + k, lane]
        done = min(length, done + 4)
    return done


@njit(nogil=True, cache=True)
def _bounds(work: Any, length: int, diagonal: int, square: int) -> Any:
    """Return the trace and Gershgorin's upper bound on all eigenvalues."""
    trace = greatest = before = everywhere(ZERO)
    for k in range(length):
        own = load(work, diagonal + k)
        after = root(load(work, square + k + 1)) if k + 1 < length else everywhere(ZERO)
        greatest = larger(greatest, add(own, add(before, after)))
        trace = add(trace, own)
        before = after
    return multiply(trace, everywhere(ABOVE)), multiply(greatest, everywhere(ABOVE))


@njit(nogil=True, cache=True)
def _prepare(work: Any, length: int, padded: int, diagonal: int, square: int, scale: Any) -> None:
    """Scale, raise what is too small beside the diagonal, and append eigenvalues of -1 up to a multiple of four."""
    store(work, square, everywhere(ZERO))
    store(work, diagonal, multiply(load(work, diagonal), scale))
    for k in range(1, length):
        store(work, diagonal + k, multiply(load(work, diagonal + k), scale))
        scaled = multiply(multiply(load(work, square + k), scale), scale)
        store(work, square + k, larger(scaled, everywhere(LEAST_COUPLING)))
    for k in range(length, padded):
        store(work, diagonal + k, everywhere(-ONE))
        store(work, square + k, everywhere(LEAST_COUPLING))


@njit(nogil=True, cache=True)
def _four_values(work: Any, padded: int, diagonal: int, square: int, most: Any, bound: Any) -> Any:
    """Return four eigenvalues in a row by bisection between 0 and `bound`; `most` are below the first of them."""
    half = everywhere(HALF)
    low_a = low_b = low_c = low_d = everywhere(ZERO)
    high_a = high_b = high_c = high_d = bound
    for _ in range(HALVINGS):
        x_a, x_b = multiply(half, add(low_a, high_a)), multiply(half, add(low_b, high_b))
        x_c, x_d = multiply(half, add(low_c, high_c)), multiply(half, add(low_d, high_d))
        n_a, n_b, n_c, n_d = _four_counts(work, padded, diagonal, square, x_a, x_b, x_c, x_d)
        low_a, high_a = where_count(n_a, most, x_a, low_a), where_count(n_a, most, high_a, x_a)
        low_b, high_b = where_count(n_b, most - 1, x_b, low_b), where_count(n_b, most - 1, high_b, x_b)
        low_c, high_c = where_count(n_c, most - 2, x_c, low_c), where_count(n_c, most - 2, high_c, x_c)
        low_d, high_d = where_count(n_d, most - 3, x_d, low_d), where_count(n_d, most - 3, high_d, x_d)
    return (
        multiply(half, add(low_a, high_a)),
        multiply(half, add(low_b, high_b)),
        multiply(half, add(low_c, high_c)),
        multiply(half, add(low_d, high_d)),
    )


@njit(nogil=True, cache=True)
def _minor(diagonal: Any, square: Any, x: Any, before: Any, last: Any) -> Any:
    """Return the next leading principal minor of T - x I from the last two."""
    return multiply_add(subtract(diagonal, x), last, negative(multiply(square, before)))


@njit(nogil=True, cache=True)
def _four_counts(work: Any, padded: int, diagonal: int, square: int, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return how many eigenvalues lie below each of four numbers: the sign changes of the minors.

    After every four minors the last two are scaled by a power of two, lest they underflow.
    """
    none = everywhere(ZERO)
    a_n = b_n = c_n = d_n = none
    a_0 = b_0 = c_0 = d_0 = none
    a_1 = b_1 = c_1 = d_1 = everywhere(ONE)
    for start in range(0, padded, 4):
        for k in range(start, start + 4):
            e, s = load(work, diagonal + k), load(work, square + k)
            a_2 = _minor(e, s, a, a_0, a_1)
            b_2 = _minor(e, s, b, b_0, b_1)
            c_2 = _minor(e, s, c, c_0, c_1)
            d_2 = _minor(e, s, d, d_0, d_1)
            a_n, b_n = count_change(a_n, a_1, a_2), count_change(b_n, b_1, b_2)
            c_n, d_n = count_change(c_n, c_1, c_2), count_change(d_n, d_1, d_2)
            a_0, a_1, b_0, b_1, c_0, c_1, d_0, d_1 = a_1, a_2, b_1, b_2, c_1, c_2, d_1, d_2
        a_s, b_s = _scale(a_0, a_1), _scale(b_0, b_1)
        c_s, d_s = _scale(c_0, c_1), _scale(d_0, d_1)
        a_0, a_1, b_0, b_1 = multiply(a_s, a_0), multiply(a_s, a_1), multiply(b_s, b_0), multiply(b_s, b_1)
        c_0, c_1, d_0, d_1 = multiply(c_s, c_0), multiply(c_s, c_1), multiply(d_s, d_0), multiply(d_s, d_1)
    return a_n, b_n, c_n, d_n


@njit(nogil=True, cache=True)
def _scale(a: Any, b: Any) -> Any:
    return inverse_power(larger(magnitude(a), magnitude(b)))
