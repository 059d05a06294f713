"""α-entmax and its loss by the textbook: to differentiate in JAX, and in long double."""

import jax
import jax.numpy as jnp
import numpy as np


def long_entmax(x, alpha):
    """p of rows in long double, by halves; classes at −∞ get 0."""
    x, beta = np.asarray(x, np.longdouble), np.longdouble(alpha) - 1
    d = x - x.max(-1, keepdims=True)
    if beta == 0:
        return np.exp(d) / np.exp(d).sum(-1, keepdims=True)
    low, high = np.zeros_like(d[..., :1]), np.ones_like(d[..., :1])
    for _ in range(120):
        t = (low + high) / 2
        is_low = (np.maximum(beta * d + t, 0) ** (1 / beta)).sum(-1, keepdims=True) < 1
        low, high = np.where(is_low, t, low), np.where(is_low, high, t)
    p = np.maximum(beta * d + high, 0) ** (1 / beta)
    return p / p.sum(-1, keepdims=True)


def long_jacobian(p, alpha):
    """diag(s) − ssᵀ/Σs with s = p^{2−α} of one row in long double."""
    s = np.where(p > 0, np.where(p > 0, p, 1) ** np.longdouble(2 - alpha), 0)
    return np.diag(s) - np.outer(s, s) / s.sum()


def plain_entmax(x, alpha, axis=-1, where=None):
    """p = [βx − τ]₊^{1/β}, β = α − 1: τ by halves, then Newton steps that are differentiated."""
    beta = jnp.asarray(alpha, x.dtype) - 1
    beta = beta if beta.ndim == 0 else jnp.expand_dims(beta, axis)
    x = beta * (x if where is None else jnp.where(where, x, -1e4))

    def powers(tau, exponent):
        z = x - tau
        return jnp.where(z > 0, jnp.where(z > 0, z, 1) ** exponent, 0)

    def halve(_, ends):
        low, high = ends
        tau = (low + high) / 2
        is_low = jnp.sum(powers(tau, 1 / beta), axis, keepdims=True) > 1
        return jnp.where(is_low, tau, low), jnp.where(is_low, high, tau)

    top = jnp.max(x, axis, keepdims=True)
    ends = jax.lax.stop_gradient((top - 1, top))
    tau = jax.lax.stop_gradient(jax.lax.fori_loop(0, 60, halve, ends)[0])
    for _ in range(3):
        slope = jnp.sum(powers(tau, 1 / beta - 1), axis, keepdims=True) / beta
        tau = tau + (jnp.sum(powers(tau, 1 / beta), axis, keepdims=True) - 1) / slope
    return powers(tau, 1 / beta)


def plain_entmax_loss(x, target, alpha):
    """⟨p − t, x⟩ + H(p) − H(t), H the Tsallis entropy."""
    alpha = jnp.asarray(alpha, x.dtype)
    p = plain_entmax(x, alpha)

    def power(p):
        if alpha.ndim:
            return jnp.where(p > 0, jnp.where(p > 0, p, 1) ** alpha[..., None], 0)
        return jnp.where(p > 0, jnp.where(p > 0, p, 1) ** alpha, 0)

    def entropy(p):
        return jnp.sum(p - power(p), -1) / (alpha * (alpha - 1))

    return jnp.sum((p - target) * x, -1) + entropy(p) - entropy(target)
