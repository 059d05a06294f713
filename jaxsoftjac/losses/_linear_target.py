"""A target for the losses beneath a vocabulary that is itself computed from a kernel."""

from typing import NamedTuple

from jax.typing import ArrayLike


class LinearTarget(NamedTuple):
    """The softmax p of a teacher's logits, as `labels` of `linear_cross_entropy`: distillation.

        t = hidden @ kernel + bias,    p = softmax(t / temperature)
        loss = −Σⱼ pⱼ log σⱼ = KL(p‖σ) + entropy of p

    The student learns from all of the teacher's probabilities, and neither's [N, V] logits are
    held. The entropy of p does not depend on the student. Stop the gradient of a teacher that does
    not learn, or do not differentiate by it: nothing is then computed for its derivatives.

    A temperature T of the student divides its logits: pass `hidden / T`, and `bias / T` and
    `logit_softcap / T` where there are any. The gradient is then 1/T² of its size at T = 1, or so:
    multiply the loss by T² where it is added to another (Hinton, Vinyals, Dean 2015).

    Attributes:
        hidden: real array [..., D], N rows as the student's; the teacher's D may be another.
        kernel: real array [D, V], V as the student's.
        bias: real array [V]; −∞ gives a class the probability 0.
        temperature: T > 0, None for 1; an array may be traced, and has a derivative.
        logit_softcap: c > 0 replaces t by c·tanh(t/c); may be traced.

    >>> import jax.numpy as jnp
    >>> from jaxsoftjac import linear_cross_entropy
    >>> hidden, kernel = jnp.ones((1, 2)), jnp.array([[1.0, 0, 0], [1.0, 0, 0]])
    >>> teacher = LinearTarget(hidden, kernel, temperature=2.0)      # t = [2, 0, 0]
    >>> print(linear_cross_entropy(jnp.ones((1, 1)), jnp.array([[2.0, 1, 0]]), teacher).round(2))
    [1.04]
    """

    hidden: ArrayLike
    kernel: ArrayLike
    bias: ArrayLike | None = None
    temperature: ArrayLike | None = None
    logit_softcap: ArrayLike | None = None
