"""For every public function arguments that it takes; for every parameter some that it refuses."""

from typing import NamedTuple

import jax
import numpy as np

import jaxsoftjac as jsj
from jaxsoftjac import attention, diagnostics, optimizers, plots, regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype("float32")  # logits, eight examples of three classes
P = np.full((8, 3), 1 / 3, "float32")
LABELS = np.arange(8) % 3
Q = RNG.normal(size=(2, 4, 2, 3)).astype("float32")
HIDDEN, KERNEL = X[:, :2], X[:2]
FIT = regression.FittedRegression(KERNEL, X[0], *(np.float32(0),) * 4, None, np.array(False))
COUNTS = np.full(8, 3)
FLOW = diagnostics.GradientFlow(
    COUNTS, *np.ones((12, 8), "float32"), np.zeros(8, bool), support=COUNTS
)


class Call(NamedTuple):
    """A public function, arguments that it takes, and those of the function that it returns."""

    function: object
    arguments: dict
    then: dict | None = None

    def __call__(self, **changed):
        own = self.arguments | {k: v for k, v in changed.items() if k not in (self.then or {})}
        result = self.function(**own)
        if self.then is None:
            return result
        return result(*(changed.get(name, value) for name, value in self.then.items()))


def linear_model(params, inputs):
    return inputs @ params


def taught(hidden, kernel, bias=None, temperature=1.0, logit_softcap=None):
    """The loss of a teacher with these fields."""
    target = jsj.LinearTarget(hidden, kernel, bias, temperature, logit_softcap)
    return jsj.linear_cross_entropy(HIDDEN, KERNEL, target)


ROWS = {"x": X}
LINEAR = {"hidden": HIDDEN, "kernel": KERNEL, "labels": LABELS}
LOSS = {"logits": X, "labels": LABELS}
ATTENTION = {"query": Q, "key": Q, "value": Q}
PRODUCT = {"params": KERNEL, "inputs": HIDDEN, "labels": LABELS, "tangents": KERNEL}
DATA = {"features": HIDDEN, "labels": LABELS}
CURVED = {"model": linear_model}
SAMPLED = {"params": KERNEL, "inputs": HIDDEN, "key": jax.random.key(0), "tangents": KERNEL}

CALLS = {
    "as_flax_attention": Call(attention.as_flax_attention, ATTENTION),
    "attention_flow": Call(jsj.attention_flow, {"query": Q, "key": Q}),
    "cross_entropy": Call(jsj.cross_entropy, LOSS),
    "cross_entropy_hessian": Call(jsj.cross_entropy_hessian, LOSS),
    "diagonal_gauss_newton": Call(
        optimizers.diagonal_gauss_newton, CURVED | {"learning_rate": 0.1}
    ),
    "dot_product_attention": Call(jsj.dot_product_attention, ATTENTION),
    "entmax": Call(jsj.entmax, ROWS),
    "entmax_loss": Call(jsj.entmax_loss, LOSS),
    "entropy": Call(jsj.entropy, {"logits": X}),
    "EntmaxJacobian": Call(jsj.EntmaxJacobian.from_logits, ROWS),
    "fisher_product": Call(jsj.fisher_product, CURVED, PRODUCT),
    "fit_softmax_regression": Call(
        regression.fit_softmax_regression, DATA | {"l2": 0.1, "num_classes": 3}
    ),
    "gauss_newton_cg": Call(optimizers.gauss_newton_cg, CURVED),
    "gauss_newton_diagonal": Call(
        jsj.gauss_newton_diagonal, CURVED, {k: PRODUCT[k] for k in ("params", "inputs", "labels")}
    ),
    "gauss_newton_product": Call(jsj.gauss_newton_product, CURVED, PRODUCT),
    "gradient_flow": Call(jsj.gradient_flow, ROWS),
    "hessian": Call(jsj.hessian, {"fun": jsj.logsumexp}, {"x": X[0]}),
    "hvp": Call(jsj.hvp, {"fun": jsj.logsumexp}, {"x": X, "tangents": X}),
    "jacobian": Call(jsj.jacobian, {"fun": jsj.softmax}, {"x": X[0]}),
    "kl_divergence": Call(jsj.kl_divergence, {"logits": X, "target_logits": X}),
    "linear_cross_entropy": Call(jsj.linear_cross_entropy, LINEAR),
    "linear_cross_entropy_gauss_newton": Call(
        jsj.linear_cross_entropy_gauss_newton, LINEAR | {"tangents": (HIDDEN, KERNEL)}
    ),
    "LinearTarget": Call(taught, {"hidden": HIDDEN, "kernel": KERNEL}),
    "log_softmax": Call(jsj.log_softmax, ROWS),
    "log_softmax_jacobian": Call(jsj.log_softmax_jacobian, ROWS),
    "log_softmax_jvp": Call(jsj.log_softmax_jvp, {"tangent": X, "sigma": P}),
    "log_softmax_vjp": Call(jsj.log_softmax_vjp, {"grad_output": X, "sigma": P}),
    "logsumexp": Call(jsj.logsumexp, ROWS),
    "natural_gradient": Call(optimizers.natural_gradient, CURVED),
    "plot_jacobian": Call(plots.plot_jacobian, {"x": X[0]}),
    "plot_spectrum": Call(plots.plot_spectrum, {"x": X[0]}),
    "probe_jacobian_properties": Call(jsj.probe_jacobian_properties, ROWS),
    "sampled_fisher_product": Call(jsj.sampled_fisher_product, CURVED, SAMPLED),
    "softmax": Call(jsj.softmax, ROWS),
    "softmax_hessian": Call(jsj.softmax_hessian, ROWS),
    "softmax_jacobian": Call(jsj.softmax_jacobian, ROWS),
    "softmax_jvp": Call(jsj.softmax_jvp, {"tangent": X, "sigma": P}),
    "softmax_regression_intervals": Call(
        regression.softmax_regression_intervals, DATA | {"fit": FIT, "new_features": HIDDEN[:2]}
    ),
    "softmax_regression_path": Call(
        regression.softmax_regression_path, DATA | {"l2": np.ones(2), "num_classes": 3}
    ),
    "softmax_second_derivative": Call(jsj.softmax_second_derivative, {"u": X, "v": X, "sigma": P}),
    "softmax_vjp": Call(jsj.softmax_vjp, {"grad_output": X, "sigma": P}),
    "SoftmaxJacobian": Call(jsj.SoftmaxJacobian, {"sigma": P}),
    "sparsemax": Call(jsj.sparsemax, ROWS),
    "summarise_softmax_regression": Call(
        regression.summarise_softmax_regression, DATA | {"fit": FIT}
    ),
    "summarize": Call(diagnostics.summarize, {"flow": FLOW}),
    "temperature_sweep": Call(
        diagnostics.temperature_sweep, ROWS | {"temperatures": np.ones(2, "float32")}
    ),
    "verify_jacobian_properties": Call(jsj.verify_jacobian_properties, ROWS),
}

# What a parameter of a name refuses wherever it stands.
NOT_REAL = [np.ones((8, 3), bool), np.ones((8, 3), complex), "text"]
MISFIT = np.ones((5, 4, 3, 7), "float32")  # fits nothing above
ARRAY = [*NOT_REAL, MISFIT]
AXIS = [7, -3, (0, 0), 1.5, "classes"]
NUMBER = ["text", 1j, np.ones(3)]
POSITIVE = [*NUMBER, -1.0]
COUNT = [0, 1.5, "text"]
FLAG_OR = ["text"]

WRONG = {
    "x": [*NOT_REAL, np.float32(1)],
    "logits": [*NOT_REAL, np.float32(1)],
    "labels": [np.ones(8, bool), np.ones(8, complex), "text", LABELS[:7], np.zeros((8, 3), int)],
    "target_logits": ARRAY,
    "sigma": [*NOT_REAL, np.float32(1)],
    "tangent": ARRAY,
    "grad_output": ARRAY,
    "u": ARRAY,
    "v": ARRAY,
    "hidden": ARRAY,
    "kernel": ARRAY,
    "features": ARRAY,
    "new_features": ARRAY,
    "query": ARRAY,
    "key": ARRAY,
    "value": ARRAY,
    "bias": ARRAY,
    "weights": ARRAY,
    "class_weights": ARRAY,
    "b": ARRAY,
    "temperature": [*POSITIVE, 0.0],
    "temperatures": ARRAY,
    "tangents": [*ARRAY, None],
    "mask": [np.ones(MISFIT.shape, bool), np.ones((1, 1, 4, 4)), "text"],
    "where": [np.ones((8, 3)), np.ones((7, 3), bool), "text"],
    "query_seq_lengths": [np.ones(2), np.ones(3, int), "text"],
    "key_value_seq_lengths": [np.ones(2), np.ones(3, int), "text"],
    "sink": ARRAY,
    "axis": AXIS,
    "scale": [*NUMBER],
    "is_causal": ["top_left", 2, None],
    "local_window_size": ["text", 1.5, (1, 2, 3)],
    "implementation": ["cudnn", 1],
    "logit_softcap": [*NUMBER, -1.0],
    "dropout_rate": [*NUMBER, 1.5],
    "dropout_key": ["text", 3],
    "block_size": [0, 1.5, "text"],
    "axis_name": [3],
    "batch_axis_name": [3],
    "label_smoothing": [*POSITIVE, 1.5],
    "z_loss": POSITIVE,
    "ignore_index": [1.5, "text"],
    "reduction": ["average", None],
    "alpha": [*NUMBER[:2], MISFIT, -1.0],
    "damping": POSITIVE,
    "loss": ["hinge", 3],
    "samples": COUNT,
    "mode": ["backward", None],
    "batch_ndim": [-1, 1.5, "text"],
    "argnums": [5, 1.5, "text"],
    "l2": POSITIVE,
    "num_classes": [0, 1.5, "text"],
    "solver": ["sag", None],
    "tol": POSITIVE,
    "max_iterations": [-1, 1.5, "text"],
    "reference": [3, -1, 1.5, "text"],
    "confidence": [0, 1, "text"],
    "levels": [(2.0,), ("text",)],
    "model": [None, 3],
    "fun": [None, 3],
    "head": [3],
    "min_damping": POSITIVE,
    "max_damping": POSITIVE,
    "cg_iterations": [*POSITIVE, 0],
    "cg_tolerance": POSITIVE,
    "warm_start": POSITIVE,
    "b1": POSITIVE,
    "b2": POSITIVE,
    "threshold": POSITIVE,
    "eps": POSITIVE,
    "every": [*POSITIVE, 0],
    "learning_rate": POSITIVE,
    "fit": [3, KERNEL],
    "start": [3, KERNEL, FIT._replace(bias=X[0, :2])],
}

# What it refuses there, where that differs.
ROW = {"x": [MISFIT, np.float32(1)]}
OF_THE_USER = {"x": [], "inputs": [], "labels": [], "key": []}
ELSEWHERE = {
    "as_flax_attention": {
        "mask": ["text", np.ones(MISFIT.shape, bool)],
        "dropout_rng": ["text", 3],
    },
    "attention_flow": {"is_causal": ["top_left", 2, None]},
    "diagonal_gauss_newton": {"scale": POSITIVE},
    "fisher_product": OF_THE_USER,
    "gauss_newton_diagonal": OF_THE_USER,
    "hessian": OF_THE_USER,
    "hvp": OF_THE_USER,
    "jacobian": OF_THE_USER,
    "logsumexp": {"x": NOT_REAL},
    "plot_jacobian": ROW | {"classes": ["text", ("one", "two")]},
    "plot_spectrum": ROW,
    "sampled_fisher_product": OF_THE_USER | {"key": ["text", 3]},
    "softmax_regression_path": {"l2": [*NOT_REAL, np.float32(1)]},
}

# Read for their truth, handed to JAX or scikit-learn, or records that functions here return.
NOT_CHECKED = (
    "adapt_damping broadcast_dropout deterministic has_value keepdims linearized precondition "
    "return_log_normalizer return_residual return_sign standard_errors "
    "dtype precision seed options params inputs flow module a"
).split()
