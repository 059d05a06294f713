"""What a head of 256k classes takes of each of 1024 devices: formulas, and the compiler agrees.

Training takes the loss and its gradient by hidden states and kernel. `head_cost` says what one
device holds and sends, with linear_cross_entropy and with plain logits; on eight devices the table
puts it beside what the compiler allots and what the program's text sends.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsoftjac as jsj
from benchmarks._collectives import collective_bytes
from benchmarks._eight_devices import print_report, report_of
from benchmarks._harness import Claim, Report, temp_bytes

LARGE = 2**22, 8192, 2**18  # N, D, V
MESHES = [(1024, 1), (128, 8), (32, 32), (8, 128)]
SMALL = [(2048, 64, 8192), (1024, 256, 16384)]
SMALL_MESHES = [(8, 1), (2, 4), (1, 8)]
AXES = "data", "vocabulary"
FACTOR = 1.25  # within which the formulas are right


class HeadCost(NamedTuple):
    """Bytes on each device; a ring sends what is added over devices about twice."""

    operands: int  # hidden states and kernel
    gradients: int  # of both
    temporaries: int  # besides
    over_data: int  # added along the data axis: the kernel's gradient
    over_vocabulary: int  # along the vocabulary: the hidden states' gradient, and numbers per row


def head_cost(
    N: int,
    D: int,
    V: int,
    *,
    data: int = 1,
    vocabulary: int = 1,
    dtype: str = "float32",
    block_size: int | None = None,
    plain: bool = False,
) -> HeadCost:
    """What the gradient of the loss costs each device of a mesh `data` × `vocabulary`.

    With n = N/data, w = V/vocabulary, b bytes of a number and 4 of a logit:

        temporaries = 3·n·block·4 + 2·D·block·b + n·D·4, and D·w·b where b < 4;
        plain, or one block: 2·n·w·4
        over_vocabulary = n·(D·4 + 5·4),            plain: n·(D·b + 3·4)
        over_data = D·w·b

    >>> cost = head_cost(2**22, 8192, 2**18, data=128, vocabulary=8, dtype="bfloat16")
    >>> plain = head_cost(2**22, 8192, 2**18, data=128, vocabulary=8, dtype="bfloat16", plain=True)
    >>> print(f"{cost.temporaries / 1e9:.1f} GB, plain {plain.temporaries / 1e9:.1f} GB")
    1.7 GB, plain 8.6 GB

    Args:
        N: number of tokens in all, a multiple of `data`.
        D: width of the hidden states.
        V: size of the vocabulary, a multiple of `vocabulary`.
        data: slices of the batch.
        vocabulary: slices of the vocabulary.
        dtype: of hidden states and kernel; logits have at least 4 bytes.
        block_size: as for `linear_cross_entropy`, of a slice of the vocabulary.
        plain: whether the logits hidden @ kernel are held.

    Returns:
        The bytes of each device.

    Raises:
        ValueError: N or V cannot be cut into that many slices.
    """
    for name, size, slices in (("N", N, data), ("V", V, vocabulary)):
        if slices < 1 or size % slices:
            raise ValueError(f"`{name}` must be a multiple of its slices, got {size} and {slices}")
    n, w, b = N // data, V // vocabulary, jnp.dtype(dtype).itemsize
    logit = max(4, b)
    block = 2**20 // n  # where that is less than all, it is bounded further
    block = min(w, block_size or (w if block >= w else max(128, min(block, w // 16))))
    is_whole = plain or block == w
    stacked = D * w * b if b < 4 else 0
    in_blocks = (3 * n * block + n * D) * logit + 2 * D * block * b + stacked
    held = 2 * n * w * logit if is_whole else in_blocks
    per_row = D * b + 3 * logit if plain else D * logit + 5 * logit
    return HeadCost(
        operands=(n * D + D * w) * b,
        gradients=(n * D + D * w) * b,
        temporaries=held,
        over_data=D * w * b if data > 1 else 0,
        over_vocabulary=n * per_row if vocabulary > 1 else 0,
    )


def compiled_cost(
    N: int, D: int, V: int, *, data: int, vocabulary: int, plain: bool = False
) -> tuple[int, int]:
    """Bytes of temporaries, and bytes in collectives, of the compiled program in float32."""
    devices = jax.devices()[: data * vocabulary]
    mesh = jax.make_mesh((data, vocabulary), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
    specs = P("data"), P(None, "vocabulary"), P("data")
    of_hidden, of_kernel, of_labels = (NamedSharding(mesh, spec) for spec in specs)
    arguments = (
        jax.ShapeDtypeStruct((N, D), jnp.float32, sharding=of_hidden),
        jax.ShapeDtypeStruct((D, V), jnp.float32, sharding=of_kernel),
        jax.ShapeDtypeStruct((N,), jnp.int32, sharding=of_labels),
    )
    loss = _plain_loss if plain else jax.shard_map(_loss, mesh=mesh, in_specs=specs, out_specs=P())
    program = jax.jit(
        jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (of_hidden, of_kernel))
    )
    compiled = program.lower(*arguments).compile()
    return temp_bytes(compiled) or 0, collective_bytes(compiled).total()


def _loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    losses = jsj.linear_cross_entropy(hidden, kernel, labels, axis_name="vocabulary")
    return lax.pmean(jnp.mean(losses), "data")


def _plain_loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    z = hidden @ kernel
    is_label = labels[:, None] == jnp.arange(z.shape[1], dtype=labels.dtype)[None]
    return jnp.mean(jax.nn.logsumexp(z, axis=-1) - jnp.sum(jnp.where(is_label, z, 0), axis=-1))


def measure(quick: bool) -> Report:
    """Formulas beside the compiler's figures, then the large head."""
    report = Report("planning")
    sizes, meshes = (SMALL[:1], SMALL_MESHES[1:2]) if quick else (SMALL, SMALL_MESHES)
    rows, worst = [], 1.0
    for size in sizes:
        for data, vocabulary in meshes:
            for plain in (False, True):
                where = {"data": data, "vocabulary": vocabulary, "plain": plain}
                pairs = predicted_and_compiled(size, **where)
                worst = max([worst, *(max(p / c, c / p) for p, c in pairs)])
                name = f"{size}, {data} × {vocabulary}, {'plain' if plain else 'jaxsoftjac'}"
                rows.append([name, *(_megabytes(x) for pair in pairs for x in pair)])
    header = ["", "temporaries", "compiled", "sent", "compiled"]
    report.add("N, D, V, mesh, float32: MB on each of eight devices", header, rows)
    report.add(*_large_table())
    text = "predicted over compiled bytes, or the reverse, at worst"
    report.claims.append(Claim(text, FACTOR, worst))
    return report


def predicted_and_compiled(
    size: Sequence[int], *, data: int, vocabulary: int, plain: bool
) -> list[tuple[int, int]]:
    """Pairs of the temporaries, and of all that is sent."""
    where = {"data": data, "vocabulary": vocabulary, "plain": plain}
    N, D, V = size
    cost = head_cost(N, D, V, **where)
    temporaries, sent = compiled_cost(N, D, V, **where)
    return [(cost.temporaries, temporaries), (cost.over_data + cost.over_vocabulary, sent)]


def _large_table() -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for data, vocabulary in MESHES:
        where = {"data": data, "vocabulary": vocabulary, "dtype": "bfloat16"}
        ours, plain = head_cost(*LARGE, **where), head_cost(*LARGE, **where, plain=True)
        names = "operands", "gradients", "temporaries"
        cells = [_megabytes(getattr(ours, name)) for name in names]
        sent = [_megabytes(ours.over_data), _megabytes(ours.over_vocabulary)]
        rows.append([f"{data} × {vocabulary}", *cells, _megabytes(plain.temporaries), *sent])
    header = ["", "operands", "gradients", "temporaries", "plain's", "over data", "over vocabulary"]
    title = "N = 4M tokens, D = 8192, V = 256k, bfloat16, data × vocabulary: MB on each device"
    return title, header, rows


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.2f}" if nbytes < 1e8 else f"{nbytes / 1e6:.0f}"


def run(quick: bool) -> Report:
    """In a process with eight devices."""
    return report_of("planning", quick)


if __name__ == "__main__":
    print_report(measure)
