"""A Gauss–Newton product costs at most 2.5 gradients, also at a vocabulary whose logits do not fit.

Prints the time of products over that of the gradient of the same model, bytes of temporaries of the
product at V = 50257 with and without `head`, and errors against the dense JᵀHJ in float64.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxsoftjac as jsj
from benchmarks._harness import (
    Claim,
    Report,
    check_agreement,
    ratio,
    temp_bytes,
    time_in_turn,
)
from jaxsoftjac.curvature import fisher_product, gauss_newton_product
from jaxsoftjac.transforms import hvp

Params = dict[str, jax.Array]


def features(params: Params, inputs: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.tanh(inputs @ params["first"]) @ params["second"])


def model(params: Params, inputs: jax.Array) -> jax.Array:
    return features(params, inputs) @ params["kernel"]


def problem(N: int, D: int, K: int, dtype: Any = np.float32) -> tuple[Params, Any, Any, Params]:
    random = np.random.default_rng(0)
    shapes = {"first": (D, D), "second": (D, D), "kernel": (D, K)}
    params = {
        name: jnp.asarray(random.normal(size=shape) / D**0.5, dtype)
        for name, shape in shapes.items()
    }
    inputs = jnp.asarray(random.normal(size=(N, D)), dtype)
    labels = jnp.asarray(random.integers(0, K, size=N), jnp.int32)
    return params, inputs, labels, jax.tree.map(jnp.cos, params)


def mean_loss(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jsj.cross_entropy(model(params, inputs), labels))


def accuracy(report: Report) -> None:
    """Error of the product against the dense JᵀHJ, in float64; least vᵀGv in float32."""
    with jax.enable_x64(True):
        params, inputs, labels, v = problem(8, 5, 4, np.float64)
        flat, unravel = ravel_pytree(params)
        J = jax.jacrev(lambda flat: model(unravel(flat), inputs))(flat)
        H = jsj.softmax_jacobian(model(params, inputs)) / len(labels)
        along = ravel_pytree(v)[0]
        expected = np.asarray(jnp.einsum("nkp,nkl,nlq,q->p", J, H, J, along))
        product = jax.jit(gauss_newton_product(model))(params, inputs, labels, v)
        actual = np.asarray(ravel_pytree(product)[0])
    error = float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))
    report.claims.append(Claim("Gauss–Newton product, float64, relative error", 1e-10, error))


def speed(report: Report, shapes: list[tuple[int, int, int]], rounds: int) -> None:
    def hessian_product(p, x, c, v):
        return hvp(lambda p: mean_loss(p, x, c))(p, v)

    gradient = jax.jit(jax.value_and_grad(mean_loss))
    programs: dict[str, Callable] = {
        "gauss_newton_product": jax.jit(gauss_newton_product(model)),
        "fisher_product": jax.jit(fisher_product(model)),
        "hvp": jax.jit(hessian_product),
    }
    rows, worst = [], 0.0
    for shape in shapes:
        *arguments, v = problem(*shape)
        calls = {name: partial(f, *arguments, v) for name, f in programs.items()}
        product, fisher = (calls[n]() for n in ("gauss_newton_product", "fisher_product"))
        check_agreement("fisher_product", fisher["first"], np.asarray(product["first"]), 1e-4)
        times = time_in_turn({"gradient": partial(gradient, *arguments), **calls}, rounds)
        ratios = {name: ratio(times[name], times["gradient"]) for name in calls}
        worst = max(worst, ratios["gauss_newton_product"].median)
        rows.append([str(shape), *map(str, ratios.values())])
    report.add("Time over that of value_and_grad, [quartiles]", ["(N, D, K)", *programs], rows)
    report.claims.append(Claim("gauss_newton_product over a gradient, worst shape", 2.5, worst))


def memory(report: Report, N: int, D: int, V: int) -> None:
    arguments = problem(N, D, V)
    programs = {
        "logits": gauss_newton_product(model),
        "head": gauss_newton_product(features, head="kernel", block_size=V // 16),
    }
    compiled = {name: jax.jit(f).lower(*arguments).compile() for name, f in programs.items()}
    used = {name: temp_bytes(program) or 0 for name, program in compiled.items()}
    results = {name: program(*arguments) for name, program in compiled.items()}
    check_agreement("head", results["head"]["first"], np.asarray(results["logits"]["first"]), 1e-3)
    of_logits = 4 * N * V
    rows = [[name, f"{used[name] / 1e6:.1f}"] for name in programs]
    title = f"Temporaries of a product at {(N, D, V)}, MB; its logits: {of_logits / 1e6:.1f}"
    report.add(title, ["", "MB"], rows)
    text = "temporaries of the product with head over its logits"
    report.claims.append(Claim(text, 1.0, used["head"] / of_logits))


def run(quick: bool) -> Report:
    """Accuracy, then speed, then memory at a vocabulary."""
    report = Report("curvature")
    accuracy(report)
    shapes = [(64, 32, 10)] if quick else [(512, 256, 10), (1024, 128, 1000), (256, 512, 100)]
    speed(report, shapes, 3 if quick else 21)
    memory(report, *((512, 16, 8192) if quick else (512, 64, 50257)))
    return report
