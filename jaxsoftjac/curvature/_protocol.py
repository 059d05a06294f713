"""What curvature asks of an objective, and that of examples which are split over devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftjac._checks import AxisName
from jaxsoftjac.curvature._linearization import Model
from jaxsoftjac.curvature._shares import share_of_device

Product = Callable[[Any], Any]


class Objective(Protocol):
    """What stands on the model: its outputs as a function of the parameters, and their loss."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the loss."""
        ...

    def outputs(self, model: Model, params: Any, inputs: Any) -> Any:
        """The outputs z on which the loss stands."""
        ...

    def loss(self, z: Any, labels: Any) -> jax.Array:
        """The mean loss, or the part of these examples in it."""
        ...

    def total(self, loss: jax.Array) -> jax.Array:
        """The mean loss, from the part of these examples; not for what is differentiated."""
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


@dataclass(frozen=True)
class OverDevices:
    """That of the examples of all devices along a mapped axis, each of which has its own."""

    of_device: Objective
    axis_name: AxisName

    @property
    def options(self) -> Mapping[str, Any]:
        return self.of_device.options

    def outputs(self, model: Model, params: Any, inputs: Any) -> Any:
        return self.of_device.outputs(model, params, inputs)

    def loss(self, z: Any, labels: Any) -> jax.Array:
        return self._times_share(z, labels, self.of_device.loss(z, labels))

    def total(self, loss: jax.Array) -> jax.Array:
        return lax.psum(loss, self.axis_name)

    def hessian(self, z: Any, labels: Any) -> Product:
        product = self.of_device.hessian(z, labels)
        return lambda v: self._times_share(z, labels, product(v))

    def fisher(self, z: Any, labels: Any) -> Product:
        product = self.of_device.fisher(z, labels)
        return lambda v: self._times_share(z, labels, product(v))

    def sampled_fisher(self, z: Any, labels: Any, key: jax.Array, samples: int) -> Product:
        product = self.of_device.sampled_fisher(z, labels, self._own(key), samples)
        return lambda v: self._times_share(z, labels, product(v))

    def sampled_cotangent(self, z: Any, labels: Any, key: jax.Array) -> Any:
        sample = self.of_device.sampled_cotangent(z, labels, self._own(key))
        return self._times_share(z, labels, sample, jnp.sqrt)

    def _own(self, key: jax.Array) -> jax.Array:
        return jax.random.fold_in(key, lax.axis_index(self.axis_name))

    def _times_share(
        self, z: Any, labels: Any, tree: Any, power: Callable[[jax.Array], jax.Array] = lambda a: a
    ) -> Any:
        outputs = z[0] if isinstance(z, tuple) else z
        share = power(share_of_device(outputs, labels, self.options, self.axis_name))
        return jax.tree.map(lambda a: share.astype(a.dtype) * a, tree)
