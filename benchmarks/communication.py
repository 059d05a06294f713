"""Where the axis of split classes is named, results, gradients and a few numbers per row are sent.

Bytes in collectives on one of eight devices, read from compiled programs, with the batch split, the
classes (vocabulary, keys) split, or both. Auto and Explicit are plain jit of sharded arrays, with
axes of those types, where the compiler chooses what to gather; shard_map splits the function itself
and names the axis of the classes. Each program runs and agrees with the unsplit one; "raises" is
what JAX raises for one that cannot be, "no axis_name" that the function has no such option. jax.nn
and optax, which holds the logits, stand beneath ours.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsoftjac as jsj
from benchmarks._collectives import collective_bytes
from benchmarks._eight_devices import print_report, report_of
from benchmarks._harness import Claim, Disagreement, Report, check_agreement

N, D, V = 256, 64, 8192
BATCH, QUERIES, KEYS, HEADS, HEAD_SIZE = 8, 128, 256, 4, 16
LAYOUTS = {"batch": (8, 1), "class": (1, 8), "batch and class": (2, 4)}
AXES = "batch", "class"
WAYS = "Auto", "Explicit", "shard_map"
LOGITS, ROWS, HIDDEN, KERNEL = P("batch", "class"), P("batch"), P("batch", None), P(None, "class")
HEADS_SPEC, KEYS_SPEC = P("batch", None, None, None), P("batch", "class", None, None)


class Case(NamedTuple):
    """A function of arrays, where they are, and how many of the first are differentiated."""

    call: Callable[..., Any]  # of the arrays and options
    shapes: list[tuple[int, ...]]
    specs: list[P]
    result: Any  # the specs of what it returns
    moving: int
    labels: int | None = None  # which array is of integers


class Job(NamedTuple):
    """A program, its arguments, and where they and its results are."""

    program: Callable[..., Any]
    arrays: list[np.ndarray]
    specs: list[P]
    result: Any


def cases() -> dict[str, Case]:
    of_logits: Callable = optax.losses.softmax_cross_entropy_with_integer_labels

    def product(hidden, kernel, labels, *tangents, **options):
        return jsj.linear_cross_entropy_gauss_newton(hidden, kernel, labels, tangents, **options)

    def plain(hidden, kernel, labels):
        return of_logits(hidden @ kernel, labels)

    return {
        "softmax": _of_logits(jsj.softmax),
        "jax.nn.softmax": _of_logits(jax.nn.softmax),
        "log_softmax": _of_logits(jsj.log_softmax),
        "cross_entropy": _of_labels(jsj.cross_entropy),
        "optax": _of_labels(of_logits),
        "linear_cross_entropy": _of_head(jsj.linear_cross_entropy),
        "its Gauss–Newton product": Case(
            product,
            [(N, D), (D, V), (N,), (N, D), (D, V)],
            [HIDDEN, KERNEL, ROWS, HIDDEN, KERNEL],
            (HIDDEN, KERNEL),
            moving=0,
            labels=2,
        ),
        "optax on hidden @ kernel": _of_head(plain),
        "dot_product_attention": _of_heads(jsj.dot_product_attention),
        "jax.nn.dot_product_attention": _of_heads(jax.nn.dot_product_attention),
    }


def _of_logits(call: Callable[..., Any]) -> Case:
    return Case(call, [(N, V)], [LOGITS], LOGITS, moving=1)


def _of_labels(call: Callable[..., Any]) -> Case:
    return Case(call, [(N, V), (N,)], [LOGITS, ROWS], ROWS, moving=1, labels=1)


def _of_head(call: Callable[..., Any]) -> Case:
    return Case(call, [(N, D), (D, V), (N,)], [HIDDEN, KERNEL, ROWS], ROWS, moving=2, labels=2)


def _of_heads(call: Callable[..., Any]) -> Case:
    shapes = [(BATCH, n, HEADS, HEAD_SIZE) for n in (QUERIES, KEYS, KEYS)]
    return Case(call, shapes, [HEADS_SPEC, KEYS_SPEC, KEYS_SPEC], HEADS_SPEC, moving=3)


def has_axis_name(call: Callable[..., Any]) -> bool:
    kinds = inspect.signature(call).parameters
    return any(name in kinds for name in ("axis_name", "options"))


def arrays(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    made: list[np.ndarray] = [rng.normal(size=shape).astype(np.float32) for shape in case.shapes]
    if case.labels is not None:
        made[case.labels] = rng.integers(0, V, case.shapes[case.labels]).astype(np.int32)
    return made


def gradient(case: Case, call: Callable[..., Any]) -> Callable[..., Any]:
    """The cotangents of what moves, for the last argument, that of the result."""

    def pulled(*x):
        rest = x[case.moving : -1]
        return jax.vjp(lambda *moving: call(*moving, *rest), *x[: case.moving])[1](x[-1])

    return pulled


def used(specs: Any, layout: str) -> Any:
    """The specs, without the axis that the layout does not split."""
    names = layout.split(" and ")
    return jax.tree.map(
        lambda spec: P(*(name if name in names else None for name in spec)),
        specs,
        is_leaf=lambda spec: isinstance(spec, P),
    )


def sent(name: str, layout: str, way: str, is_gradient: bool) -> str | int:
    """Bytes in collectives; what is raised, or missing, as text."""
    case = cases()[name]
    if way == "shard_map" and "class" in layout and not has_axis_name(case.call):
        return "no axis_name"
    kind = AxisType.Explicit if way == "Explicit" else AxisType.Auto
    mesh = jax.make_mesh(LAYOUTS[layout], AXES, axis_types=(kind,) * 2)
    call = over_devices(case, layout, mesh) if way == "shard_map" else case.call
    job, whole = (job_of(case, f, layout, is_gradient) for f in (call, case.call))
    expected = jax.jit(whole.program)(*whole.arrays)
    with jax.set_mesh(mesh):
        try:
            compiled, actual = run_job(job, mesh, has_free_results=way == "Explicit")
        except Exception as error:  # what a layout raises is what this reports
            return f"raises {type(error).__name__}"
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        check_agreement(f"{name}, {layout}, {way}", a, np.asarray(b, np.float64), 1e-4)
    return collective_bytes(compiled).total()


def over_devices(case: Case, layout: str, mesh: Mesh) -> Callable[..., Any]:
    options = {"axis_name": "class"} if "class" in layout else {}
    return jax.shard_map(
        lambda *x: case.call(*x, **options),
        mesh=mesh,
        in_specs=tuple(used(case.specs, layout)),
        out_specs=used(case.result, layout),
    )


def job_of(case: Case, call: Callable[..., Any], layout: str, is_gradient: bool) -> Job:
    x, specs, result = arrays(case), used(case.specs, layout), used(case.result, layout)
    if not is_gradient:
        return Job(call, x, specs, result)
    shape = jax.eval_shape(case.call, *x).shape
    x.append(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    return Job(gradient(case, call), x, [*specs, result], tuple(specs[: case.moving]))


def run_job(job: Job, mesh: Mesh, *, has_free_results: bool) -> tuple[jax.stages.Compiled, Any]:
    """Compiles and runs; free results are where the types of the program say."""
    placed = [
        jax.device_put(jnp.asarray(a), NamedSharding(mesh, spec))
        for a, spec in zip(job.arrays, job.specs, strict=True)
    ]
    shardings = None if has_free_results else job.result
    compiled = jax.jit(job.program, out_shardings=shardings).lower(*placed).compile()
    return compiled, compiled(*placed)


def measure(quick: bool) -> Report:
    """One row per function and layout."""
    report, rows, found = Report("communication"), [], {}
    for name in ["softmax", "cross_entropy"] if quick else cases():
        for layout in list(LAYOUTS)[2:] if quick else LAYOUTS:
            cells = []
            for way, is_gradient in itertools.product(WAYS, (False, True)):
                if is_gradient and not cases()[name].moving:
                    cells.append("")
                    continue
                found[name, layout, way, is_gradient] = sent(name, layout, way, is_gradient)
                cells.append(_kilobytes(found[name, layout, way, is_gradient]))
            rows.append([f"{name}, {layout}", *cells])
    header = ["", *(f"{way}, {what}" for way in WAYS for what in ("value", "gradient"))]
    title = (
        f"kB in collectives on each device: logits {(N, V)}, hidden {(N, D)}, kernel {(D, V)}, "
        f"queries {(BATCH, QUERIES, HEADS, HEAD_SIZE)}, {KEYS} keys; float32"
    )
    report.add(title, header, rows)
    _claim(report, found, quick)
    return report


def _claim(report: Report, found: dict, quick: bool) -> None:
    layout = "batch and class"
    rows = N // LAYOUTS[layout][0]
    both = [found["cross_entropy", layout, "shard_map", g] for g in (False, True)]
    if not all(isinstance(nbytes, int) for nbytes in both):
        raise Disagreement(f"cross_entropy, {layout}, shard_map: {both}")
    report.claims.append(Claim("cross_entropy: numbers sent per row", 8, max(both) / rows / 4))
    if quick:
        return
    name = "linear_cross_entropy"
    gradients = rows * D * 4 + D * V // LAYOUTS[layout][1] * 4
    more = found[name, layout, "shard_map", True] - gradients
    report.claims.append(
        Claim(f"{name}: numbers per row besides the two gradients", 8, more / rows / 4)
    )


def _kilobytes(nbytes: str | int) -> str:
    return nbytes if isinstance(nbytes, str) else f"{nbytes / 1e3:.1f}" if nbytes else "0"


def run(quick: bool) -> Report:
    """In a process with eight devices."""
    return report_of("communication", quick)


if __name__ == "__main__":
    print_report(measure)
