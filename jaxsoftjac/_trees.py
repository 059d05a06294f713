"""The floating arrays of a pytree, which have derivatives, and the leaves that are carried along.

Leaves of integers, Booleans and keys are constants: their derivative is `float0`, as in JAX. What
is no array (a function, a string) is constant too, and None stands for its derivative, as in
Equinox.

>>> import jax.numpy as jnp
>>> tree = Floating({"kernel": jnp.ones(2), "steps": 3, "activation": jnp.tanh})
>>> print(*tree.arrays, tree.derivatives([jnp.zeros(2)])["activation"])
[1. 1.] None
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NUMBERS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class Floating:
    """A pytree, split into its floating arrays and its other leaves."""

    def __init__(self, tree: Any):
        """Splits `tree`."""
        found, self.structure = jax.tree_util.tree_flatten_with_path(tree)
        self._paths = [jax.tree_util.keystr(path) for path, _ in found]
        self._leaves = [leaf for _, leaf in found]
        self._moves = [_is_floating(leaf) for leaf in self._leaves]

    @property
    def arrays(self) -> list[Any]:
        """The floating leaves, in order."""
        return [leaf for leaf, moves in zip(self._leaves, self._moves, strict=True) if moves]

    @property
    def is_whole(self) -> bool:
        """Whether every leaf is floating."""
        return all(self._moves)

    def with_arrays(self, arrays: Sequence[Any]) -> Any:
        """The tree with other floating leaves."""
        return self._filled(arrays, lambda leaf: leaf)

    def derivatives(self, arrays: Sequence[Any], lead: tuple[int, ...] = ()) -> Any:
        """Derivatives by the floating leaves as a tree; those by others are `float0` zeros or None.

        Args:
            arrays: trees or arrays, one for each floating leaf.
            lead: axes that stand before those of the leaves.
        """

        def nothing(leaf: Any) -> Any:
            if not is_number(leaf):
                return None
            return np.zeros((*lead, *jnp.shape(leaf)), jax.dtypes.float0)

        return self._filled(arrays, nothing)

    def updates(self, arrays: Sequence[Any]) -> Any:
        """Steps of the floating leaves as a tree, with 0 for the others, in their own dtypes."""
        return self._filled(arrays, jnp.zeros_like)

    def tangents(self, tree: Any, name: str = "tangents") -> list[jax.Array]:
        """The tangents of the floating leaves, in their dtypes; those of others are not read.

        Raises:
            TypeError: a tangent is no number, or boolean, or complex where the leaf is real.
            ValueError: the structures or the shapes differ.
        """
        try:
            given = self.structure.flatten_up_to(tree)
        except ValueError:
            given = None
        if given is None or any(
            moves and not jax.tree_util.treedef_is_leaf(jax.tree.structure(t))
            for t, moves in zip(given, self._moves, strict=True)
        ):
            got = jax.tree.structure(tree)
            raise ValueError(f"`{name}` must have the structure {self.structure}, got {got}")
        chosen = []
        for leaf, path, t, moves in zip(self._leaves, self._paths, given, self._moves, strict=True):
            if not moves:
                continue
            where = f" at {path}" if path else ""
            if not is_number(t):
                raise TypeError(f"`{name}` must hold arrays{where}, got {type(t).__name__}")
            if jnp.shape(leaf) != jnp.shape(t):
                raise ValueError(
                    f"`{name}` must have shape {jnp.shape(leaf)}{where}, got {jnp.shape(t)}"
                )
            if _kind(t) > _kind(leaf):
                got = jnp.result_type(t).name
                raise TypeError(f"`{name}` must be real{where}, got dtype {got}")
            chosen.append(jnp.asarray(t, jnp.result_type(leaf)))
        return chosen

    def of(self, tree: Any) -> list[Any]:
        """What a tree of the same structure has in the places of the floating leaves."""
        leaves = self.structure.flatten_up_to(tree)
        return [leaf for leaf, moves in zip(leaves, self._moves, strict=True) if moves]

    def check_arrays(self, name: str) -> None:
        """Raises a TypeError that names the first leaf which is no array."""
        for leaf, path in zip(self._leaves, self._paths, strict=True):
            if not is_number(leaf):
                raise TypeError(
                    f"`{name}` must hold arrays, got {type(leaf).__name__} at {path or 'its root'}"
                )

    def _filled(self, arrays: Sequence[Any], other: Any) -> Any:
        rest = iter(arrays)
        leaves = [
            next(rest) if moves else other(leaf)
            for leaf, moves in zip(self._leaves, self._moves, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is an array or a number, and no function or name."""
    return isinstance(leaf, _NUMBERS) or hasattr(leaf, "__jax_array__")


def _kind(leaf: Any) -> int:
    """How much a dtype takes: 0 real, 1 complex; 2 boolean, which no leaf takes."""
    dtype = jnp.result_type(leaf)
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    return 2 if dtype == jnp.bool_ else int(is_complex)


def _is_floating(leaf: Any) -> bool:
    if not is_number(leaf):
        return False
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.inexact)
