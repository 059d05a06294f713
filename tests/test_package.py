"""The package as a whole: its rooms, its doctests, what it imports, and what it must not."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from groups import OF_ALL_MODES, OF_COMPILED_PROGRAMS

import jaxsoftjac

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PACKAGE = Path(jaxsoftjac.__path__[0])
MODULES = [
    m.name
    for m in pkgutil.walk_packages(jaxsoftjac.__path__, "jaxsoftjac.")
    if not m.name.endswith("__main__")
]

# In the order of imports: a room takes from those before it.
ROOMS = (
    [
        "_checks",
        "_rows",
        "_sharding",
        "_closed_forms",
        "_rules",
        "_pivots",
        "_trees",
        "_weighted_sums",
        "products",
        "_row_functions",
        "functions",
        "sparse",
        "losses",
        "dense",
        "operators",
    ]
    + ["attention", "transforms", "curvature", "optimizers", "regression", "diagnostics"]
    + ["plots", "cli", "examples"]
)
# Where functions still lack annotations, or public names their examples.
UNFINISHED: set[str] = set()


@pytest.mark.parametrize("room", dict.fromkeys(name.split(".")[1] for name in MODULES))
def test_doctests(room):
    """By room, so that what its examples share is compiled once."""
    for name in (n for n in MODULES if n.split(".")[1] == room):
        assert doctest.testmod(importlib.import_module(name)).failed == 0, name


def test_no_doctest_is_overlooked():
    finder = doctest.DocTestFinder()
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name))]
    examples = sum(len(t.examples) for t in found)
    assert examples == sum(f.read_text().count(">>> ") for f in PACKAGE.rglob("*.py"))
    assert examples >= 80


def test_every_public_name_has_an_example():
    for name in ("jaxsoftjac", *(n for n in MODULES if n.count(".") == 1)):
        public = importlib.import_module(name)
        for key, value in vars(public).items() if hasattr(public, "__path__") else ():
            room = getattr(value, "__module__", "").split(".")[1:2]
            if callable(value) and key[0] != "_" and not UNFINISHED.intersection(room):
                assert ">>> " in value.__doc__, f"{name}.{key} has no example"


def unannotated(file):
    """The functions of a file whose arguments or result lack a type."""
    functions = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef))
    for f in functions:
        arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        arguments += [a for a in (f.args.vararg, f.args.kwarg) if a]
        typed = all(a.annotation or a.arg in ("self", "cls") for a in arguments)
        if not typed or not (f.returns or f.name == "__init__"):
            yield f"{f.name}, line {f.lineno}"


def test_every_function_is_annotated():
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).parts[0].removesuffix(".py") not in UNFINISHED:
            assert not list(unannotated(file)), file


def test_readme():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


def imports_of(file):
    """The modules of this package that a file imports, as parts below `jaxsoftjac`."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        yield from (n.split(".")[1:] for n in names if n and n.startswith("jaxsoftjac."))


def test_imports_go_one_way():
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.name[:2] != "__"}
    assert rooms - {"py.typed"} == set(ROOMS)
    for file in PACKAGE.rglob("[!_]*/*.py"):
        assert file.name.startswith("_"), f"{file}: modules inside a family are private"
    for file in (f for room in ROOMS for f in PACKAGE.glob(f"{room}*") for f in files_of(f)):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for room, *_ in imports_of(file):
            assert room == own or ROOMS.index(room) < ROOMS.index(own), f"{file} imports {room}"


def files_of(path):
    return path.rglob("*.py") if path.is_dir() else [path]


def test_files_that_are_named_for_a_pass_exist():
    names = [file.stem for file in Path(__file__).parent.rglob("test_*.py")]
    assert OF_ALL_MODES | OF_COMPILED_PROGRAMS <= set(names)
    assert len(names) == len(set(names))


def test_import_loads_no_optional_library():
    heavy = "optax", "matplotlib", "tqdm", "scipy.stats", "sklearn"
    code = f"import sys, jaxsoftjac; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_what_needs_an_extra_is_loaded_when_it_is_touched():
    names = "optimizers", "plots", "regression", "diagnostics"
    code = f"import jaxsoftjac as j; [getattr(j, n) for n in {names}]; print(j.__version__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() >= "0.2"
    with pytest.raises(AttributeError, match="has no attribute 'softmin'"):
        jaxsoftjac.softmin  # noqa: B018


@pytest.mark.parametrize(("version", "warnings"), [((0, 10, 1), 0), ((0, 10, 2), 1)])
def test_the_version_of_jax_that_computes_wrongly_is_named_once(version, warnings):
    imports = "import jaxsoftjac; import jaxsoftjac.losses"
    code = f"import jax; jax.__version_info__ = {version}; {imports}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stderr.count("use JAX 0.10.1, or 0.11 and later") == warnings


def test_only_public_names_of_jax():
    for file in PACKAGE.rglob("*.py"):
        assert "jax._src" not in file.read_text()


def test_no_module_is_named_like_an_export():
    names = {name.rpartition(".")[2] for name in MODULES}
    assert not names & {n for n, v in vars(jaxsoftjac).items() if callable(v)}
