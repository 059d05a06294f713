"""Rows of logits that break things, and what is right for them: a plain oracle in long double."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from helpers import U

INF, NAN = np.inf, np.nan
L = np.longdouble

ROWS = int(os.environ.get("JAXSOFTJAC_HOSTILE_ROWS", "120"))  # of each size, dtype and mask
SIZES = (1, 2, 5, 33)
UNITS = {"float32": U, "bfloat16": 2.0**-8, "float16": 2.0**-11}
TINY = {"float32": 2.0**-120, "bfloat16": 2.0**-120, "float16": 2.0**-24}

# Of a loss, beside the index of labels that do not count.
IGNORED = -100
OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}, {"label_smoothing": 1.0, "z_loss": 0.1}]


def rows(random, count, K, dtype):
    """Logits [count, K] of every style, a mask [count, K], and a label at every edge [count]."""
    styles = [
        lambda: random.normal(size=K) * random.choice([1e-3, 1, 10, 100]),
        lambda: _ahead(random, K, random.uniform(10, 60)),
        lambda: random.normal(size=K) * 10.0 ** random.uniform(10, 37),
        lambda: random.integers(0, 2**32, K, np.uint32).view(np.float32),
        lambda: random.choice([0, 1, -1, 40, -INF, INF], K, p=[0.3, 0.2, 0.1, 0.1, 0.28, 0.02]),
        lambda: random.choice([0, 1, -INF, NAN], K, p=[0.5, 0.2, 0.28, 0.02]),
        lambda: np.full(K, random.choice([0, 7.5, -1e4, 3e38, -3e38])),
        lambda: np.where(random.random(K) < 0.7, -INF, random.normal(size=K)),
        lambda: np.full(K, -INF),
        lambda: random.choice([0.0, 0.0, 1e-38, -1e-38, 88.0, -104.0], K),
        lambda: random.choice([3e38, 1e38, 0, -2e38, -3e38], K),
    ]
    with np.errstate(all="ignore"):
        x = np.stack([styles[i % len(styles)]() for i in range(count)]).astype(dtype)
    where = random.random((count, K)) < random.choice([0.3, 0.8, 1.0], (count, 1))
    labels = random.choice([*range(K), 0, K - 1, K, -1, -100], count).astype(np.int32)
    return x, where, labels


def _ahead(random, K, gap):
    x = random.normal(size=K)
    x[random.integers(K)] += gap
    return x


class Row:
    """Everything about one row, in long double; `kept` are its classes."""

    def __init__(self, x, where=None):
        x = np.asarray(x, np.float64).astype(L)
        self.masked = where is not None
        self.within = np.ones(len(x), bool) if where is None else where
        self.kept = self.within & ~(x == -INF)
        self.x = np.where(self.kept, x, -INF)
        self.has_nan = bool(np.isnan(self.x[self.kept]).any())
        self.has_inf = bool((self.x == INF).any())
        self.is_empty = not self.kept.any()
        self.is_plain = not (self.has_nan or self.has_inf or self.is_empty)
        self.sigma, self.log_sigma, self.log_normalizer = np.zeros(len(x), L), self.x, -INF
        if self.is_plain:
            top = int(np.argmax(self.x))
            depth = self.x - self.x[top]
            e = np.exp(depth)
            rest = np.sum(np.delete(e, top))
            self.sigma, self.log_sigma = e / (1 + rest), depth - np.log1p(rest)
            self.log_normalizer = self.x[top] + np.log1p(rest)

    def normal_sigma(self):
        """σ, but 0 below the smallest normal number of float32, as processors have it."""
        return np.where(self.sigma < np.finfo(np.float32).tiny, 0, self.sigma)

    def product(self, v):
        """Jv, exact also where it cancels."""
        sigma = self.normal_sigma()
        d = np.where(sigma > 0, v - v[int(np.argmax(sigma))], 0)
        return sigma * (d - np.sum(sigma * d))

    def softmax(self):
        if self.is_empty:
            return np.full(len(self.x), 0 if self.masked else NAN)
        return self.sigma if self.is_plain else np.where(self.within, NAN, 0)

    def surprise(self):
        """−log σ, 0 for what is excluded."""
        return np.where(self.kept, -np.where(self.kept, self.log_sigma, 0), 0)

    def cross_entropy(self, target, smoothing, z_loss):
        """Value and gradient for a target of probabilities; NaN where the row has one."""
        K = len(self.x)
        if self.has_nan or self.has_inf:
            return NAN, np.full(K, NAN)
        count = max(self.kept.sum(), 1)
        uniform = self.kept / L(count)
        mixed = (1 - L(smoothing)) * target + L(smoothing) * uniform
        missing = (target != 0) & ~self.kept & (smoothing != 1)
        # What is weighed may itself be more than the largest number.
        largest, surprise = np.finfo(np.float32).max, self.surprise()
        beyond = (smoothing != 1) & (np.sum(target * surprise) > largest)
        beyond |= (smoothing != 0) & (np.sum(uniform * surprise) > largest)
        value = INF if missing.any() or beyond else np.sum(mixed * surprise)
        gradient = np.sum(mixed) * self.sigma - np.where(self.kept, mixed, 0)
        hot = int(np.argmax(self.sigma))
        if self.is_plain and mixed[hot] == np.sum(mixed):  # exact where it cancels
            gradient[hot] = -np.sum(mixed) * np.sum(np.delete(self.sigma, hot))
        if z_loss:
            z = L(z_loss)
            value = value + z * L(self.log_normalizer) ** 2
            if self.is_plain:
                gradient = gradient + 2 * z * self.log_normalizer * self.sigma
        return value, gradient if self.is_plain else np.zeros(K)

    def entropy(self):
        if self.has_nan or self.has_inf:
            return NAN, np.full(len(self.x), NAN)
        s = self.surprise()
        value = np.sum(self.sigma * np.where(self.sigma > 0, s, 0))
        if self.is_empty:
            return value, np.zeros(len(self.x))
        down = np.where(self.sigma > 0, self.x - np.max(self.x), 0)  # log σ, but for a constant
        return value, -self.product(down)


@functools.cache
def cases(K, dtype, masked):
    random = np.random.default_rng([K, len(dtype), masked, 11])
    x, where, labels = rows(random, ROWS, K, dtype)
    if dtype != "float32":
        x = np.asarray(jnp.asarray(x))
    oracle = [Row(a, w if masked else None) for a, w in zip(x, where, strict=True)]
    return jnp.asarray(x), jnp.asarray(where) if masked else None, labels, oracle


def agree(found, exact, dtype, spread=0.0, label="", rounding=0.0):
    """Normwise, to the units that the spread of the row allows; NaN and ∞ where they must be."""
    found = np.atleast_1d(np.asarray(found).astype(np.longdouble))
    exact = np.atleast_1d(np.asarray(exact, np.longdouble))
    limit = float(jnp.finfo(dtype).max)
    with np.errstate(all="ignore"):
        exact = np.where(np.abs(exact) > limit, np.copysign(np.inf, exact), exact)
        finite = np.isfinite(exact) & (np.abs(exact) < 0.99 * limit)
        special = ~np.isfinite(exact)
        assert np.array_equal(found[special], exact[special], equal_nan=True), (label, found, exact)
        assert np.isfinite(found[finite]).all(), (label, found, exact)
        error = np.abs(found[finite] - exact[finite]).sum()
        size = np.abs(exact[finite]).sum()
    bound = (2 * UNITS[dtype] + (min(spread, 200) + 64) * U) * size + (
        TINY[dtype] + rounding
    ) * len(found)
    assert error <= bound, (label, float(error / max(size, 1e-300)), found, exact)


def spread_of(row):
    finite = row.x[np.isfinite(row.x)]
    near = finite[finite > finite.max() - 200] if finite.size else finite
    return float(near.max() - near.min()) if near.size else 0.0


def check_losses(losses, gradients, x, labels, oracle, options, rounding=0.0):
    """Cross-entropies of the rows and their gradients, with these options and `IGNORED`.

    An entry of a gradient may have an absolute error of `rounding`, or of 2⁻²⁴ where the target is
    smoothed: σ may happen to be near it.
    """
    if 0 < options.get("label_smoothing", 0) < 1:
        rounding = max(rounding, U)
    x, losses, gradients = jax.device_get((x, losses, gradients))
    dtype = str(x.dtype)
    for i, row in enumerate(oracle):
        label = f"row {i}: {x[i]}, label {labels[i]}"
        if labels[i] == IGNORED:
            assert losses[i] == 0, label
            assert not np.any(gradients[i]), label
            continue
        if not 0 <= labels[i] < len(row.x):
            assert np.isnan(losses[i]), label
            continue
        target = np.eye(len(row.x))[labels[i]].astype(L)
        smoothing, z_loss = options.get("label_smoothing", 0), options.get("z_loss", 0)
        value, gradient = row.cross_entropy(target, smoothing, z_loss)
        agree(losses[i], value, dtype, spread_of(row), label)
        if row.is_plain and value < float(jnp.finfo(dtype).max):
            agree(gradients[i], gradient, dtype, spread_of(row), label, rounding)
        elif row.is_empty:
            assert not np.any(gradients[i]), label
