"""The derivatives of softmax in JAX: exact, structured, in every mode and to every order.

`jaxsoftjac.examples` has worked examples. A function stands in the reference once, on the page of
its module; most are also names of `jaxsoftjac` itself, as in the table below.

.. include:: ../README.md
   :start-line: 5
"""

import importlib as _importlib
import warnings as _warnings
from importlib import metadata as _metadata
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import jax as _jax

from jaxsoftjac.attention import dot_product_attention as dot_product_attention
from jaxsoftjac.curvature import fisher_product as fisher_product
from jaxsoftjac.curvature import gauss_newton_diagonal as gauss_newton_diagonal
from jaxsoftjac.curvature import gauss_newton_product as gauss_newton_product
from jaxsoftjac.curvature import sampled_fisher_product as sampled_fisher_product
from jaxsoftjac.dense import cross_entropy_hessian as cross_entropy_hessian
from jaxsoftjac.dense import log_softmax_jacobian as log_softmax_jacobian
from jaxsoftjac.dense import softmax_hessian as softmax_hessian
from jaxsoftjac.dense import softmax_jacobian as softmax_jacobian
from jaxsoftjac.diagnostics import attention_flow as attention_flow
from jaxsoftjac.diagnostics import gradient_flow as gradient_flow
from jaxsoftjac.diagnostics import probe_jacobian_properties as probe_jacobian_properties
from jaxsoftjac.diagnostics import verify_jacobian_properties as verify_jacobian_properties
from jaxsoftjac.functions import log_softmax as log_softmax
from jaxsoftjac.functions import logsumexp as logsumexp
from jaxsoftjac.functions import softmax as softmax
from jaxsoftjac.losses import LinearTarget as LinearTarget
from jaxsoftjac.losses import cross_entropy as cross_entropy
from jaxsoftjac.losses import entmax_loss as entmax_loss
from jaxsoftjac.losses import entropy as entropy
from jaxsoftjac.losses import kl_divergence as kl_divergence
from jaxsoftjac.losses import linear_cross_entropy as linear_cross_entropy
from jaxsoftjac.losses import linear_cross_entropy_gauss_newton as linear_cross_entropy_gauss_newton
from jaxsoftjac.operators import EntmaxJacobian as EntmaxJacobian
from jaxsoftjac.operators import SoftmaxJacobian as SoftmaxJacobian
from jaxsoftjac.products import log_softmax_jvp as log_softmax_jvp
from jaxsoftjac.products import log_softmax_vjp as log_softmax_vjp
from jaxsoftjac.products import softmax_jvp as softmax_jvp
from jaxsoftjac.products import softmax_second_derivative as softmax_second_derivative
from jaxsoftjac.products import softmax_vjp as softmax_vjp
from jaxsoftjac.sparse import entmax as entmax
from jaxsoftjac.sparse import sparsemax as sparsemax
from jaxsoftjac.transforms import hessian as hessian
from jaxsoftjac.transforms import hvp as hvp
from jaxsoftjac.transforms import jacobian as jacobian

# There is no `__all__`: pdoc would list each name twice.

if _jax.__version_info__ == (0, 10, 2):
    _warnings.warn(
        "JAX 0.10.2 computes products with the softmax Jacobian wrongly under jit on CPU "
        "(jax issue 39103): use JAX 0.10.1, or 0.11 and later",
        stacklevel=2,
    )

_LAZY = ("examples", "optimizers", "plots", "regression")

if _TYPE_CHECKING:
    from jaxsoftjac import examples as examples
    from jaxsoftjac import optimizers as optimizers
    from jaxsoftjac import plots as plots
    from jaxsoftjac import regression as regression

    __version__: str


def __getattr__(name: str) -> _Any:
    """Loads what needs optax or matplotlib when it is first touched."""
    if name in _LAZY:
        return _importlib.import_module(f"jaxsoftjac.{name}")
    if name == "__version__":
        return _metadata.version("jaxsoftjac")
    raise AttributeError(f"module 'jaxsoftjac' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Every name, those too that are not loaded yet."""
    return sorted({*globals(), *_LAZY, "__version__"})
