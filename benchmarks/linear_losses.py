"""Gradients of a vocabulary-sized loss take the time of the plain way and a fraction of its memory.

Times the gradient, the jvp and the three Hessian products of linear_cross_entropy over those of the
plain program (optax on the logits hidden @ kernel), and other libraries' gradient beside them where
they are installed; bytes of temporaries of each, and against the size of the vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsoftjac as jsj
from benchmarks._harness import (
    Claim,
    Report,
    check_agreement,
    optional_peer,
    ratio,
    temp_bytes,
    time_in_turn,
)
from benchmarks._hlo import multiplications

SHAPES = [(512, 64, 16384), (1024, 256, 32768), (512, 512, 50257)]  # N, D, V
QUICK_SHAPES = [(64, 16, 1024)]
VOCABULARIES = [2**13, 2**15, 2**17, 2**18]
OF_LOGITS: Callable = optax.losses.softmax_cross_entropy_with_integer_labels
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def plain(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(OF_LOGITS(hidden @ kernel, labels))


def blockwise(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jsj.linear_cross_entropy(hidden, kernel, labels, reduction="mean")


def modes(loss: Loss) -> dict[str, Callable]:
    """Programs of (operands, labels, tangents), operands and tangents being (hidden, kernel)."""

    def of(labels):
        return lambda rows: loss(rows[0], rows[1], labels)

    def gradient(rows, labels, t):
        return jax.value_and_grad(of(labels))(rows)

    def jvp(rows, labels, t):
        return jax.jvp(of(labels), (rows,), (t,))

    def forward_over_reverse(rows, labels, t):
        return jax.jvp(jax.grad(of(labels)), (rows,), (t,))[1]

    def reverse_over_reverse(rows, labels, t):
        return jax.vjp(jax.grad(of(labels)), rows)[1](t)[0]

    def reverse_over_forward(rows, labels, t):
        return jax.grad(lambda rows: jax.jvp(of(labels), (rows,), (t,))[1])(rows)

    return {
        "gradient": gradient,
        "jvp": jvp,
        "forward over reverse": forward_over_reverse,
        "reverse over reverse": reverse_over_reverse,
        "reverse over forward": reverse_over_forward,
    }


def problem(N: int, D: int, V: int) -> tuple[Any, jax.Array, Any]:
    keys = jax.random.split(jax.random.key(0), 5)
    rows = jax.random.normal(keys[0], (N, D)), jax.random.normal(keys[1], (D, V)) / np.sqrt(D)
    tangents = jax.random.normal(keys[2], (N, D)), jax.random.normal(keys[3], (D, V))
    return rows, jax.random.randint(keys[4], (N,), 0, V, jnp.int32), tangents


def reference(rows: Any, labels: jax.Array) -> np.ndarray:
    """The gradient of the mean loss by `hidden`, in float64."""
    hidden, kernel = (np.asarray(a, np.float64) for a in rows)
    z = hidden @ kernel
    sigma = np.exp(z - z.max(-1, keepdims=True))
    sigma /= sigma.sum(-1, keepdims=True)
    sigma[np.arange(len(z)), np.asarray(labels)] -= 1
    return sigma @ kernel.T / len(z)


def cce_call(cce: Any, rows: Any, labels: jax.Array) -> Callable[[], Any]:
    hidden, transposed = rows[0], jnp.array(rows[1].T)  # its own layout, [V, D]

    def loss(rows):
        return jnp.mean(cce.linear_cross_entropy(*rows, labels))

    program = jax.jit(jax.value_and_grad(loss)).lower((hidden, transposed)).compile()
    return lambda: program((hidden, transposed))


def torch_call(torch: Any, rows: Any, labels: jax.Array) -> Callable[[], Any]:
    hidden, kernel = (torch.from_numpy(np.array(a)).requires_grad_() for a in rows)
    target = torch.from_numpy(np.array(labels, np.int64))

    def call():
        loss = torch.nn.functional.cross_entropy(hidden @ kernel, target)
        return [g.numpy() for g in torch.autograd.grad(loss, (hidden, kernel))]

    return call


def compare(report: Report, shape: tuple[int, int, int], rounds: int, peers: dict) -> dict:
    """Time and temporaries over the plain program's, in every mode."""
    rows, labels, tangents = problem(*shape)
    expected = reference(rows, labels)
    ours, theirs = modes(blockwise), modes(plain)
    cells, ratios = [], {}
    for mode in ours:
        programs = {"plain": theirs[mode], "jaxsoftjac": ours[mode]}
        compiled = {
            k: jax.jit(f).lower(rows, labels, tangents).compile() for k, f in programs.items()
        }
        calls: dict[str, Callable] = {
            k: functools.partial(c, rows, labels, tangents) for k, c in compiled.items()
        }
        if mode == "gradient":
            for name, call in calls.items():
                check_agreement(f"{name}, gradient by hidden", call()[1][0], expected, 1e-5)
            calls |= {name: make(module, rows, labels) for name, (module, make) in peers.items()}
        else:
            check_trees(mode, calls["jaxsoftjac"](), calls["plain"]())
        times = time_in_turn(calls, rounds)
        megabytes = {k: (temp_bytes(c) or 0) / 1e6 for k, c in compiled.items()}
        time_ratio = ratio(times["jaxsoftjac"], times["plain"])
        ratios[mode] = time_ratio.median, megabytes["jaxsoftjac"] / megabytes["plain"]
        beside = [f"{name} {ratio(times[name], times['plain'])}" for name in times if name in peers]
        cells.append(
            [
                f"{shape}, {mode}",
                time_ratio,
                f"{megabytes['jaxsoftjac']:.1f}",
                f"{megabytes['plain']:.1f}",
                f"{ratios[mode][1]:.2f}",
                ", ".join(beside),
            ]
        )
    header = ["", "time / plain's", "MB", "plain's MB", "MB / plain's", "others' time / plain's"]
    report.add("N, D, V: time [quartiles], and bytes of temporaries", header, cells)
    return ratios


def check_trees(name: str, actual: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        check_agreement(name, a, np.asarray(b, np.float64), 1e-3)


def growth(report: Report, vocabularies: list[int]) -> None:
    """Temporaries of the gradient against V, and what is left of them without O(V·D)."""
    N, D = 512, 64
    cells = []
    for V in vocabularies:
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((N, D), (D, V))]
        labels = jax.ShapeDtypeStruct((N,), jnp.int32)
        bytes_of = {}
        for name, loss in (("plain", plain), ("jaxsoftjac", blockwise)):
            program = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes, labels).compile()
            bytes_of[name] = (temp_bytes(program) or 0) / 1e6
        cells.append([f"V = {V}", *(f"{b:.1f}" for b in bytes_of.values())])
    report.add(
        f"MB of temporaries of the gradient, N = {N}, D = {D}", ["", "plain", "jaxsoftjac"], cells
    )


def products(report: Report) -> None:
    """How often a program multiplies N·D·V numbers, read from its HLO."""
    N, D, V = 64, 128, 4096
    rows, labels, tangents = problem(N, D, V)

    def in_blocks(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
        return jsj.linear_cross_entropy(
            hidden, kernel, labels, reduction="mean", block_size=V // 16
        )

    cells = []
    for name in modes(plain):
        programs = (
            jax.jit(modes(f)[name]).lower(rows, labels, tangents) for f in (in_blocks, plain)
        )
        counts = (multiplications(p.compile().as_text() or "") / (N * D * V) for p in programs)
        cells.append([name, *(f"{count:.1f}" for count in counts)])
    report.add("Products of matrices in a program", ["", "jaxsoftjac", "plain"], cells)


def run(quick: bool) -> Report:
    """All modes at every shape, memory against the size of the vocabulary, and the products."""
    report = Report("linear_losses")
    known: dict[str, tuple[Any, Callable]] = {
        "torch": (optional_peer("torch", report), torch_call),
        "jax-cce": (optional_peer("jax_cce", report), cce_call),
    }
    peers = {name: peer for name, peer in known.items() if peer[0]}
    shapes = QUICK_SHAPES if quick else SHAPES
    ratios = {shape: compare(report, shape, 3 if quick else 9, peers) for shape in shapes}
    growth(report, VOCABULARIES[:1] if quick else VOCABULARIES)
    products(report)
    hvps = [name for name in next(iter(ratios.values())) if name != "gradient"]
    for i, (what, of_gradient, of_others) in enumerate(
        (("time", 1.0, 1.1), ("memory", 1 / 4, 1 / 3))
    ):
        gradient = max(r["gradient"][i] for r in ratios.values())
        others = max(r[mode][i] for r in ratios.values() for mode in hvps)
        report.claims += [
            Claim(f"{what} of the gradient over plain's, worst shape", of_gradient, gradient),
            Claim(f"{what} of jvp and HVPs over plain's, worst shape and mode", of_others, others),
        ]
    return report
