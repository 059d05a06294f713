import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftjac import softmax, softmax_jacobian
from jaxsoftjac.plots import jacobian_block, plot_jacobian

X = jnp.array([2.0, 1.0, 0.5, -0.5, 0.0])


def test_three_panels_show_the_jacobian_its_diagonal_and_sigma():
    matrix, diagonal, probabilities = plot_jacobian(X).axes[:3]
    np.testing.assert_allclose(matrix.images[0].get_array(), softmax_jacobian(X), atol=1e-6)
    sigma = np.asarray(softmax(X))
    heights = [[bar.get_height() for bar in axes.patches] for axes in (diagonal, probabilities)]
    np.testing.assert_allclose(heights, [sigma * (1 - sigma), sigma], rtol=1e-6)


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


@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_other_than_one_row_is_an_error(shape):
    with pytest.raises(ValueError, match=r"`x` must have shape \(K,\)"):
        plot_jacobian(jnp.zeros(shape))


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxsoftjac\[plots\]"):
        plot_jacobian(X)
