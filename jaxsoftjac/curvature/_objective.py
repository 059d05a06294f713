"""What stands on a model: the mean loss of its logits, or of hidden states under a last layer.

All means are over the examples that are kept: those whose label is not `ignore_index`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxsoftjac._checks import AxisName, as_array, wide
from jaxsoftjac.curvature._linearization import Model
from jaxsoftjac.curvature._protocol import Objective, OverDevices, Product
from jaxsoftjac.curvature._shares import are_integers, shares_of, weighed_by_targets
from jaxsoftjac.curvature._vocabulary_factor import VocabularyFactor, over_examples
from jaxsoftjac.functions import softmax
from jaxsoftjac.losses import (
    cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_gauss_newton,
)
from jaxsoftjac.losses._arguments import weighted, wide_labels
from jaxsoftjac.operators import SoftmaxJacobian

Loss = Literal["cross_entropy"] | Callable[..., jax.Array]
Head = str | tuple[str, str] | Callable[[Any], Any]
Weighed = Callable[[Any, jax.Array, Mapping[str, Any], jax.Array], jax.Array]
Operands = tuple[jax.Array, ...]  # hidden [..., D], kernel [D, V], and perhaps a bias [V]
_BLOCK_ELEMENTS = 2**17  # logits of one block of classes, in all examples: 0.5 MB in float32
_OF_MODEL = ("ignore_index", "weights", "block_size", "logit_softcap")


def objective_of(
    loss: Loss,
    head: Head | None,
    options: Mapping[str, Any],
    batch_axis_name: AxisName | None = None,
) -> Objective:
    """The checked `loss` on logits, or on hidden states and a `head`."""
    if loss != "cross_entropy" and not callable(loss):
        raise ValueError(f'`loss` must be "cross_entropy" or a function, got {loss!r}')
    if loss == "cross_entropy" and "reduction" in options:
        raise TypeError("`reduction` is no option: the loss is the mean of the examples")
    # Of the labels of another loss nothing is known.
    weighed = weighed_by_targets if loss == "cross_entropy" else _as_they_are
    return _over_devices(_objective(loss, head, options, weighed), batch_axis_name)


def fisher_objective(
    head: Head | None, options: Mapping[str, Any], batch_axis_name: AxisName | None = None
) -> Objective:
    """The objective of which only the Fisher matrix is wanted; labels may have any value."""
    for name in options:
        if name not in _OF_MODEL[: 2 if head is None else None]:
            raise TypeError(f"`{name}` is no option of a Fisher matrix")
    return _over_devices(_objective("cross_entropy", head, options, _as_they_are), batch_axis_name)


def _objective(
    loss: Loss, head: Head | None, options: Mapping[str, Any], weighed: Weighed
) -> Objective:
    if head is None:
        return _OnLogits(loss, options, weighed)
    if loss != "cross_entropy":
        raise ValueError(f'`loss` must be "cross_entropy" where `head` is given, got {loss!r}')
    names = head if isinstance(head, tuple) else (head,)
    if not callable(head) and not all(isinstance(name, str) for name in names):
        message = "`head` must be one or two keys of the parameters or a function of them"
        raise TypeError(f"{message}, got {head!r}")
    return _OnHidden(head, options, weighed)


def _as_they_are(
    labels: Any, is_class: jax.Array, options: Mapping[str, Any], shares: jax.Array
) -> jax.Array:
    del labels, is_class, options
    return shares


def _over_devices(top: Objective, axis_name: AxisName | None) -> Objective:
    return top if axis_name is None else OverDevices(top, axis_name)


class _OnDevice:
    """An objective of which one device has all examples."""

    def total(self, loss: jax.Array) -> jax.Array:
        return loss


@dataclass(frozen=True)
class _OnLogits(_OnDevice):
    kind: Loss
    options: Mapping[str, Any]
    weighed: Weighed

    def outputs(self, model: Model, params: Any, inputs: Any) -> jax.Array:
        return rows_of(model, params, inputs, "logits [..., K]")

    def loss(self, z: jax.Array, labels: Any) -> jax.Array:
        if not callable(self.kind):
            return cross_entropy(wide(z), labels, **self.options, reduction="mean")
        options = {k: v for k, v in self.options.items() if k != "weights"}
        losses_of = partial(self.kind, **options)
        shape = jax.eval_shape(losses_of, z, labels).shape
        if shape != z.shape[:-1]:
            raise ValueError(
                f"`loss` must give one value per example, shape {z.shape[:-1]}, got {shape}"
            )
        kept, shares = shares_of(z, labels, self.options)
        losses = losses_of(jnp.where(kept[..., None], z, 0), labels)
        return jnp.sum(weighted(shares.astype(losses.dtype), losses))

    def hessian(self, z: jax.Array, labels: Any) -> Product:
        labels = as_array("labels", labels) if self.kind == "cross_entropy" else labels
        jax.eval_shape(self.loss, z, labels)  # raises where they do not fit
        if self.kind != "cross_entropy" or set(self.options) - {"ignore_index", "weights"}:
            return jax.linearize(jax.grad(partial(self.loss, labels=labels)), z)[1]
        kept, shares = shares_of(z, labels, self.options)
        if are_integers(labels):
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

    def _jacobian(self, z: jax.Array, labels: Any) -> tuple[SoftmaxJacobian, jax.Array]:
        """J of each example, and its factor in the matrix."""
        kept, shares = shares_of(z, labels, self.options)
        where = self.options.get("where")
        J = SoftmaxJacobian.from_logits(wide(jnp.where(kept[..., None], z, 0)), where=where)
        return J, self.weighed(labels, J.log_sigma != -jnp.inf, self.options, shares)


def _named(params: Any, key: str) -> Any:
    """One of the parameters that `head` names."""
    if not isinstance(params, Mapping):
        raise TypeError(f"`head` must be a function where the parameters have no keys, got {key!r}")
    if key not in params:
        keys = ", ".join(map(repr, params))
        raise ValueError(f"`head` must be of the keys {keys} of the parameters, got {key!r}")
    return params[key]


@dataclass(frozen=True)
class _OnHidden(_OnDevice):
    head: Head
    options: Mapping[str, Any]
    weighed: Weighed

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
        def mean(factor: VocabularyFactor, key: jax.Array, v: Operands) -> Operands:
            keys = jax.random.split(key, samples)
            total = jax.lax.map(lambda key: factor.outer_product(key, v), keys)
            return jax.tree.map(lambda a: jnp.sum(a, axis=0) / samples, total)

        return lambda v: self._of_factor(mean, z, labels, key, v)

    def sampled_cotangent(self, z: Operands, labels: Any, key: jax.Array) -> Operands:
        return self._of_factor(VocabularyFactor.cotangent, z, labels, key)

    def _hessian(self, z: Operands, labels: Any, options: Mapping[str, Any]) -> Product:
        options = {**options, "block_size": self._block_size(z)}
        bias = {"bias": z[2]} if len(z) == 3 else {}
        return lambda v: linear_cross_entropy_gauss_newton(
            z[0], z[1], labels, v, **bias, **options, reduction="mean"
        )

    def _of_factor(
        self,
        function: Callable[..., Operands],
        z: Operands,
        labels: Any,
        key: jax.Array,
        *tangents: Operands,
    ) -> Operands:
        """`function` of the factor at these operands, the key, and perhaps tangents of them."""
        kept, shares = shares_of(z[0], labels, self.options)
        hidden = jnp.where(kept[..., None], z[0], 0)
        is_class = z[2] != -jnp.inf if len(z) == 3 else jnp.ones(z[1].shape[1], bool)
        shares = self.weighed(labels, is_class, self.options, shares)

        def of_rows(
            z: Operands, shares: jax.Array, key: jax.Array, *tangents: Operands
        ) -> Operands:
            factor = VocabularyFactor(
                z,
                shares,
                block_size=self._block_size(z),
                logit_softcap=self.options.get("logit_softcap"),
            )
            return function(factor, key, *tangents)

        return over_examples(of_rows, (hidden, *z[1:]), shares, key, *tangents)

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
