"""The steps of the derivation of J, each with its numbers and the differences that check them."""

import numpy as np

from jaxsoftjac.cli._cells import number
from jaxsoftjac.cli._lesson import (
    DIFFERENCES,
    Columns,
    Formula,
    Numbers,
    Row,
    Step,
    by_class,
    entry,
    exponentials,
    name,
)


def steps(row: Row, label: int | None) -> list[Step]:
    """All steps; that of cross-entropy only where there is a label."""
    found = [
        _softmax(row),
        _shift(row),
        _diagonal(row),
        _off_diagonal(row),
        _matrix(row),
        _vjp(row),
    ]
    if label is not None:
        found.append(_cross_entropy(row, label))
    return [*found, _second_derivative(row)]


def _softmax(row: Row) -> Step:
    e, S = exponentials(row)
    shift, tex_shift = (" − m", " - m") if row.top else ("", "")
    where = f",  m = max z = {number(row.top)} (step 2 says why)" if row.top else ""
    return "Softmax", [
        Formula(
            f"σᵢ = e^(zᵢ{shift}) / S,  S = Σⱼ e^(zⱼ{shift})",
            rf"\sigma_i = \frac{{e^{{z_i{tex_shift}}}}}{{S}}, \quad"
            rf" S = \sum_j e^{{z_j{tex_shift}}}",
        ),
        Numbers(f"S = {number(S)}{where}"),
        by_class(row, {"zᵢ": row.z, f"e^(zᵢ{shift})": e, "σᵢ": row.sigma}),
    ]


def _shift(row: Row) -> Step:
    top = float(row.z.max())
    e = np.exp(row.z - top)
    parts: list[Formula | Numbers | Columns] = [
        Formula(
            "e^(zᵢ + a) / Σⱼ e^(zⱼ + a) = e^a·e^(zᵢ) / (e^a·S) = σᵢ",
            r"\frac{e^{z_i + a}}{\sum_j e^{z_j + a}} = \frac{e^a e^{z_i}}{e^a S} = \sigma_i",
        ),
        Numbers("So a = −m with m = max z is free: no exponential exceeds 1, none overflows."),
        Numbers("σ does not change along 1 = (1, …, 1), so that J·1 = 0."),
        Numbers(f"m = {number(top)},  Σⱼ e^(zⱼ − m) = {number(float(e.sum()))}"),
    ]
    if not row.top:
        parts.append(by_class(row, {"zᵢ − m": row.z - top, "e^(zᵢ − m)": e, "σᵢ": e / e.sum()}))
    return "Shift invariance: the same constant added to every logit changes nothing", parts


def _diagonal(row: Row) -> Step:
    (e, S), sigma = exponentials(row), row.sigma
    e0, S0, s0 = number(e[0]), number(S), number(sigma[0])
    return "On the diagonal, i = j: the quotient rule", [
        Formula(
            "∂σᵢ/∂zᵢ = (eᵢ·S − eᵢ·eᵢ) / S² = σᵢ·(1 − σᵢ),  eᵢ for the exponential",
            r"\frac{\partial\sigma_i}{\partial z_i} = \frac{e^{z_i} S - e^{z_i} e^{z_i}}{S^2}"
            r" = \sigma_i (1 - \sigma_i)",
        ),
        Numbers(f"i = 0: ({e0}·{S0} − {e0}·{e0}) / {S0}²"),
        Numbers(f"= {s0}·(1 − {s0}) = {entry(row, 0, 0)}"),
        *_check(0, row),
    ]


def _off_diagonal(row: Row) -> Step:
    (e, S), sigma = exponentials(row), row.sigma
    e0, e1, S0 = number(e[0]), number(e[1]), number(S)
    return "Off the diagonal, i ≠ j: the numerator does not depend on zⱼ", [
        Formula(
            "∂σᵢ/∂zⱼ = (0·S − eᵢ·eⱼ) / S² = −σᵢ·σⱼ",
            r"\frac{\partial\sigma_i}{\partial z_j} = \frac{0 \cdot S - e^{z_i} e^{z_j}}{S^2}"
            r" = -\sigma_i \sigma_j",
        ),
        Numbers(f"i = 0, j = 1: −{e0}·{e1} / {S0}²"),
        Numbers(f"= −{number(sigma[0])}·{number(sigma[1])} = {entry(row, 0, 1)}"),
        *_check(1, row),
    ]


def _check(j: int, row: Row) -> list[Numbers]:
    """∂σ₀/∂zⱼ by a central difference."""
    found, unit = float(row.differences.first[j]), "₀₁"[j]
    shifted = f"σ₀(z + h·e{unit}) − σ₀(z − h·e{unit})"
    lines = [Numbers(f"By differences, h = 10⁻⁵: ({shifted}) / 2h = {number(found)}")]
    if abs(found - row.entries[0, j]) > 1e-3 * abs(found):
        lines.append(Numbers("(too small for differences of σ₀, which rounds to 16 digits)"))
    return lines


def _matrix(row: Row) -> Step:
    heads = ["i \\ j", *map(name, row.corner)]
    rows = [[name(i), *(entry(row, i, j) for j in row.corner)] for i in row.corner]
    return "Both cases together", [
        Formula(
            "∂σᵢ/∂zⱼ = σᵢ·(δᵢⱼ − σⱼ),  J = diag(σ) − σ·σᵀ",
            r"\frac{\partial\sigma_i}{\partial z_j} = \sigma_i (\delta_{ij} - \sigma_j), \quad"
            r" J = \operatorname{diag}(\sigma) - \sigma\sigma^T",
        ),
        Columns(heads, rows),
        Numbers("J = Jᵀ and each row sums to 0, so that J·1 = 0 and rank J = K − 1"),
        *[Numbers("Here K counts the classes that are not excluded: σᵢ = 0 where zᵢ = −∞")]
        * bool(np.isinf(row.z).any()),
        Numbers("vᵀ·J·v = Σᵢ σᵢ·vᵢ² − (Σᵢ σᵢ·vᵢ)² is the variance of v under σ, so ≥ 0"),
        Numbers(
            f"λ_max = {number(float(row.spectral_norm))} ≤ 1/2, while the diagonal is at most 1/4"
        ),
    ]


def _vjp(row: Row) -> Step:
    mean = float(row.g @ row.sigma)
    columns = {
        "gᵢ": row.g,
        "gᵢ·σᵢ": row.g * row.sigma,
        "gᵢ − ⟨g, σ⟩": row.g - mean,
        "(J·g)ᵢ": row.product,
    }
    if row.by_matrix is not None:
        columns["matrix"] = row.by_matrix
    columns[DIFFERENCES] = row.differences.product
    return "Backpropagation: the product with a gradient g = ∂L/∂σ, without the matrix", [
        Formula(
            "∂L/∂z = Jᵀ·g = J·g = σ⊙(g − ⟨g, σ⟩)",
            r"\frac{\partial L}{\partial z} = J^T g = J g"
            r" = \sigma \odot (g - \langle g, \sigma \rangle)",
        ),
        Numbers(f"⟨g, σ⟩ = Σᵢ gᵢ·σᵢ = {number(mean)}"),
        Numbers("By differences, J·g = (σ(z + h·g) − σ(z − h·g)) / 2h"),
        by_class(row, columns),
    ]


def _cross_entropy(row: Row, label: int) -> Step:
    y = np.eye(1, len(row.z), label)[0]
    columns = {"yⱼ": y, "σⱼ": row.sigma, "∂L/∂zⱼ": row.gradient}
    return f"Cross-entropy with the true class c = {label}", [
        Formula(
            "L = −log σ_c,  ∂L/∂zⱼ = −(1/σ_c)·∂σ_c/∂zⱼ",
            r"L = -\log\sigma_c, \quad \frac{\partial L}{\partial z_j}"
            r" = -\frac{1}{\sigma_c} \frac{\partial\sigma_c}{\partial z_j}",
        ),
        Numbers("In it, ∂σ_c/∂zⱼ = σ_c·(δ_cj − σⱼ) from the two cases, and σ_c cancels:"),
        Formula(
            "∂L/∂zⱼ = −(1/σ_c)·σ_c·(δ_cj − σⱼ) = σⱼ − δ_cj = σⱼ − yⱼ",
            r"\frac{\partial L}{\partial z_j} = -\frac{1}{\sigma_c} \sigma_c"
            r" (\delta_{cj} - \sigma_j) = \sigma_j - \delta_{cj} = \sigma_j - y_j",
        ),
        Numbers("y is the true class as a one-hot vector: y_c = 1, and yⱼ = 0 for every j ≠ c."),
        *_substituted(row, label),
        by_class(row, columns | {DIFFERENCES: row.differences.gradient}, "j"),
    ]


def _substituted(row: Row, label: int) -> list[Numbers]:
    """L, and the chain rule with its numbers at one class beside the true one."""
    sigma = row.sigma
    loss, j = f"L = {number(float(row.loss))}", int(label == 0)
    if not sigma[label]:
        return [Numbers(f"{loss},  σ_c = 0 in float64: only the cancelled form can be computed")]
    slope, other = number(float(-1 / sigma[label])), number(float(-sigma[label] * sigma[j]))
    return [
        Numbers(f"{loss},  −1/σ_c = {slope}"),
        Numbers(f"j = {j}: ({slope})·({other}) = {number(float(row.gradient[j]))}"),
    ]


def _second_derivative(row: Row) -> Step:
    squares = (row.g - row.g @ row.sigma) ** 2
    columns = {"(gᵢ − ⟨g, σ⟩)²": squares, "D²σ[g, g]ᵢ": row.second}
    return "The second derivative: the same product again", [
        Formula(
            "D²σ[u, v] = J·((u − ⟨u, σ⟩)⊙(v − ⟨v, σ⟩)),  and J is the Hessian of −log σ_c",
            r"D^2\sigma[u, v] = J\,((u - \langle u, \sigma\rangle) \odot"
            r" (v - \langle v, \sigma\rangle)), \quad \nabla^2(-\log\sigma_c) = J",
        ),
        by_class(row, columns | {DIFFERENCES: row.differences.second}),
    ]
