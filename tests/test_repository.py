"""The files around the code agree: on one list of dependencies, and on one set of commands."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import irevnet

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
MAX_BYTES = 15 * 2**20


def required():
    """Every requirement of pyproject.toml: of the package, its extras, and what installs it."""
    project = PYPROJECT["project"]
    lists = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *PYPROJECT["dependency-groups"].values(),
        PYPROJECT["build-system"]["requires"],
    ]
    return [requirement for texts in lists for requirement in texts]


def locked():
    """Requirements of the lock, with the number of hashes of each."""
    entries = re.split(r"\n(?=[a-zA-Z0-9])", "\n" + LOCK)[1:]
    return [(Requirement(entry.split("\\")[0]), entry.count("--hash=sha256:")) for entry in entries]


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def tracked():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize("text", required())
def test_the_lock_has_an_allowed_version_of_what_pyproject_names(text):
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    versions = [
        specifier.version
        for entry, _ in locked()
        if canonicalize_name(entry.name) == name
        for specifier in entry.specifier
    ]
    assert versions, f"run: make lock ({name} is not in requirements.lock)"
    assert all(requirement.specifier.contains(version) for version in versions)


def test_the_lock_pins_and_hashes_everything_and_holds_no_address():
    for entry, hashes in locked():
        assert [specifier.operator for specifier in entry.specifier] == ["=="], entry
        assert hashes > 0, entry
    options = [line.split()[0] for line in LOCK.splitlines() if line.strip().startswith("-")]
    assert {option.split("=")[0] for option in options} == {"--hash"}
    assert "://" not in LOCK
    assert "file:" not in LOCK
    assert " @ " not in LOCK


def test_conda_and_binder_install_the_same_list():
    environment = read_yaml("environment.yml")
    packages = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    python = next(entry for entry in packages if entry.startswith("python="))
    assert python.removeprefix("python=") in PYPROJECT["project"]["requires-python"]
    assert {"type": "pip", "list": ["--requirement requirements.lock"]} in [
        {"type": kind, "list": entries}
        for entry in environment["dependencies"]
        if isinstance(entry, dict)
        for kind, entries in entry.items()
    ]
    others = {entry.split("=")[0] for entry in packages} - {"python", "pip", "make", "git"}
    assert others == set(), "packages belong in pyproject.toml"
    assert "--no-deps" in (ROOT / "postBuild").read_text()


def test_the_citation_names_the_paper_and_this_version():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert citation["version"] == PYPROJECT["project"]["version"] == irevnet.__version__
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PYPROJECT["project"]["authors"]
    ]
    (paper,) = citation["references"]
    assert paper["title"] == "i-RevNet: Deep Invertible Networks"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Jacobsen",
        "Smeulders",
        "Oyallon",
    ]
    assert paper["identifiers"][0]["value"] == "arXiv:1802.07088"


def test_no_tracked_file_is_large():
    large = [path for path in tracked() if path.stat().st_size > MAX_BYTES]
    assert large == []


def test_commit_hooks_need_no_network():
    config = read_yaml(".pre-commit-config.yaml")
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    subprocess.run(command, cwd=ROOT, check=True)


def make(*arguments, cwd=ROOT):
    # Without the flags of a make that runs these tests.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_alone_lists_every_target():
    answer = make()
    assert answer.returncode == 0
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in targets[1].split():
        assert re.search(rf"^  make {target} +\w", answer.stdout, re.MULTILINE), target


@needs_make
@pytest.mark.parametrize(
    "name",
    [
        ".ci/run",
        ".devcontainer/devcontainer.json",
        *(f".github/workflows/{name}.yml" for name in ("book", "monthly", "release", "results")),
        "README.md",
        "CONTRIBUTING.md",
    ],
)
def test_the_targets_that_are_named_elsewhere_exist(name):
    pattern = r"""(?:^|`|run: |&& |": ")make ([a-z]+)"""
    named = set(re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE))
    assert named
    for target in named:
        assert make("--dry-run", target).returncode == 0, target
