"""The operator under the interface of lineax, which is an optional extra."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from lineax import FunctionLinearOperator


def semidefinite_operator(
    product: Callable[[jax.Array], jax.Array], vectors: jax.ShapeDtypeStruct
) -> FunctionLinearOperator:
    """A symmetric, positive semi-definite product with `vectors` of this shape and dtype.

    Raises:
        ImportError: lineax is not installed.
    """
    try:
        import lineax
    except ImportError as error:
        message = "`as_lineax` needs lineax: install the extra `jaxsoftjac[lineax]`"
        raise ImportError(message) from error
    tags = {lineax.symmetric_tag, lineax.positive_semidefinite_tag}
    return lineax.FunctionLinearOperator(product, vectors, tags)
