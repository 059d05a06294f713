"""The lesson on α-entmax at one row of logits: its numbers, and its steps."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftjac.cli._cells import COLUMNS, number
from jaxsoftjac.cli._lesson import (
    DIFFERENCES,
    FORMED_LIMIT,
    Array,
    Columns,
    Formula,
    Numbers,
    Step,
    by_class,
    central,
    entry,
    name,
    unit,
)
from jaxsoftjac.dense import jacobian_block
from jaxsoftjac.diagnostics import gradient_flow
from jaxsoftjac.losses import entmax_loss
from jaxsoftjac.operators import EntmaxJacobian
from jaxsoftjac.sparse import entmax

_EDGE = 1e-4  # so near to the threshold a difference of h = 1e-5 may cross it


class EntmaxRow(NamedTuple):
    """What is explained: logits z, α, a cotangent g, and what was computed of them.

    Attributes:
        z: the logits.
        g: the cotangent.
        alpha: α.
        places: classes to show, None for those between.
        corner: those of them whose entries of J are shown.
        pair: the first two classes of the support, or the only one.
        p: entmax of z.
        s: p^{2−α}, 0 outside the support.
        above: (α − 1)z − τ.
        tau: the threshold τ.
        entries: of J, at `corner`.
        beside: of J, at `pair`.
        spectral_norm: λ_max.
        product: J·g.
        by_matrix: the same by the whole matrix, where that is formed.
        loss: the Fenchel–Young loss.
        gradient: its gradient.
        first: ∂pᵢ/∂zⱼ by central differences, i the first of `pair` and j each of it.
        product_difference: J·g by a central difference.
        gradient_difference: the gradient so, where it is shown.
    """

    z: np.ndarray
    g: np.ndarray
    alpha: float
    places: list[int | None]
    corner: list[int | None]
    pair: list[int]
    p: np.ndarray
    s: np.ndarray
    above: np.ndarray
    tau: float
    entries: np.ndarray
    beside: np.ndarray
    spectral_norm: np.ndarray
    product: np.ndarray
    by_matrix: np.ndarray | None
    loss: np.ndarray
    gradient: np.ndarray
    first: np.ndarray
    product_difference: np.ndarray
    gradient_difference: np.ndarray


def entmax_row(
    z: np.ndarray, alpha: float, vector: Sequence[float] | None, label: int | None
) -> EntmaxRow:
    """All numbers of the lesson on z, in float64.

    Args:
        z: K ≥ 2 logits.
        alpha: α in (1, 4].
        vector: The cotangent; from −1 to 1 in even steps if None.
        label: The true class, or None.
    """
    g = np.linspace(-1, 1, len(z)) if vector is None else np.array(vector, float)
    p, top = np.asarray(entmax(z, alpha)), int(z.argmax())
    tau = float((alpha - 1) * z[top] - p[top] ** (alpha - 1))
    corner, pair = _most_probable(p, COLUMNS), np.flatnonzero(p)[:2]
    places = _most_probable(p, 12, () if label is None else (label,))
    indices, shown = (np.array([i for i in a if i is not None]) for a in (corner, places))

    def computed(z: jax.Array) -> dict[str, Array | None]:
        def loss(z: jax.Array) -> jax.Array:
            return entmax_loss(z, 0 if label is None else label, alpha)

        def p_of(z: jax.Array) -> jax.Array:
            return entmax(z, alpha)

        J = EntmaxJacobian.from_logits(z, alpha)
        slopes = jax.lax.map(lambda j: central(loss, z, unit(z, j)), shown)
        value, gradient = jax.value_and_grad(loss)(z)
        return {
            "s": J.scale * J.softmax.sigma,
            "entries": J.scale * jacobian_block(J.softmax.sigma, indices),
            "beside": J.scale * jacobian_block(J.softmax.sigma, pair),
            "spectral_norm": gradient_flow(z, alpha=alpha).spectral_norm,
            "product": J.mv(g),
            "by_matrix": J.as_matrix() @ g if len(z) <= FORMED_LIMIT else None,
            "loss": value,
            "gradient": gradient,
            "first": jax.lax.map(lambda j: central(p_of, z, unit(z, j))[pair[0]], pair),
            "product_difference": central(p_of, z, jnp.asarray(g)),
            "gradient_difference": jnp.zeros_like(z).at[shown].set(slopes),
        }

    found = jax.tree.map(np.asarray, jax.jit(computed)(z))
    above = (alpha - 1) * z - tau
    return EntmaxRow(z, g, alpha, places, corner, pair.tolist(), p, above=above, tau=tau, **found)


def _most_probable(p: np.ndarray, most: int, also: Sequence[int] = ()) -> list[int | None]:
    """The places to show: all, or those of the largest p, with None for those between."""
    if len(p) <= most:
        return list(range(len(p)))
    few = sorted({*np.argsort(-p, kind="stable")[: most - 2].tolist(), *also})
    places: list[int | None] = [None] * (few[0] > 0)
    for i, following in zip(few, [*few[1:], len(p)], strict=True):
        places += [i, *[None] * (following > i + 1)]
    return places


def entmax_steps(row: EntmaxRow, label: int | None) -> list[Step]:
    """All steps; that of the loss only where there is a label."""
    found = [_probabilities(row), _maximum(row), _derivative(row), _two_entries(row), _matrix(row)]
    return [*found, _vjp(row), *[_loss(row, c) for c in [label] if c is not None]]


def _probabilities(row: EntmaxRow) -> Step:
    total = (np.maximum(row.above, 0) ** (1 / (row.alpha - 1))).sum()
    size, K = np.count_nonzero(row.p), len(row.p)
    return f"α-entmax, α = {row.alpha:g}: what lies below a threshold gets exactly 0", [
        Formula(
            "pᵢ = [(α − 1)·zᵢ − τ]₊^(1/(α − 1)),  τ such that Σᵢ pᵢ = 1",
            r"p_i = [(\alpha - 1) z_i - \tau]_+^{1/(\alpha - 1)}, \quad"
            r" \tau \text{ such that } \textstyle\sum_i p_i = 1",
        ),
        Numbers(f"τ = {number(row.tau)},  and with it Σᵢ pᵢ = {number(float(total))}"),
        by_class(row, {"zᵢ": row.z, "(α − 1)·zᵢ − τ": row.above, "pᵢ": row.p}),
        Numbers(f"The support S, where (α − 1)·zᵢ > τ, has {size} of {K} classes."),
    ]


def _maximum(row: EntmaxRow) -> Step:
    mean, entropy = _mean_and_entropy(row)
    return "Where it comes from: p maximises ⟨p, z⟩ + H(p) over the probabilities", [
        Formula(
            "H(p) = Σᵢ (pᵢ − pᵢ^α) / (α·(α − 1)), Tsallis's entropy",
            r"H(p) = \sum_i \frac{p_i - p_i^\alpha}{\alpha (\alpha - 1)}",
        ),
        Formula(
            "zᵢ + (1 − α·pᵢ^(α − 1)) / (α·(α − 1)) = μ, the same for every class of S",
            r"z_i + \frac{1 - \alpha p_i^{\alpha - 1}}{\alpha (\alpha - 1)} = \mu"
            r" \text{ for every class of } S",
        ),
        Formula(
            "pᵢ^(α − 1) = (α − 1)·zᵢ − τ,  τ = (α − 1)·μ − 1/α",
            r"p_i^{\alpha - 1} = (\alpha - 1) z_i - \tau, \quad"
            r" \tau = (\alpha - 1) \mu - \frac{1}{\alpha}",
        ),
        Numbers(f"⟨p, z⟩ = {number(mean)},  H(p) = {number(entropy)}"),
        Numbers("Adding a to every logit adds (α − 1)·a to τ and leaves p: so J·1 = 0."),
    ]


def _mean_and_entropy(row: EntmaxRow) -> tuple[float, float]:
    p, z, alpha = row.p[row.p > 0], row.z[row.p > 0], row.alpha
    return float(p @ z), float((p - p**alpha).sum() / (alpha * (alpha - 1)))


def _derivative(row: EntmaxRow) -> Step:
    total = float(row.s.sum())
    return "The derivative of pᵢ^(α − 1) = (α − 1)·zᵢ − τ by zⱼ, on the support", [
        Formula(
            "(α − 1)·pᵢ^(α − 2)·∂pᵢ/∂zⱼ = (α − 1)·δᵢⱼ − ∂τ/∂zⱼ",
            r"(\alpha - 1) p_i^{\alpha - 2} \frac{\partial p_i}{\partial z_j}"
            r" = (\alpha - 1) \delta_{ij} - \frac{\partial\tau}{\partial z_j}",
        ),
        Formula(
            "∂pᵢ/∂zⱼ = sᵢ·(δᵢⱼ − tⱼ),  sᵢ = pᵢ^(2 − α),  tⱼ = (∂τ/∂zⱼ) / (α − 1)",
            r"\frac{\partial p_i}{\partial z_j} = s_i (\delta_{ij} - t_j), \quad"
            r" s_i = p_i^{2 - \alpha}, \quad"
            r" t_j = \frac{1}{\alpha - 1} \frac{\partial\tau}{\partial z_j}",
        ),
        Numbers("Σᵢ pᵢ stays 1: 0 = Σᵢ ∂pᵢ/∂zⱼ = sⱼ − tⱼ·Σs, which makes tⱼ = sⱼ/Σs."),
        Numbers(f"Outside the support sᵢ = 0.  Σs = Σᵢ sᵢ = {number(total)}"),
        by_class(row, {"pᵢ": row.p, "sᵢ": row.s, "sᵢ/Σs": row.s / total}),
    ]


def _two_entries(row: EntmaxRow) -> Step:
    (i, *others), total = row.pair, number(float(row.s.sum()))
    si = number(float(row.s[i]))
    parts: list[Formula | Numbers | Columns] = [
        Formula(
            "∂pᵢ/∂zᵢ = sᵢ·(1 − sᵢ/Σs),  ∂pᵢ/∂zⱼ = −sᵢ·sⱼ/Σs for i ≠ j",
            r"\frac{\partial p_i}{\partial z_i} = s_i \Bigl(1 - \frac{s_i}{\sum s}\Bigr), \quad"
            r" \frac{\partial p_i}{\partial z_j} = -\frac{s_i s_j}{\sum s}",
        ),
        Numbers(f"i = {i}: {si}·(1 − {si}/{total}) = {number(float(row.beside[0, 0]))}"),
        *_check(row, 0),
    ]
    for j in others:
        product = f"−{si}·{number(float(row.s[j]))}/{total}"
        parts.append(Numbers(f"i = {i}, j = {j}: {product} = {number(float(row.beside[0, 1]))}"))
        parts += _check(row, 1)
    if not others:
        parts.append(Numbers("The support has a single class: no other entry, and J = 0."))
    return "An entry on the diagonal, and one off it", parts


def _check(row: EntmaxRow, at: int) -> list[Numbers]:
    """∂pᵢ/∂zⱼ by a central difference."""
    found, (i, j) = float(row.first[at]), (row.pair[0], row.pair[at])
    ratio = f"(p_{i}(z + h·e_{j}) − p_{i}(z − h·e_{j})) / 2h"
    lines = [Numbers(f"By differences, h = 10⁻⁵: {ratio} = {number(found)}")]
    if abs(found - row.beside[0, at]) > 1e-3 * abs(found):
        at_edge = np.abs(row.above).min() < _EDGE
        lines.append(Numbers(_KINK if at_edge else "(too small for differences in 16 digits)"))
    return lines


_KINK = "(a class lies at the edge of the support, where p has a kink and differences a mean)"


def _matrix(row: EntmaxRow) -> Step:
    cells = [[name(i), *(entry(row, i, j) for j in row.corner)] for i in row.corner]
    top, bound = number(float(row.spectral_norm)), number(float(row.s.sum() / 2))
    return "All entries together", [
        Formula(
            "∂pᵢ/∂zⱼ = sᵢ·(δᵢⱼ − sⱼ/Σs),  J = diag(s) − s·sᵀ/Σs",
            r"J = \operatorname{diag}(s) - \frac{s s^T}{\sum s}",
        ),
        Columns(["i \\ j", *map(name, row.corner)], cells),
        Numbers("With σ = s/Σs it is Σs·(diag(σ) − σ·σᵀ): Σs times a Jacobian of softmax."),
        Numbers(
            "J = Jᵀ and each row sums to 0, so that J·1 = 0; "
            f"rank J = |S| − 1 = {np.count_nonzero(row.p) - 1}"
        ),
        Numbers("vᵀ·J·v is Σs times the variance of v under σ, so ≥ 0"),
        Numbers(f"λ_max = {top} ≤ Σs/2 = {bound}"),
        Numbers("As α → 1, s → p and Σs → 1: softmax. At α = 2, sᵢ = 1 on S: sparsemax."),
    ]


def _vjp(row: EntmaxRow) -> Step:
    mean = float(row.g @ row.s / row.s.sum())
    columns = {"gᵢ": row.g, "gᵢ − ⟨s, g⟩/Σs": row.g - mean, "(J·g)ᵢ": row.product}
    if row.by_matrix is not None:
        columns["matrix"] = row.by_matrix
    columns[DIFFERENCES] = row.product_difference
    return "Backpropagation: the product with a gradient g = ∂L/∂p, without the matrix", [
        Formula(
            "∂L/∂z = Jᵀ·g = J·g = s⊙(g − ⟨s, g⟩/Σs)",
            r"\frac{\partial L}{\partial z} = J^T g = J g"
            r" = s \odot \Bigl(g - \frac{\langle s, g \rangle}{\sum s}\Bigr)",
        ),
        Numbers(f"⟨s, g⟩/Σs = {number(mean)}"),
        Numbers("By differences, J·g = (p(z + h·g) − p(z − h·g)) / 2h"),
        by_class(row, columns),
    ]


def _loss(row: EntmaxRow, label: int) -> Step:
    mean, entropy = _mean_and_entropy(row)
    others = np.delete(row.z, label).max()
    ahead, margin = number(float(row.z[label] - others)), number(1 / (row.alpha - 1))
    columns = {"yⱼ": np.eye(1, len(row.z), label)[0], "pⱼ": row.p, "∂L/∂zⱼ": row.gradient}
    return f"In place of cross-entropy: the Fenchel–Young loss, true class c = {label}", [
        Formula(
            "L = max_p (⟨p, z⟩ + H(p)) − z_c = ⟨p − y, z⟩ + H(p),  ∂L/∂z = p − y",
            r"L = \max_p \bigl(\langle p, z \rangle + H(p)\bigr) - z_c"
            r" = \langle p - y, z \rangle + H(p), \quad \frac{\partial L}{\partial z} = p - y",
        ),
        Numbers("p is where the maximum lies: moving z moves p, but L not by that."),
        Numbers("The derivative of p − y is J: J is the Hessian of L, and L is convex."),
        Numbers(
            f"L = {number(mean)} − {number(float(row.z[label]))} + {number(entropy)}"
            f" = {number(float(row.loss))}"
        ),
        Numbers(f"z_c − max of the others = {ahead}; from 1/(α − 1) = {margin} on, L is 0."),
        by_class(row, columns | {DIFFERENCES: row.gradient_difference}, "j"),
    ]
