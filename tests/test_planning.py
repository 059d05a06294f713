"""What a head costs each device: the formulas against compiled programs on eight devices."""

import doctest
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not part of the package

from benchmarks import planning  # noqa: E402
from benchmarks._collectives import collective_bytes  # noqa: E402

pytestmark = pytest.mark.once


def test_the_example():
    assert doctest.testmod(planning) == (0, 3)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("tokens", "data", "vocabulary"), [(2048, 8, 1), (2048, 2, 4), (2048, 1, 8), (1024, 8, 1)]
)
def test_formulas_are_those_of_the_compiler(tokens, data, vocabulary, plain):
    """In blocks, and where all logits of a device are one."""
    where = {"data": data, "vocabulary": vocabulary, "plain": plain}
    temporaries, sent = planning.predicted_and_compiled((tokens, 32, 8192), **where)
    assert 1 / planning.FACTOR <= temporaries[0] / temporaries[1] <= planning.FACTOR
    assert abs(sent[0] / sent[1] - 1) <= 0.01


def test_the_large_head_fits_a_device_only_without_its_logits():
    where = {"data": 128, "vocabulary": 8, "dtype": "bfloat16"}
    ours = planning.head_cost(*planning.LARGE, **where)
    plain = planning.head_cost(*planning.LARGE, **where, plain=True)
    assert ours.temporaries < 2**31 < 2**33 <= plain.temporaries
    assert (ours.operands, ours.gradients) == (plain.operands, plain.gradients)


@pytest.mark.parametrize(("sizes", "name"), [({"data": 3}, "N"), ({"vocabulary": 0}, "V")])
def test_slices_that_do_not_fit_raise(sizes, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a multiple of its slices"):
        planning.head_cost(8, 4, 16, **sizes)


def sent_by(local, in_specs, out_specs, shape):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    return collective_bytes(jax.jit(split).lower(jnp.zeros(shape, jnp.float32)).compile())


def test_collectives_in_loops_count_as_often_as_they_run():
    def local(x):
        return lax.fori_loop(0, 5, lambda i, x: jnp.sin(lax.ppermute(x, "a", [(0, 1), (1, 0)])), x)

    assert sent_by(local, P("a"), P("a"), (8, 3)) == {"collective-permute": 5 * 6 * 4}


def test_a_gather_counts_what_comes_out_and_a_scatter_what_goes_in():
    def local(x):
        whole = lax.all_gather(x, "a", tiled=True)
        return lax.psum_scatter(jnp.cos(whole), "a", tiled=True)

    sent = sent_by(local, P("a"), P("a"), (8, 3))
    assert sent["all-gather"] == 8 * 3 * 4
    assert sent["reduce-scatter"] + sent["all-reduce"] == 8 * 3 * 4


def test_sums_over_one_device_send_nothing():
    mesh = jax.make_mesh((8, 1), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = jax.shard_map(lambda x: lax.psum(x, "b"), mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    assert not collective_bytes(jax.jit(split).lower(jnp.zeros((8, 3))).compile())
