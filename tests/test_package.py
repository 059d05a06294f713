"""The package as a whole: its doctests, what it imports, and what it must not."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxsoftjac

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.iter_modules(jaxsoftjac.__path__) if m.name != "__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(f"jaxsoftjac.{name}"))
    assert result.failed == 0


def test_readme():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


def test_import_loads_no_optional_library():
    heavy = "optax", "matplotlib", "tqdm", "scipy.stats", "sklearn"
    code = f"import sys, jaxsoftjac; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_only_public_names_of_jax():
    for file in Path(jaxsoftjac.__path__[0]).glob("*.py"):
        assert "jax._src" not in file.read_text()


def test_no_module_is_named_like_an_export():
    assert not set(MODULES) & {n for n, v in vars(jaxsoftjac).items() if callable(v)}
