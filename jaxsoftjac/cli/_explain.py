"""What `jaxsoftjac explain` prints: the derivation of J, step by step, on given logits.

>>> text = explanation(np.array([2.0, 1.0]))
>>> print(text.splitlines()[0])
The Jacobian of softmax at z = (2, 1)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxsoftjac.cli._text import number, shown_places, spell
from jaxsoftjac.dense import jacobian_block, softmax_jacobian
from jaxsoftjac.diagnostics import gradient_flow
from jaxsoftjac.functions import softmax
from jaxsoftjac.losses import cross_entropy
from jaxsoftjac.products import softmax_second_derivative, softmax_vjp

_FORMED_LIMIT = 2048  # widest row whose J is formed


class Formula(NamedTuple):
    """A formula, in Unicode and in TeX."""

    text: str
    tex: str


class Numbers(NamedTuple):
    """A line of arithmetic."""

    text: str


class Columns(NamedTuple):
    """Columns of cells under their heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


class Row(NamedTuple):
    """What is explained: logits z, a cotangent g, and what was computed of them."""

    z: np.ndarray
    g: np.ndarray
    top: float  # subtracted from the logits, 0 where their exponentials are of ordinary size
    places: list[int | None]  # classes to show, None for those between
    corner: list[int | None]  # those of them whose entries of J are shown
    sigma: np.ndarray
    entries: np.ndarray  # of J, at `corner`
    spectral_norm: np.ndarray
    product: np.ndarray  # J·g
    by_matrix: np.ndarray | None  # the same by the whole matrix
    second: np.ndarray  # D²σ[g, g]
    loss: np.ndarray
    gradient: np.ndarray


Step = tuple[str, list[Formula | Numbers | Columns]]


def explanation(
    z: np.ndarray,
    *,
    vector: Sequence[float] | None = None,
    label: int | None = None,
    style: str = "text",
    encoding: str = "utf-8",
) -> str:
    """The two cases, the matrix, the VJP, the cross-entropy and the second derivative at `z`.

    Args:
        z: K ≥ 2 logits.
        vector: The cotangent g = ∂L/∂σ of the VJP; from −1 to 1 in even steps if None.
        label: The true class c, counted from 0; None leaves the cross-entropy out.
        style: "text" or "markdown".
        encoding: Of the stream that the text is for.

    Returns:
        Lines of text, without a final newline; of wide rows the first and last few classes.
    """
    row = _row(z, vector, label)
    steps = [_softmax(row), _diagonal(row), _off_diagonal(row), _matrix(row), _vjp(row)]
    if label is not None:
        steps.append(_cross_entropy(row, label))
    steps.append(_second_derivative(row))
    values = ", ".join("…" if i is None else f"{z[i]:.6g}" for i in shown_places(z))
    title = f"The Jacobian of softmax at z = ({values})"
    lines = _STYLES[style](title, steps, encoding)
    return "\n".join(spell(line, encoding) for line in lines)


def _row(z: np.ndarray, vector: Sequence[float] | None, label: int | None) -> Row:
    g = np.linspace(-1, 1, len(z)) if vector is None else np.array(vector, float)
    top = 0.0 if np.abs(z).max() <= 20 else float(z.max())
    places = shown_places(z, 12)
    if label is not None and label not in places:
        middle = places.index(None)
        places[middle:middle] = [None, label]
    corner = shown_places(z)
    indices = np.array([i for i in corner if i is not None])
    found = jax.jit(_computed)(z, g, 0 if label is None else label, indices)
    return Row(z, g, top, places, corner, **jax.tree.map(np.asarray, found))


def _computed(z: jax.Array, g: jax.Array, label: jax.Array, indices: jax.Array) -> dict:
    sigma = softmax(z)
    loss, gradient = jax.value_and_grad(cross_entropy)(z, label)
    is_narrow = len(z) <= _FORMED_LIMIT
    return {
        "sigma": sigma,
        "entries": jacobian_block(sigma, indices),
        "spectral_norm": gradient_flow(z).spectral_norm,
        "product": softmax_vjp(g, sigma),
        "by_matrix": softmax_jacobian(z) @ g if is_narrow else None,
        "second": softmax_second_derivative(g, g, sigma),
        "loss": loss,
        "gradient": gradient,
    }


def _softmax(row: Row) -> Step:
    e, S = _exponentials(row)
    shift, tex_shift = (" − m", " - m") if row.top else ("", "")
    where = f",  m = max z = {number(row.top)}" if row.top else ""
    return "Softmax", [
        Formula(
            f"σᵢ = e^(zᵢ{shift}) / S,  S = Σⱼ e^(zⱼ{shift})",
            rf"\sigma_i = \frac{{e^{{z_i{tex_shift}}}}}{{S}}, \quad"
            rf" S = \sum_j e^{{z_j{tex_shift}}}",
        ),
        Numbers(f"S = {number(S)}{where}"),
        _by_class(row, {"zᵢ": row.z, f"e^(zᵢ{shift})": e, "σᵢ": row.sigma}),
    ]


def _diagonal(row: Row) -> Step:
    (e, S), sigma = _exponentials(row), row.sigma
    e0, S0, s0 = number(e[0]), number(S), number(sigma[0])
    return "On the diagonal, i = j: the quotient rule", [
        Formula(
            "∂σᵢ/∂zᵢ = (eᵢ·S − eᵢ·eᵢ) / S² = σᵢ·(1 − σᵢ),  eᵢ for the exponential",
            r"\frac{\partial\sigma_i}{\partial z_i} = \frac{e^{z_i} S - e^{z_i} e^{z_i}}{S^2}"
            r" = \sigma_i (1 - \sigma_i)",
        ),
        Numbers(f"i = 0: ({e0}·{S0} − {e0}·{e0}) / {S0}²"),
        Numbers(f"= {s0}·(1 − {s0}) = {_entry(row, 0, 0)}"),
    ]


def _off_diagonal(row: Row) -> Step:
    (e, S), sigma = _exponentials(row), row.sigma
    e0, e1, S0 = number(e[0]), number(e[1]), number(S)
    return "Off the diagonal, i ≠ j: the numerator does not depend on zⱼ", [
        Formula(
            "∂σᵢ/∂zⱼ = (0·S − eᵢ·eⱼ) / S² = −σᵢ·σⱼ",
            r"\frac{\partial\sigma_i}{\partial z_j} = \frac{0 \cdot S - e^{z_i} e^{z_j}}{S^2}"
            r" = -\sigma_i \sigma_j",
        ),
        Numbers(f"i = 0, j = 1: −{e0}·{e1} / {S0}²"),
        Numbers(f"= −{number(sigma[0])}·{number(sigma[1])} = {_entry(row, 0, 1)}"),
    ]


def _matrix(row: Row) -> Step:
    heads = ["i \\ j", *map(_name, row.corner)]
    rows = [[_name(i), *(_entry(row, i, j) for j in row.corner)] for i in row.corner]
    return "Both cases together", [
        Formula(
            "∂σᵢ/∂zⱼ = σᵢ·(δᵢⱼ − σⱼ),  J = diag(σ) − σ·σᵀ",
            r"\frac{\partial\sigma_i}{\partial z_j} = \sigma_i (\delta_{ij} - \sigma_j), \quad"
            r" J = \operatorname{diag}(\sigma) - \sigma\sigma^T",
        ),
        Columns(heads, rows),
        Numbers("J = Jᵀ and each row sums to 0, so that J·1 = 0 and rank J = K − 1"),
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
        columns["by the matrix"] = row.by_matrix
    return "Backpropagation: the product with a gradient g = ∂L/∂σ, without the matrix", [
        Formula(
            "∂L/∂z = Jᵀ·g = J·g = σ⊙(g − ⟨g, σ⟩)",
            r"\frac{\partial L}{\partial z} = J^T g = J g"
            r" = \sigma \odot (g - \langle g, \sigma \rangle)",
        ),
        Numbers(f"⟨g, σ⟩ = Σᵢ gᵢ·σᵢ = {number(mean)}"),
        _by_class(row, columns),
    ]


def _cross_entropy(row: Row, label: int) -> Step:
    y = np.eye(1, len(row.z), label)[0]
    slope = -1 / row.sigma[label] if row.sigma[label] else -np.inf
    return f"Cross-entropy with the true class c = {label}", [
        Formula(
            "L = −log σ_c,  ∂L/∂zⱼ = −(1/σ_c)·∂σ_c/∂zⱼ = σⱼ − yⱼ",
            r"L = -\log\sigma_c, \quad \frac{\partial L}{\partial z_j}"
            r" = -\frac{1}{\sigma_c} \frac{\partial\sigma_c}{\partial z_j} = \sigma_j - y_j",
        ),
        Numbers(f"L = {number(float(row.loss))},  −1/σ_c = {number(float(slope))}"),
        _by_class(row, {"yⱼ": y, "σⱼ": row.sigma, "∂L/∂zⱼ": row.gradient}, "j"),
    ]


def _second_derivative(row: Row) -> Step:
    squares = (row.g - row.g @ row.sigma) ** 2
    return "The second derivative: the same product again", [
        Formula(
            "D²σ[u, v] = J·((u − ⟨u, σ⟩)⊙(v − ⟨v, σ⟩)),  and J is the Hessian of −log σ_c",
            r"D^2\sigma[u, v] = J\,((u - \langle u, \sigma\rangle) \odot"
            r" (v - \langle v, \sigma\rangle)), \quad \nabla^2(-\log\sigma_c) = J",
        ),
        _by_class(row, {"(gᵢ − ⟨g, σ⟩)²": squares, "D²σ[g, g]ᵢ": row.second}),
    ]


def _exponentials(row: Row) -> tuple[np.ndarray, float]:
    e = np.exp(row.z - row.top)
    return e, float(e.sum())


def _entry(row: Row, i: int | None, j: int | None) -> str:
    if i is None or j is None:
        return "…"
    shown = [k for k in row.corner if k is not None]
    return number(float(row.entries[shown.index(i), shown.index(j)]))


def _by_class(row: Row, columns: dict[str, np.ndarray], index: str = "i") -> Columns:
    rows = [
        [_name(i), *("…" if i is None else number(float(c[i])) for c in columns.values())]
        for i in row.places
    ]
    return Columns([index, *columns], rows)


def _name(i: int | None) -> str:
    return "…" if i is None else str(i)


def _as_text(title: str, steps: Iterable[Step], encoding: str) -> Iterator[str]:
    yield title
    for index, (heading, parts) in enumerate(steps, 1):
        yield from ("", f"{index}. {heading}", "")
        for part in parts:
            if isinstance(part, Columns):
                table = [
                    [spell(cell, encoding) for cell in row] for row in (part.heads, *part.rows)
                ]
                widths = [max(map(len, column)) for column in zip(*table, strict=True)]
                yield ""
                for cells in table:
                    yield "   " + "  ".join(map(str.rjust, cells, widths))
                yield from [""] * (part is not parts[-1])
            else:
                yield f"   {part.text}"


def _as_markdown(title: str, steps: Iterable[Step], _: str) -> Iterator[str]:
    yield f"# {title}"
    for index, (heading, parts) in enumerate(steps, 1):
        yield from ("", f"## {index}. {heading}")
        for part in parts:
            yield ""
            if isinstance(part, Columns):
                for cells in (part.heads, ["---:"] * len(part.heads), *part.rows):
                    yield "| " + " | ".join(cells) + " |"
            elif isinstance(part, Formula):
                yield f"$${part.tex}$$"
            else:
                yield part.text


_STYLES: dict[str, Callable[[str, Iterable[Step], str], Iterable[str]]] = {
    "text": _as_text,
    "markdown": _as_markdown,
}
