"""The arrays of the logits' size that a program visits: a pass that is added shows here."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not part of the package

from benchmarks._pairs import PAIRS, in_modes, rows_of  # noqa: E402
from benchmarks._passes import arrays, passes  # noqa: E402

pytestmark = [
    pytest.mark.once,
    pytest.mark.as_compiled,
    pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="other fusions on JAX 0.11"),
]

# Value, value and VJP, JVP, HVP: as JAX 0.10 compiles them. `python -m benchmarks --profile` prints
# them beside the peers'.
HELD = {
    "softmax": (6, 15, 13, 28),
    "log_softmax": (4, 13, 13, 25),
    "logsumexp": (2, 6, 8, 13),
    "cross_entropy": (3, 7, 9, 14),
    "… of probabilities": (8, 20, 20, 29),
    "… smoothing, z-loss": (4, 12, 21, 22),
    "entropy": (2, 15, 15, 26),
    "kl_divergence": (14, 21, 22, 19),
}


@pytest.mark.parametrize("name", HELD)
def test_arrays_of_the_logits_size(name):
    rows = rows_of((64, 1024), 1.0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        visited = [
            arrays(passes(jax.jit(program).lower(*rows).compile(), rows[0].size))
            for program in in_modes(PAIRS[name].ours).values()
        ]
    assert all(now <= held for now, held in zip(visited, HELD[name], strict=True)), visited


def test_a_pass_that_is_added_is_counted():
    x = rows_of((64, 1024), 1.0)[0]
    one, two = (
        passes(jax.jit(f).lower(x).compile(), x.size)
        for f in (lambda x: 2 * x, lambda x: x - jnp.max(x, -1, keepdims=True))
    )
    assert (len(one), arrays(one)) == (1, 2)
    assert (len(two), arrays(two)) == (2, 3)
