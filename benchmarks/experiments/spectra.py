"""A classifier's Hessian has negative curvatures, which training takes away; Gauss–Newton has none.

A tanh classifier of digits, before and after training. Both matrices are used as products alone, by
matfree's Lanczos method with full reorthogonalisation: `hvp` for the Hessian, the linearised
`gauss_newton_product` for the other. The picture has all Ritz values with their spectral weight.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp, eig
from matplotlib.figure import Figure

from benchmarks._classification_data import digits
from benchmarks._harness import Claim, Report
from benchmarks.experiments._script import (
    classifier,
    initial_classifier,
    main,
    mean_loss,
    progress,
)
from jaxsoftjac.curvature import gauss_newton_product
from jaxsoftjac.optimizers import gauss_newton_cg
from jaxsoftjac.transforms import hvp

K = 10


def experiment(quick: bool) -> tuple[Report, Figure]:
    report = Report("spectra")
    with jax.enable_x64(True):
        inputs, labels = (jnp.asarray(a[:: 8 if quick else 1]) for a in digits())
        start = initial_classifier([64, 8 if quick else 32, K])
        matvecs = 20 if quick else 80
        points = {"before": start, "after": train(start, inputs, labels, 5 if quick else 12)}
        spectra = {}
        for when in progress(points, "Lanczos"):
            for name, product in products(points[when], inputs, labels).items():
                spectra[name, when] = lanczos(product, ravel_pytree(start)[0].size, matvecs)
    rows = []
    for (name, when), (values, _) in spectra.items():
        top = ", ".join(f"{v:.2g}" for v in values[::-1][:3])
        gap = values[-K + 1] / values[-K]  # K − 1 large ones at first, as many as J has
        rows.append([f"{name}, {when}", top, f"{gap:.1f}", f"{values[0]:.1e}"])
    report.add("Ritz values", ["", "largest", "λ(K − 1) / λ(K)", "least"], rows)
    values = {key: v for key, (v, _) in spectra.items()}
    negative = max(-values["Gauss–Newton", w][0] / values["Gauss–Newton", w][-1] for w in points)
    report.claims.append(Claim("−least over largest eigenvalue, Gauss–Newton", 1e-12, negative))
    left = values["Hessian", "after"][0] / values["Hessian", "before"][0]
    text = "most negative eigenvalue of the Hessian, after over before training"
    report.claims.append(Claim(text, 0.3 if quick else 0.1, left))
    return report, draw(spectra)


def train(params, inputs, labels, steps):
    optimizer = gauss_newton_cg(classifier, precondition=False)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            gradient = jax.grad(mean_loss)(params, inputs, labels)
            updates, state = optimizer.update(gradient, state, params, inputs=inputs, labels=labels)
            return (jax.tree.map(jnp.add, params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    return run(params)


def products(params, inputs, labels):
    """The two matrices as functions of a flat vector."""
    _, unravel = ravel_pytree(params)
    loss = partial(mean_loss, inputs=inputs, labels=labels)
    _, _, gauss_newton = gauss_newton_product(classifier, linearized=True)(params, inputs, labels)
    return {
        "Hessian": lambda v: ravel_pytree(hvp(loss)(params, unravel(v)))[0],
        "Gauss–Newton": lambda v: ravel_pytree(gauss_newton(unravel(v)))[0],
    }


def lanczos(product, size, matvecs):
    """Ritz values, ascending, and the weights of a random vector in them."""
    solve = eig.eigh_partial(decomp.tridiag_sym(matvecs, reortho="full"))
    first = jax.random.normal(jax.random.key(0), (size,))
    first = first / jnp.linalg.norm(first)
    values, vectors = jax.jit(lambda first: solve(product, first))(first)
    weights = (vectors @ first if vectors.shape[1] == size else first @ vectors) ** 2
    order = np.argsort(values)
    return np.asarray(values)[order], np.asarray(weights)[order]


def draw(spectra):
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, key in zip(figure.subplots(2, 2, sharey=True).T.ravel(), spectra, strict=True):
        values, weights = spectra[key]
        axes.vlines(values, 1e-8, np.maximum(weights, 1e-8), linewidth=1.2)
        axes.set_xscale("symlog", linthresh=1e-4)
        axes.set_xticks([-1, -1e-2, 0, 1e-2, 1])
        axes.set(yscale="log", title=", ".join(key), xlabel="eigenvalue", ylabel="weight")
        axes.axvline(0, color="grey", linewidth=0.6)
    return figure


if __name__ == "__main__":
    main(__doc__, experiment)
