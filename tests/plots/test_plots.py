"""Pictures: what they show is what was measured, at any size; none opens a window."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftjac import entmax, softmax, softmax_jacobian
from jaxsoftjac.dense import jacobian_block
from jaxsoftjac.diagnostics import gradient_flow, product_errors, summarize, temperature_sweep
from jaxsoftjac.plots import (
    plot_accuracy,
    plot_gradient_flow,
    plot_jacobian,
    plot_spectrum,
    plot_temperature_sweep,
)

pytestmark = pytest.mark.once

X = jnp.array([2.0, 1.0, 0.5, -0.5, 0.0])


def test_three_panels_show_the_jacobian_its_diagonal_and_sigma():
    matrix, diagonal, probabilities = plot_jacobian(X).axes[:3]
    np.testing.assert_allclose(matrix.images[0].get_array(), softmax_jacobian(X), atol=1e-6)
    sigma = np.asarray(softmax(X))
    heights = [[bar.get_height() for bar in axes.patches] for axes in (diagonal, probabilities)]
    np.testing.assert_allclose(heights, [sigma * (1 - sigma), sigma], rtol=1e-6)


def test_the_panels_of_a_sparse_member():
    matrix, diagonal, probabilities = plot_jacobian(X, alpha=1.5).axes[:3]
    expected = np.asarray(jax.jacfwd(entmax)(X))
    np.testing.assert_allclose(matrix.images[0].get_array(), expected, atol=1e-6)
    heights = [[bar.get_height() for bar in axes.patches] for axes in (diagonal, probabilities)]
    np.testing.assert_allclose(heights, [np.diag(expected), entmax(X)], atol=1e-6)
    assert matrix.get_title() == "Jacobian J = diag(s) − ssᵀ/Σs"


def test_nothing_to_show(tmp_path):
    """Of one class a flow has nothing, of a saturated row gradients of 0: no axis fails."""
    alone, saturated = jnp.array([1.0, -jnp.inf]), jnp.array([300.0, 0.0, 0.0])
    plot_temperature_sweep(temperature_sweep(alone, [0.5, 1.0])).savefig(tmp_path / "x.png")
    plot_gradient_flow({"row": gradient_flow(saturated[None])}).savefig(tmp_path / "y.png")


@pytest.mark.parametrize("plot", [plot_jacobian, plot_spectrum])
@pytest.mark.parametrize("x", [[np.nan, 1.0], [-np.inf, -np.inf]])
def test_rows_without_probabilities_are_refused(plot, x):
    with pytest.raises(ValueError, match="`x` must have no NaN and not be −∞ throughout, got"):
        plot(x, alpha=2.0)


@pytest.mark.parametrize("x", [X, jnp.array([1.0]), jnp.array([1000.0, 0.0, 0.0])])
def test_colour_limits_are_symmetric_and_hold_the_data(x):
    image = plot_jacobian(x).axes[0].images[0]
    low, high = image.get_clim()
    assert low == -high
    assert high > 0
    assert high >= np.abs(image.get_array()).max()


def test_leaves_pyplot_alone():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot_jacobian(X)
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("width", [1, 3, 100, 700])
def test_saves_to_png_at_any_width_with_few_ticks(tmp_path, width):
    figure = plot_jacobian(jnp.linspace(-3.0, 3.0, width))
    figure.savefig(tmp_path / "jacobian.png")
    assert (tmp_path / "jacobian.png").read_bytes().startswith(b"\x89PNG")
    for axes in figure.axes[:3]:
        assert len(axes.get_xticks()) <= 12


def test_wide_rows_show_their_most_probable_classes():
    x = jnp.zeros(700).at[jnp.array([5, 600])].set(9.0)
    matrix = plot_jacobian(x).axes[0]
    assert "32 most probable of 700" in matrix.get_xlabel()
    block = np.asarray(matrix.images[0].get_array())
    assert block.shape == (32, 32)
    sigma = softmax(x)
    np.testing.assert_allclose(block.max(), sigma[5] * (1 - sigma[5]), rtol=1e-6)


def test_jacobian_block_is_the_block_of_the_jacobian():
    indices = np.array([0, 3, 4])
    block = jacobian_block(softmax(X), indices)
    np.testing.assert_allclose(block, softmax_jacobian(X)[np.ix_(indices, indices)], atol=1e-7)


FLOW = jax.jit(gradient_flow)(np.random.default_rng(0).normal(size=(3, 40, 6)).astype(np.float32))
PANELS = {
    "H / log K": "entropy_share",
    "2‖J‖₂": "spectral_norm_share",
    "‖J‖$_F$ / √(K − 1)": "gradient_gain",
    "digits lost, log₁₀ κ": "digits_lost",
}


def test_each_eigenvalue_is_drawn_between_its_poles_and_below_the_bound():
    axes = plot_spectrum(X).axes[0]
    lower, upper, eigenvalues, half, quarter = (line.get_ydata() for line in axes.lines)
    J = np.asarray(softmax_jacobian(X), np.float64)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(J)[1:], rtol=1e-5)
    sigma = np.sort(softmax(X))
    np.testing.assert_allclose([lower, upper], [sigma[:-1], sigma[1:]], rtol=1e-6)
    assert (half[0], quarter[0]) == (0.5, 0.25)
    assert axes.get_yscale() == "linear"


def test_the_spectrum_of_a_sparse_member_is_that_of_its_support():
    axes = plot_spectrum(X, alpha=1.5).axes[0]
    lower, upper, eigenvalues, half, quarter = (line.get_ydata() for line in axes.lines)
    J = np.asarray(jax.jacfwd(entmax)(X), np.float64)
    s = np.sort(np.sqrt(entmax(X)))
    s = s[s > 0]
    assert len(s) < len(X)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(J)[1 - len(s) :], rtol=1e-5)
    np.testing.assert_allclose([lower, upper], [s[:-1], s[1:]], rtol=1e-5)
    np.testing.assert_allclose([half[0], quarter[0]], [s.sum() / 2, s.sum() / 4], rtol=1e-5)


def test_a_peaked_spectrum_is_drawn_on_a_logarithmic_scale_and_saved(tmp_path):
    figure = plot_spectrum(jnp.linspace(0.0, 9.0, 200))
    assert figure.axes[0].get_yscale() == "log"
    figure.savefig(tmp_path / "spectrum.png")
    assert figure.get_figwidth() == 3.5


def test_boxes_are_the_quantiles_of_each_layer(tmp_path):
    figure = plot_gradient_flow(FLOW)
    assert [axes.get_title() for axes in figure.axes] == list(PANELS)
    quantiles = summarize(FLOW, axis=1).quantiles
    for axes in figure.axes:
        medians = [line.get_ydata()[0] for line in axes.lines if line.get_color() == "#D55E00"]
        expected = np.asarray(getattr(quantiles, PANELS[axes.get_title()]))
        np.testing.assert_allclose(medians, expected[2], rtol=1e-6)
        low, high = axes.get_ylim()
        assert low <= expected.min() < expected.max() <= high
    figure.savefig(tmp_path / "flow.png")


def test_many_named_heads_have_few_labels(tmp_path):
    head = jax.tree.map(lambda a: np.asarray(a[0]), FLOW)
    figure = plot_gradient_flow({f"head {i}": head for i in range(60)})
    labels = [label.get_text() for label in figure.axes[3].get_xticklabels()]
    assert labels == [f"head {i}" for i in range(0, 60, 3)]
    figure.savefig(tmp_path / "flow.png")


@pytest.mark.parametrize("rows", [1, 3])
def test_the_sweep_shows_the_median_row(tmp_path, rows):
    temperatures = np.array([0.01, 1, 100], np.float32)
    x = np.array([[5, 1, 0, 0], [9, 1, 0, 0], [7, 1, 0, 0]], np.float32)[:rows]
    sweep = jax.jit(temperature_sweep)(x if rows > 1 else x[0], temperatures)
    figure = plot_temperature_sweep(sweep)
    middle = np.asarray(sweep.flow.entropy_share) if rows == 1 else sweep.flow.entropy_share[:, 2]
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), np.stack([temperatures, middle], 1), rtol=1e-6)
    assert figure.axes[0].get_xscale() == "log"
    figure.savefig(tmp_path / "sweep.png")


def test_errors_are_drawn_against_the_gap_by_offset(tmp_path):
    errors = product_errors(gaps=(0, 12), offsets=(0, 1e3), rows=4)
    figure = plot_accuracy(errors)
    assert [axes.get_title() for axes in figure.axes] == ["v ~ N(0, 1)", "v ~ N(1000, 1)"]
    for j, axes in enumerate(figure.axes):
        for line, found in zip(axes.lines, errors.errors.values(), strict=False):
            np.testing.assert_allclose(line.get_xydata(), np.stack([(0, 12), found[:, j]], 1))
    assert len({(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}) == 4
    figure.savefig(tmp_path / "accuracy.png")


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="`flows` must hold at least one layer or head"):
        plot_gradient_flow({})
    with pytest.raises(ValueError, match=r"`x` must have shape \(K,\) with K ≥ 2, got \(1,\)"):
        plot_spectrum(jnp.zeros(1))


@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_other_than_one_row_is_an_error(shape):
    with pytest.raises(ValueError, match=r"`x` must have shape \(K,\)"):
        plot_jacobian(jnp.zeros(shape))


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxsoftjac\[plots\]"):
        plot_jacobian(X)


def test_the_diagonal_keeps_its_digits_on_a_confident_row():
    figure = plot_jacobian(jnp.asarray([30, 0, -5, 2], jnp.float32))
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    np.testing.assert_allclose(heights[0], 7.8564e-13, rtol=1e-4)  # 1 - σ is 0 in float32


@pytest.mark.parametrize("K", [3, 64, 300, 1000])
def test_the_heat_map_is_not_blank_on_flat_rows(K):
    x = jnp.asarray(np.random.default_rng(0).normal(size=K), jnp.float32)
    image = plot_jacobian(x).axes[0].images[0]
    shades = np.abs(np.asarray(image.norm(image.get_array())) - 0.5)  # 0.5 is white
    off_diagonal = shades[~np.eye(len(shades), dtype=bool)]
    assert np.median(off_diagonal) > 0.1


def test_a_flow_of_0_has_no_place_on_a_logarithmic_scale():
    """For α > 1 J is 0 where one class has all of the row, as here below T = 1."""
    sweep = temperature_sweep(jnp.asarray([2.0, 1, 0.5, -1]), [0.25, 0.5, 1, 2], alpha=1.5)
    figure = plot_temperature_sweep(sweep, alpha=1.5)
    gain = next(a for a in figure.axes if PANELS.get(a.get_title()) == "gradient_gain")
    line = gain.lines[0]
    heights = gain.yaxis.get_transform().transform(np.asarray(line.get_ydata(), float))
    assert not np.any(np.isfinite(heights[:2]))
    assert np.all(np.isfinite(heights[2:]))
