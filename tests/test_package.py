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


@pytest.mark.parametrize(
    "name",
    [
        "irevnet",
        "irevnet.zoo.create_model",
        "irevnet.data.datasets.load_data",
        "irevnet.training.config.TrainingConfig",
        "irevnet.training.evaluation.evaluate",
    ],
)
def test_what_a_user_calls_first_has_an_example(name):
    module = name if name in MODULES else name.rpartition(".")[0]
    examples = {
        test.name: test.examples
        for test in doctest.DocTestFinder().find(importlib.import_module(module))
    }
    assert examples[name]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_offers(name):
    module = importlib.import_module(name)
    assert module.__doc__
    empty = name in ("irevnet.analysis", "irevnet.reversible")
    for public in getattr(module, "__all__", () if empty else None):
        assert hasattr(module, public), public


# The other parts that each part of the core may import; dependencies run one way.
ALLOWED_IMPORTS = {
    "checks": set(),
    "weights": set(),
    "reversible": {"checks"},
    "network": {"checks", "reversible"},
    "data": {"checks"},
    "training": {"checks", "data", "network", "weights"},
    "runs": set(),
    "zoo": {"checks", "network", "runs", "weights"},
    "released": {"checks", "network", "reversible", "weights", "zoo"},
}


def part(name):
    """The part of the core that a module belongs to: ``irevnet.data.folders`` to ``data``."""
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", CORE)
def test_the_core_needs_nothing_but_torch_and_safetensors(name):
    """It imports torchvision and scikit-learn only when their data or networks are used."""
    data = part(name) == "data"
    allowed = {"irevnet", "torch", "safetensors", *sys.stdlib_module_names}
    if data:
        allowed |= {"numpy", "PIL"}  # which torchvision needs, too
    assert {module.split(".")[0] for module in imports(name, everywhere=False)} <= allowed
    lazily = {"torchvision"} | ({"sklearn"} if data else set())
    assert {module.split(".")[0] for module in imports(name, everywhere=True)} <= allowed | lazily


@pytest.mark.parametrize("name", CORE)
def test_dependencies_run_one_way(name):
    """The network imports no data, data no training code, and the core no analysis."""
    mine = {module for module in imports(name, everywhere=True) if module.startswith("irevnet.")}
    assert not any(module.startswith("irevnet.analysis") for module in mine)
    if part(name):
        assert {part(module) for module in mine} <= ALLOWED_IMPORTS[part(name)] | {part(name)}


def test_the_package_says_that_it_has_types():
    assert (Path(irevnet.__file__).parent / "py.typed").is_file()


def test_version_is_that_of_the_project():
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert irevnet.__version__ == project["project"]["version"]
