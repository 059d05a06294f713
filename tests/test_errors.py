"""Every public function says which argument is wrong, what it must be and what it got."""

import importlib
import inspect
import pkgutil

import jax
import numpy as np
import pytest
from wrong_arguments import CALLS, ELSEWHERE, LABELS, NOT_CHECKED, WRONG

import jaxsoftjac

pytestmark = pytest.mark.once


def parameters_of(name):
    call = CALLS[name]
    own = inspect.signature(call.function).parameters.values()
    named = [p.name for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [*named, *(call.then or {})]


def wrong_values(name):
    return WRONG | ELSEWHERE.get(name, {})


def traced(call, **changed):
    """The call without a compilation: errors come while it is traced."""
    jax.eval_shape(lambda: [call(**changed), 0][1])


def test_every_public_function_is_in_the_table():
    modules = (m.name for m in pkgutil.iter_modules(jaxsoftjac.__path__) if m.name[0] != "_")
    for module in (importlib.import_module(f"jaxsoftjac.{name}") for name in modules):
        for name in getattr(module, "__all__", ()):
            function = getattr(module, name)
            is_record = inspect.isclass(function) and issubclass(function, tuple)
            of_records = name in ("plot_accuracy", "plot_gradient_flow", "plot_temperature_sweep")
            others = name in ("main", "product_errors", "SoftmaxRegression")  # tests of their own
            assert name in CALLS or is_record or of_records or others, name


@pytest.mark.parametrize("name", CALLS)
def test_every_parameter_has_wrong_values(name):
    assert set(parameters_of(name)) <= {*wrong_values(name), *NOT_CHECKED}


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("plot")])
def test_the_arguments_of_the_table_are_right(name):
    traced(CALLS[name])


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_is_named(name):
    names = parameters_of(name)
    for parameter in (p for p in names if p not in NOT_CHECKED):
        for value in wrong_values(name)[parameter]:
            with pytest.raises((TypeError, ValueError)) as error:
                traced(CALLS[name], **{parameter: value})
            message = str(error.value)
            # Where two shapes do not fit, either may be wrong.
            is_shape = getattr(value, "dtype", None) in (np.float32, LABELS.dtype)
            blamed = names if is_shape else [parameter]
            said = message.replace("`labels.", "`")  # what a field of a LinearTarget is called
            assert any(f"`{name}" in said for name in blamed), (parameter, value, message)
            assert " must " in message, (parameter, value, message)
            assert ", got " in message, (parameter, value, message)


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_keyword_is_named(name):
    with pytest.raises(TypeError, match="colour"):
        traced(CALLS[name], colour="red")
