"""SoftmaxJacobian as an operator of lineax, which is optional."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDE, close, quick_jit

from jaxsoftjac.operators import SoftmaxJacobian

X, V = (jnp.asarray(row, WIDE) for row in np.random.default_rng(0).normal(size=(2, 4)))


def test_lineax_solves_with_it():
    lineax = pytest.importorskip("lineax")
    tolerance = 1e-12 if WIDE == jnp.float64 else 1e-6
    solver = lineax.CG(rtol=tolerance, atol=tolerance)

    @quick_jit
    def both(x, v):
        J = SoftmaxJacobian.from_logits(x)
        operator = J.as_lineax()
        assert lineax.is_symmetric(operator)
        assert lineax.is_positive_semidefinite(operator)
        damped = operator + 0.1 * lineax.IdentityLinearOperator(operator.in_structure())
        damped = lineax.TaggedLinearOperator(damped, lineax.positive_semidefinite_tag)
        return {
            "mv": (operator.mv(v), J.mv(v)),
            "as_matrix": (operator.as_matrix(), J.as_matrix()),
            "CG": (lineax.linear_solve(operator, J.mv(v), solver).value, J.pinv_mv(J.mv(v))),
            "damped CG": (lineax.linear_solve(damped, v, solver).value, J.solve(v, 0.1)),
            "damped": (lineax.linear_solve(damped, v).value, J.solve(v, 0.1)),
        }

    for theirs, ours in both(X, V).values():
        close(theirs, ours)


def test_lineax_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "lineax", None)
    with pytest.raises(ImportError, match=r"jaxsoftjac\[lineax\]"):
        SoftmaxJacobian(jnp.ones(1)).as_lineax()
