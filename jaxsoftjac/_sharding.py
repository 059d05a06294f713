"""Arrays whose type says how they are split over devices: the Explicit axes of a mesh.

Where classes, a vocabulary or keys are split so, a function enters a `shard_map` over those mesh
axes by itself and goes on as with `axis_name`; all other axes stay as they are. Under Auto axes the
type says nothing, and these helpers do nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

Result = TypeVar("Result")
Part = str | tuple[str, ...] | None


def mesh_axes(x: jax.Array, axis: int) -> tuple[str, ...]:
    """The Explicit mesh axes that an axis of `x` is split over."""
    return _names(_parts(x)[axis])


def whole(x: jax.Array, axis: int) -> jax.Array:
    """`x` with one axis gathered on every device."""
    return _with_part(x, mesh_axes(x, axis), None, jax.typeof(x).sharding.mesh)


def split_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x`, of which each axis is split as that of `like`."""
    if _parts(x) == _parts(like):
        return x
    return jax.sharding.reshard(x, jax.typeof(like).sharding)


def over_mesh_slices(
    function: Callable[..., Result],
    names: tuple[str, ...],
    arguments: Sequence[Any],
    axes: Sequence[Any],
    out_specs: Any,
) -> Result:
    """`function` of arrays that are split over the mesh axes `names`, in a `shard_map` over these.

    Args:
        function: of the slices of all arrays; it communicates over `names`.
        names: Explicit mesh axes.
        arguments: pytrees of arrays.
        axes: pytrees of the same structure: the axis along which each array is sliced, None for
            those that all devices share, and for what is None in `arguments`.
        out_specs: partition specs of the results, which name `names` only.

    Returns:
        The results, with the other mesh axes as JAX finds them.
    """
    leaves, tree = jax.tree.flatten(tuple(arguments), is_leaf=_is_none)
    pairs = list(zip(leaves, jax.tree.leaves(tuple(axes), is_leaf=_is_none), strict=True))
    meshes = (jax.typeof(a).sharding.mesh for a in leaves if a is not None)
    mesh = next(mesh for mesh in meshes if set(names) <= set(mesh.axis_names))
    placed = [None if a is None else _with_part(a, names, axis, mesh) for a, axis in pairs]
    return jax.shard_map(
        lambda *leaves: function(*jax.tree.unflatten(tree, leaves)),
        mesh=mesh,
        in_specs=tuple(P() if axis is None else P(*[None] * axis, names) for _, axis in pairs),
        out_specs=out_specs,
        axis_names=set(names),
    )(*placed)


def _is_none(x: Any) -> bool:
    return x is None


def over_batch(function: Callable[[jax.Array], Result], rows: jax.Array) -> Result:
    """`function` of rows [..., K], each device computing that of its own rows."""
    rows = whole(rows, rows.ndim - 1)
    names = [name for part in _parts(rows) for name in _names(part)]
    if not names:
        return function(rows)
    spec = P(*_parts(rows)[:-1])
    return jax.shard_map(
        function,
        mesh=jax.typeof(rows).sharding.mesh,
        in_specs=spec,
        out_specs=spec,
        axis_names=set(names),
    )(rows)


def _parts(x: jax.Array) -> list[Part]:
    spec = jax.typeof(x).sharding.spec
    return [*spec, *[None] * (x.ndim - len(spec))]


def _names(part: Part) -> tuple[str, ...]:
    if part is None:
        return ()
    return (part,) if isinstance(part, str) else tuple(part)


def _with_part(
    x: jax.Array, names: tuple[str, ...], axis: int | None, mesh: AbstractMesh
) -> jax.Array:
    """`x`, with one axis and no other split over `names`; it may be on no mesh yet."""
    parts = _parts(x)
    left = [tuple(n for n in _names(part) if n not in names) for part in parts]
    moved = [(*part, *names) if i == axis else part for i, part in enumerate(left)]
    if moved == [_names(part) for part in parts]:
        return x
    spec = P(*(part or None for part in moved))
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))
