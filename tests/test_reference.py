"""The reference that pdoc builds: every public name once, no private one, and no warning."""

import importlib
import pkgutil
import re
import subprocess
import sys
from collections import Counter

import pytest

import jaxsoftjac

pytestmark = [pytest.mark.once, pytest.mark.slow]

PUBLIC = [m.name for m in pkgutil.iter_modules(jaxsoftjac.__path__) if m.name[0] != "_"]
COMMAND = "-W", "error", "-m", "pdoc", "-d", "google", "jaxsoftjac", r"!.*\._"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The text of each page, by its module's name."""
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, *COMMAND, "-o", folder], check=True)
    return {
        ".".join(file.relative_to(folder).with_suffix("").parts): file.read_text()
        for file in folder.rglob("*.html")
    }


def names_on(page):
    """The functions and classes of a page."""
    return re.findall(r'<section id="([^"]+)">', page)


def test_every_public_module_has_a_page(pages):
    assert set(pages) == {"index", "jaxsoftjac", *(f"jaxsoftjac.{name}" for name in PUBLIC)}


def test_every_public_name_appears_once(pages):
    for name in PUBLIC:
        module = importlib.import_module(f"jaxsoftjac.{name}")
        public = {*getattr(module, "__all__", ())}
        public |= {"SoftmaxRegression"} if name == "regression" else set()  # imported when touched
        assert sorted(public) == sorted(names_on(pages[module.__name__])), name
        for key in public:
            assert getattr(module, key).__module__.startswith(module.__name__), key
    found = Counter(name for page in pages.values() for name in names_on(page))
    assert set(found.values()) == {1}
    assert {n for n, v in vars(jaxsoftjac).items() if callable(v) and n[0] != "_"} <= set(found)


def test_no_private_name_appears(pages):
    members = [m for page in pages.values() for m in re.findall(r'<div id="([\w.]+)"', page)]
    assert "SoftmaxJacobian.mv" in members
    private = {m for m in members if m.split(".")[-1][0] == "_"}
    assert {m.split(".")[-1] for m in private} == {"__init__"}


def test_sections_are_lists_and_examples_are_code(pages):
    for page in pages.values():
        shown = re.sub(r'<div class="pdoc-code.*?</pre>', "", page, flags=re.DOTALL)  # the sources
        assert not re.search(r"<p>(Args|Arguments|Returns|Raises|Examples): ?\s*\w", shown)
        assert not re.search(r"<blockquote>\s*<blockquote>", shown)
    assert pages["jaxsoftjac.dense"].count("Arguments:") >= 2


def test_the_guide_is_the_readme_and_the_examples_have_code(pages):
    assert 'id="which-function-do-i-want"' in pages["jaxsoftjac"]
    assert 'href="jaxsoftjac/examples.html"' in pages["jaxsoftjac"]
    assert pages["jaxsoftjac.examples"].count("<pre>") >= 5
