"""Products with the Jacobians of softmax and log-softmax, given σ: O(K), no K×K matrix.

J = diag(σ) − σσᵀ is symmetric, so its VJP and its JVP are one program. That program is linear in
the vector and its own transpose, so that JAX can differentiate and transpose it at will.

>>> import jax.numpy as jnp
>>> print(softmax_vjp(jnp.array([1.0, 0.0, 0.0]), jnp.array([0.5, 0.25, 0.25])))
[ 0.25  -0.125 -0.125]
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftjac._checks import Axis, as_real, canonical_axes, same_shape, working_dtype
from jaxsoftjac._pivots import (
    at_least_tiny,
    bits_where_kept,
    bits_where_positive,
    peaked,
    pivot_excess,
    pivot_weights,
    where_finite,
    where_positive,
)
from jaxsoftjac._rows import ClassAxes
from jaxsoftjac._rules import compiled, quotient

__all__ = [
    "softmax_vjp",
    "softmax_jvp",
    "log_softmax_vjp",
    "log_softmax_jvp",
    "softmax_second_derivative",
]


def softmax_vjp(grad_output: ArrayLike, sigma: ArrayLike, axis: Axis = -1) -> jax.Array:
    """Product of a vector with the softmax Jacobian, without forming the matrix.

    Jg = σ⊙(g − ⟨σ, g⟩), where g is first measured from its value at the most probable class (or,
    where no class has more than 1/16, from its mean). In exact arithmetic that changes nothing; in
    float32 it keeps all digits of rows where the textbook form keeps none.

    Cost: O(K) time and memory.

    Args:
        grad_output: cotangent of σ (gradient of a loss by σ), shape [..., K].
        sigma: softmax output, shape [..., K], Σσ = 1 along `axis` (the caller's promise).
            Entries equal to 0 contribute 0, even where `grad_output` is not finite. Derivatives by
            σ are those along a softmax's: Σσ̇ = 0, and 0 stays 0. Those by a σ that is free are
            `SoftmaxJacobian`'s.
        axis: axis or axes of the classes; None for all.

    Returns:
        Gradient by the logits, shape [..., K].

    Raises:
        TypeError: an argument is boolean or complex.
        ValueError: the shapes differ, or `axis` is out of range.

    Examples:
        A common part of the vector costs no digits:

        >>> v, sigma = jnp.array([1e6, 1e6 + 1, 1e6]), jnp.array([0.5, 0.25, 0.25])
        >>> print(softmax_vjp(v, sigma))
        [-0.125   0.1875 -0.0625]
    """
    v, sigma, classes, dtype = _prepare("grad_output", grad_output, sigma, axis)
    return _compiled(v, sigma, function=softmax_product, classes=classes).astype(dtype)


def softmax_jvp(tangent: ArrayLike, sigma: ArrayLike, axis: Axis = -1) -> jax.Array:
    """Derivative of softmax along `tangent`: Jẋ = σ⊙(ẋ − ⟨σ, ẋ⟩).

    The same program as `softmax_vjp`, because J = Jᵀ; see there for cost, arguments and errors.

    >>> sigma = jnp.array([0.5, 0.25, 0.25])
    >>> print(softmax_jvp(jnp.array([0.0, 1.0, 0.0]), sigma))   # what a rise of logit 1 does to σ
    [-0.125   0.1875 -0.0625]
    """
    v, sigma, classes, dtype = _prepare("tangent", tangent, sigma, axis)
    return _compiled(v, sigma, function=softmax_product, classes=classes).astype(dtype)


def log_softmax_vjp(grad_output: ArrayLike, sigma: ArrayLike, axis: Axis = -1) -> jax.Array:
    """Product of a cotangent with the log-softmax Jacobian I − 1σᵀ: g − σΣg.

    The sum of the result is put back to zero at the most probable class, so that its gradient
    keeps its digits where σ rounds to 1.

    Cost: O(K).

    Args:
        grad_output: cotangent of log σ, shape [..., K].
        sigma: softmax output, shape [..., K].
        axis: axis or axes of the classes; None for all.

    Returns:
        Gradient by the logits, shape [..., K].

    Raises:
        TypeError: an argument is boolean or complex.
        ValueError: the shapes differ, or `axis` is out of range.

    Examples:
        Of a one-hot vector, it is minus the gradient of cross-entropy:

        >>> label, sigma = jnp.array([0.0, 1.0, 0.0]), jnp.array([0.5, 0.25, 0.25])
        >>> print(log_softmax_vjp(label, sigma))
        [-0.5   0.75 -0.25]
    """
    g, sigma, classes, dtype = _prepare("grad_output", grad_output, sigma, axis)
    return _compiled(g, sigma, function=log_softmax_pullback, classes=classes).astype(dtype)


def log_softmax_jvp(tangent: ArrayLike, sigma: ArrayLike, axis: Axis = -1) -> jax.Array:
    """Derivative of log-softmax along `tangent`: ẋ − ⟨σ, ẋ⟩, the tangent less its mean under σ.

    Cost: O(K). Arguments and errors as for `log_softmax_vjp`.

    >>> print(log_softmax_jvp(jnp.array([1.0, 0.0, 0.0]), jnp.array([0.5, 0.25, 0.25])))
    [ 0.5 -0.5 -0.5]
    """
    v, sigma, classes, dtype = _prepare("tangent", tangent, sigma, axis)
    return _compiled(v, sigma, function=centre, classes=classes).astype(dtype)


def softmax_second_derivative(
    u: ArrayLike, v: ArrayLike, sigma: ArrayLike, axis: Axis = -1
) -> jax.Array:
    """Second derivative of softmax along two tangents: D²σ[u, v] = J((u − ū)⊙(v − v̄)).

    ū = ⟨σ, u⟩ and v̄ = ⟨σ, v⟩. The same product as the first derivative, on a centred product.

    Cost: O(K); the K×K×K tensor is never formed.

    Args:
        u: first tangent, shape [..., K].
        v: second tangent, shape [..., K].
        sigma: softmax output, shape [..., K].
        axis: axis or axes of the classes; None for all.

    Returns:
        Array of shape [..., K].

    Raises:
        TypeError: an argument is boolean or complex.
        ValueError: the shapes differ, or `axis` is out of range.

    Examples:
        >>> along, sigma = jnp.array([1.0, 0.0]), jnp.array([0.25, 0.75])
        >>> print(softmax_second_derivative(along, along, sigma))   # σ(1 − σ)(1 − 2σ) at σ = ¼
        [ 0.09375 -0.09375]
    """
    u, _, classes, u_dtype = _prepare("u", u, sigma, axis)
    v, sigma, classes, v_dtype = _prepare("v", v, sigma, axis)
    product = _compiled_second(u, v, sigma, classes=classes)
    return product.astype(jnp.promote_types(u_dtype, v_dtype))


@compiled("function", "classes")
def _compiled(
    v: jax.Array,
    sigma: jax.Array,
    *,
    function: Callable[[jax.Array, jax.Array, ClassAxes], jax.Array],
    classes: ClassAxes,
) -> jax.Array:
    return function(v, sigma, classes)


@compiled("classes")
def _compiled_second(
    u: jax.Array, v: jax.Array, sigma: jax.Array, *, classes: ClassAxes
) -> jax.Array:
    u, v = (where_positive(centre(a, sigma, classes), sigma) for a in (u, v))
    return softmax_product(u * v, sigma, classes)


def softmax_product(
    v: jax.Array, sigma: jax.Array, classes: ClassAxes, top: jax.Array | None = None
) -> jax.Array:
    """Jv as the solution y of y/σ + c·1 = v, Σy = 0, where Σσ = 1.

    J is the inverse of diag(1/σ) on the vectors of sum 0. Put so, the product is its own transpose
    by declaration: forward and reverse mode run `_centred_product` as it is written, and its
    derivative by σ is the system's, ẏ = J(v̇ − (1/σ)˙y), which is D²σ[u, v]. The `top` of each row
    of σ is found if it is not given.
    """
    return lax.custom_linear_solve(
        lambda y: quotient(y, sigma),
        v,
        lambda _, b: _centred_product(b, sigma, classes, top),
        symmetric=True,
    )


def _centred_product(
    v: jax.Array, sigma: jax.Array, classes: ClassAxes, top: jax.Array | None
) -> jax.Array:
    """σ⊙(d − ⟨σ, d⟩), d = v measured from the pivot, whose own entry is then exactly 0."""
    excess = pivot_excess(sigma, classes, top)
    v = bits_where_positive(v, sigma)
    at_pivot, weight = classes.sums(excess * v, excess)
    d = v - at_pivot / at_least_tiny(weight)
    return sigma * (d - classes.sum(sigma * d))


def centre(v: jax.Array, sigma: jax.Array, classes: ClassAxes) -> jax.Array:
    """The vector less its mean, v − ⟨σ, v⟩, from the pivot first: the JVP of log-softmax."""
    d = v - classes.sum(pivot_weights(sigma, classes) * where_finite(v, sigma))
    return d - classes.sum(sigma * where_finite(d, sigma))


class PivotedRow(NamedTuple):
    """Logits, e = exp(x − top), and of each row the sum of the others and the largest σ."""

    x: jax.Array
    e: jax.Array
    rest: jax.Array
    of_top: jax.Array


def log_softmax_product(
    v: jax.Array, sigma: jax.Array, row: PivotedRow, classes: ClassAxes
) -> jax.Array:
    """V − ⟨σ, v⟩·1 as the solution y of y + m·1 = v, ⟨σ, y⟩ = 0, where Σσ = 1.

    Put so, forward mode runs `_centred_vector` and reverse mode its transpose `_put_back`, each as
    it is written; derivatives by σ are the system's. What is known of the `row` is constant.
    """

    # JAX transposes the solution only where both parts of the right side are linear in what moves,
    # v or σ, and both parts of the cotangent too: hence the selections that select nothing.
    def matvec(ym: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y, m = ym
        return y + m * jnp.where(False, sigma, 1), classes.sum(sigma * where_positive(y, sigma))

    y, m = lax.custom_linear_solve(
        matvec,
        (v, classes.sum(jnp.where(False, v, 0))),
        lambda _, b: _centred_vector(b, row, classes),
        lambda _, b: _put_back(b, row, classes),
    )
    return jnp.where(False, m, y)


def _centred_vector(
    b: tuple[jax.Array, jax.Array], row: PivotedRow, classes: ClassAxes
) -> tuple[jax.Array, jax.Array]:
    """The vector with ⟨σ, y⟩ = mean, and what was taken from it, by way of the pivot."""
    (v, mean), is_peaked = b, peaked(row.of_top)
    counted = bits_where_positive(v, row.e)
    excess = is_peaked * jnp.floor(row.e) + (1 - is_peaked) * row.e
    at_pivot, weight = classes.sums(excess * counted, excess)
    pivot = at_pivot / at_least_tiny(weight)
    above = row.of_top * classes.sum(row.e * (counted - pivot)) - mean
    return bits_where_kept((v - pivot) - above, row.x), pivot + above


def _put_back(
    b: tuple[jax.Array, jax.Array], row: PivotedRow, classes: ClassAxes
) -> tuple[jax.Array, jax.Array]:
    """The vector g − σn of sum `total`, and n; at a top that stands alone, from the others."""
    (g, total), (x, e, rest, of_top) = b, row
    g = bits_where_kept(g, x)
    all_of_g, below = classes.sums(g, g * (1 - jnp.floor(e)))
    n = all_of_g - total
    at_top = total - (below - n * (rest * of_top))
    return jnp.where((e == 1) & (rest < 1), at_top, g - e * (of_top * n)), n


def log_softmax_pullback(g: jax.Array, sigma: jax.Array, classes: ClassAxes) -> jax.Array:
    """The transpose of `centre`: g − σΣg, its sum put back to zero."""
    e = pivot_weights(sigma, classes)
    h = g - sigma * classes.sum(g)
    return h - e * classes.sum(h)


def _prepare(
    name: str, v: ArrayLike, sigma: ArrayLike, axis: Axis
) -> tuple[jax.Array, jax.Array, ClassAxes, jnp.dtype]:
    v, sigma = as_real(name, v), as_real("sigma", sigma)
    same_shape(name, v, "sigma", sigma)
    dtype = jnp.promote_types(v.dtype, sigma.dtype)
    compute = working_dtype(dtype)
    return v.astype(compute), sigma.astype(compute), ClassAxes(canonical_axes(axis, v.ndim)), dtype
