"""What holds for the package as a whole."""

import ast
import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import irevnet

MODULES = sorted(
    ["irevnet", *(m.name for m in pkgutil.walk_packages(irevnet.__path__, "irevnet."))]
)
CORE = [name for name in MODULES if not name.startswith("irevnet.analysis")]


def imports(name, *, everywhere):
    """Modules that a module imports, at its top or anywhere in it."""
    tree = ast.parse(Path(importlib.import_module(name).__file__).read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in found) > 0


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_offers(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", () if name == "irevnet.analysis" else None):
        assert hasattr(module, public), public


@pytest.mark.parametrize("name", CORE)
def test_the_core_needs_nothing_but_torch_and_safetensors(name):
    """And torchvision and scikit-learn only where their data or networks are asked for."""
    allowed = {"irevnet", "torch", "safetensors", *sys.stdlib_module_names}
    if name == "irevnet.data":
        allowed.add("numpy")
    assert {module.split(".")[0] for module in imports(name, everywhere=False)} <= allowed
    lazily = {"torchvision"} | ({"sklearn"} if name == "irevnet.data" else set())
    assert {module.split(".")[0] for module in imports(name, everywhere=True)} <= allowed | lazily


@pytest.mark.parametrize("name", CORE)
def test_arrows_run_one_way(name):
    """The network knows nothing of data, data nothing of training, the core nothing of analysis."""
    mine = {module for module in imports(name, everywhere=True) if module.startswith("irevnet.")}
    if name not in ("irevnet.training",):
        assert not mine & {"irevnet.data", "irevnet.training"}
    assert not any(module.startswith("irevnet.analysis") for module in mine)
    if name in ("irevnet.layers", "irevnet.bottleneck", "irevnet.checks", "irevnet.data"):
        assert not mine


def test_version_is_that_of_the_project():
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert irevnet.__version__ == project["project"]["version"]
