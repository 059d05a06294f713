"""What stands on a model: the mean loss of its logits, or of hidden states under a last layer.

All means are over the examples that are kept: those whose label is not `ignore_index`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from jaxsoftjac._checks import as_array, as_real, wide
from jaxsoftjac.curvature._linearization import Model
from jaxsoftjac.curvature._vocabulary_factor import VocabularyFactor
from jaxsoftjac.functions import softmax
from jaxsoftjac.losses import (
    cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_gauss_newton,
)
from jaxsoftjac.losses._arguments import is_ignored, weighted, wide_labels
from jaxsoftjac.operators import SoftmaxJacobian

Loss = Literal["cross_entropy"] | Callable[..., jax.Array]
Head = str | tuple[str, str] | Callable[[Any], Any]
Product = Callable[[Any], Any]
Operands = tuple[jax.Array, ...]  # hidden [..., D], kernel [D, V], and perhaps a bias [V]
_BLOCK_ELEMENTS = 2**17  # logits of one block of classes, in all examples: 0.5 MB in float32
_OF_MODEL = ("ignore_index", "weights", "block_size", "logit_softcap")


class Objective(Protocol):
    """What stands on the model: its outputs as a function of the parameters, and their loss."""

    def outputs(self, model: Model, params: Any, inputs: Any) -> Any:
        """The outputs z on which the loss stands."""
        ...

    def loss(self, z: Any, labels: Any) -> jax.Array:
        """The mean loss."""
        ...

    def hessian(self, z: Any, labels: Any) -> Product:
        """The product with H, the Hessian of the mean loss by the logits: v ↦ Hv."""
        ...

    def fisher(self, z: Any, labels: Any) -> Product:
        """The same for cross-entropy; of the labels it reads only which are kept."""
        ...

    def sampled_fisher(self, z: Any, labels: Any, key: jax.Array, samples: int) -> Product:
        """A Monte Carlo estimate of `fisher`: the mean over signs ε of (Fε)(Fε)ᵀ, FFᵀ = H."""
        ...

    def sampled_cotangent(self, z: Any, labels: Any, key: jax.Array) -> Any:
        """One sample Fε, a cotangent of the outputs."""
        ...


def objective_of(loss: Loss, head: Head | None, options: Mapping[str, Any]) -> Objective:
    """The checked `loss` on logits, or on hidden states and a `head`."""
    if loss != "cross_entropy" and not callable(loss):
        raise ValueError(f'`loss` must be "cross_entropy" or a function, got {loss!r}')
    if loss == "cross_entropy" and "reduction" in options:
        raise TypeError("`reduction` is no option: the loss is the mean of the examples")
    if head is None:
        return _OnLogits(loss, options)
    if loss != "cross_entropy":
        raise ValueError(f'`loss` must be "cross_entropy" where `head` is given, got {loss!r}')
    names = head if isinstance(head, tuple) else (head,)
    if not callable(head) and not all(isinstance(name, str) for name in names):
        message = "`head` must be one or two keys of the parameters or a function of them"
        raise TypeError(f"{message}, got {head!r}")
    return _OnHidden(head, options)


def fisher_objective(head: Head | None, options: Mapping[str, Any]) -> Objective:
    """The objective of which only the Fisher matrix is wanted."""
    for name in options:
        if name not in _OF_MODEL[: 2 if head is None else None]:
            raise TypeError(f"`{name}` is no option of a Fisher matrix")
    return objective_of("cross_entropy", head, options)


@dataclass(frozen=True)
class _OnLogits:
    kind: Loss
    options: Mapping[str, Any]

    def outputs(self, model: Model, params: Any, inputs: Any) -> jax.Array:
        return rows_of(model, params, inputs, "logits [..., K]")

    def loss(self, z: jax.Array, labels: Any) -> jax.Array:
        shape = jax.eval_shape(self._losses, z, labels).shape
        if shape != z.shape[:-1]:
            raise ValueError(
                f"`loss` must give one value per example, shape {z.shape[:-1]}, got {shape}"
            )
        kept, shares = shares_of(z, labels, self.options)
        losses = self._losses(jnp.where(kept[..., None], z, 0), labels)
        return jnp.sum(weighted(shares.astype(losses.dtype), losses))

    def hessian(self, z: jax.Array, labels: Any) -> Product:
        labels = as_array("labels", labels) if self.kind == "cross_entropy" else labels
        jax.eval_shape(self.loss, z, labels)  # raises where they do not fit
        if self.kind != "cross_entropy" or set(self.options) - {"ignore_index", "weights"}:
            return jax.linearize(jax.grad(partial(self.loss, labels=labels)), z)[1]
        kept, shares = shares_of(z, labels, self.options)
        if _are_integers(labels):
            labels = wide_labels(labels)
            outside = kept & ((labels < 0) | (labels >= z.shape[-1]))
            shares = jnp.where(outside, jnp.nan, shares)
        else:
            shares = shares * jnp.sum(labels, axis=-1, dtype=shares.dtype)
        return _mean_softmax_hessian(z, kept, shares)

    def fisher(self, z: jax.Array, labels: Any) -> Product:
        return _mean_softmax_hessian(z, *shares_of(z, labels, self.options))

    def sampled_fisher(self, z: jax.Array, labels: Any, key: jax.Array, samples: int) -> Product:
        J, shares = self._jacobian(z, labels)
        scale = (shares / samples)[..., None]
        keys = jax.random.split(key, samples)

        def product(v: jax.Array) -> jax.Array:
            v = v.astype(J.sigma.dtype)

            def add(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
                signs = jax.random.rademacher(key, z.shape, v.dtype)
                along = jnp.sum(signs * J.factor_t_mv(v), axis=-1, keepdims=True)
                return total + J.factor_mv(signs) * along, None

            none = jnp.zeros_like(v)
            total = add(none, keys[0])[0] if samples == 1 else jax.lax.scan(add, none, keys)[0]
            return (scale * total).astype(z.dtype)

        return product

    def sampled_cotangent(self, z: jax.Array, labels: Any, key: jax.Array) -> jax.Array:
        J, shares = self._jacobian(z, labels)
        signs = jax.random.rademacher(key, z.shape, J.sigma.dtype)
        return (jnp.sqrt(shares)[..., None] * J.factor_mv(signs)).astype(z.dtype)

    def _losses(self, z: jax.Array, labels: Any) -> jax.Array:
        options = {k: v for k, v in self.options.items() if k != "weights"}
        return (self.kind if callable(self.kind) else cross_entropy)(z, labels, **options)

    def _jacobian(self, z: jax.Array, labels: Any) -> tuple[SoftmaxJacobian, jax.Array]:
        kept, shares = shares_of(z, labels, self.options)
        return SoftmaxJacobian.from_logits(wide(jnp.where(kept[..., None], z, 0))), shares


def _named(params: Any, key: str) -> Any:
    """One of the parameters that `head` names."""
    if not isinstance(params, Mapping):
        raise TypeError(f"`head` must be a function where the parameters have no keys, got {key!r}")
    if key not in params:
        keys = ", ".join(map(repr, params))
        raise ValueError(f"`head` must be of the keys {keys} of the parameters, got {key!r}")
    return params[key]


@dataclass(frozen=True)
class _OnHidden:
    head: Head
    options: Mapping[str, Any]

    def outputs(self, model: Model, params: Any, inputs: Any) -> Operands:
        if callable(self.head):
            layer = self.head(params)
        elif isinstance(self.head, str):
            layer = _named(params, self.head)
        else:
            layer = tuple(_named(params, key) for key in self.head)
        hidden = rows_of(model, params, inputs, "hidden states [..., D]")
        return (hidden, *(layer if isinstance(layer, tuple) else (layer,)))

    def loss(self, z: Operands, labels: Any) -> jax.Array:
        bias = {"bias": z[2]} if len(z) == 3 else {}
        return linear_cross_entropy(z[0], z[1], labels, **bias, **self.options, reduction="mean")

    def hessian(self, z: Operands, labels: Any) -> Product:
        return self._hessian(z, labels, self.options)

    def fisher(self, z: Operands, labels: Any) -> Product:
        kept, _ = shares_of(z[0], labels, self.options)
        options = {**self.options, "ignore_index": -1}
        return self._hessian(z, jnp.where(kept, 0, -1), options)

    def sampled_fisher(self, z: Operands, labels: Any, key: jax.Array, samples: int) -> Product:
        factor, keys = self._factor(z, labels), jax.random.split(key, samples)

        def product(v: Operands) -> Operands:
            total = jax.lax.map(lambda key: factor.outer_product(key, v), keys)
            return jax.tree.map(lambda a: jnp.sum(a, axis=0) / samples, total)

        return product

    def sampled_cotangent(self, z: Operands, labels: Any, key: jax.Array) -> Operands:
        return self._factor(z, labels).cotangent(key)

    def _hessian(self, z: Operands, labels: Any, options: Mapping[str, Any]) -> Product:
        options = {**options, "block_size": self._block_size(z)}
        bias = {"bias": z[2]} if len(z) == 3 else {}
        return lambda v: linear_cross_entropy_gauss_newton(
            z[0], z[1], labels, v, **bias, **options, reduction="mean"
        )

    def _factor(self, z: Operands, labels: Any) -> VocabularyFactor:
        kept, shares = shares_of(z[0], labels, self.options)
        hidden = jnp.where(kept[..., None], z[0], 0)
        return VocabularyFactor(
            (hidden, *z[1:]),
            shares,
            block_size=self._block_size(z),
            logit_softcap=self.options.get("logit_softcap"),
        )

    def _block_size(self, z: Operands) -> int:
        """Classes per block: a product holds several blocks at once, where a loss holds one."""
        rows, classes = z[0].size // max(1, z[0].shape[-1]), z[1].shape[-1]
        widest = min(classes, max(128, _BLOCK_ELEMENTS // max(1, rows)))
        given = self.options.get("block_size")
        return max(1, widest) if given is None else given


def rows_of(model: Model, params: Any, inputs: Any, what: str) -> jax.Array:
    """What the model returns, which is to be one floating array with a last axis."""
    z = model(params, inputs)
    if not isinstance(z, jax.Array):
        raise TypeError(f"`model` must return {what}, got {type(z).__name__}")
    if not z.ndim or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"`model` must return {what}, got {z.dtype.name}{list(z.shape)}")
    return z


def _mean_softmax_hessian(z: jax.Array, kept: jax.Array, shares: jax.Array) -> Product:
    """The Hessian of mean cross-entropy in the logits, v ↦ Σ share·Jv."""
    scale = shares.astype(z.dtype)[..., None]
    return jax.linearize(lambda z: scale * softmax(jnp.where(kept[..., None], z, 0)), z)[1]


def _are_integers(labels: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(labels), jnp.integer)


def shares_of(z: jax.Array, labels: Any, options: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Which examples are kept, and the share of each in the mean, 0 if it is not."""
    shape, dtype = z.shape[:-1], wide(z).dtype
    kept, ignore_index = jnp.ones(shape, bool), options.get("ignore_index")
    if ignore_index is not None:
        if labels is None:
            raise ValueError("`labels` must be given where `ignore_index` is")
        labels = jnp.asarray(labels)
        ignored = is_ignored(labels, ignore_index) if _are_integers(labels) else None
        kept = kept if ignored is None else jnp.broadcast_to(~ignored, shape)
    shares = kept.astype(dtype)
    if options.get("weights") is not None:
        weights = as_real("weights", options["weights"]).astype(dtype)
        if weights.shape not in (shape, ()):
            raise ValueError(f"`weights` must have shape {shape} or (), got {weights.shape}")
        shares = jnp.where(kept, weights, 0)
    counts = shares
    if options.get("class_weights") is not None and _are_integers(labels):  # as in the loss
        of_class = jnp.asarray(options["class_weights"], dtype)
        at = jnp.clip(wide_labels(jnp.asarray(labels)), 0, of_class.shape[0] - 1)
        counts = counts * of_class[at]
    total = jnp.sum(counts)
    return kept, shares * jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
