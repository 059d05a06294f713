"""The derivatives of softmax in JAX: exact, structured, in every mode and to every order."""

from jaxsoftjac.attention import dot_product_attention as dot_product_attention
from jaxsoftjac.curvature import fisher_product as fisher_product
from jaxsoftjac.curvature import gauss_newton_product as gauss_newton_product
from jaxsoftjac.dense import cross_entropy_hessian as cross_entropy_hessian
from jaxsoftjac.dense import log_softmax_jacobian as log_softmax_jacobian
from jaxsoftjac.dense import softmax_hessian as softmax_hessian
from jaxsoftjac.dense import softmax_jacobian as softmax_jacobian
from jaxsoftjac.diagnostics import attention_flow as attention_flow
from jaxsoftjac.diagnostics import gradient_flow as gradient_flow
from jaxsoftjac.diagnostics import probe_jacobian_properties as probe_jacobian_properties
from jaxsoftjac.diagnostics import verify_jacobian_properties as verify_jacobian_properties
from jaxsoftjac.divergences import entropy as entropy
from jaxsoftjac.divergences import kl_divergence as kl_divergence
from jaxsoftjac.functions import log_softmax as log_softmax
from jaxsoftjac.functions import logsumexp as logsumexp
from jaxsoftjac.functions import softmax as softmax
from jaxsoftjac.linear_losses import linear_cross_entropy as linear_cross_entropy
from jaxsoftjac.linear_losses import (
    linear_cross_entropy_gauss_newton as linear_cross_entropy_gauss_newton,
)
from jaxsoftjac.losses import cross_entropy as cross_entropy
from jaxsoftjac.operators import SoftmaxJacobian as SoftmaxJacobian
from jaxsoftjac.products import log_softmax_jvp as log_softmax_jvp
from jaxsoftjac.products import log_softmax_vjp as log_softmax_vjp
from jaxsoftjac.products import softmax_jvp as softmax_jvp
from jaxsoftjac.products import softmax_second_derivative as softmax_second_derivative
from jaxsoftjac.products import softmax_vjp as softmax_vjp
from jaxsoftjac.sampled_curvature import gauss_newton_diagonal as gauss_newton_diagonal
from jaxsoftjac.sampled_curvature import sampled_fisher_product as sampled_fisher_product
from jaxsoftjac.transforms import hessian as hessian
from jaxsoftjac.transforms import hvp as hvp
from jaxsoftjac.transforms import jacobian as jacobian
