"""The environment that make makes, with a Python that only pretends to install."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Pretends to be a Python: `-m venv` copies it, `-m pip` writes down what it was asked for.
FAKE = """#!{python}
import os, pathlib, shutil, sys
me, log = pathlib.Path(sys.argv[0]), pathlib.Path({log!r})
arguments = sys.argv[1:]
if arguments[:2] == ["-m", "venv"]:
    folder = pathlib.Path(arguments[-1])
    (folder / "bin").mkdir(parents=True)
    shutil.copy(me, folder / "bin" / "python")
    (folder / "pyvenv.cfg").write_text(f"command = {{folder}}")
elif arguments[:2] == ["-m", "pip"]:
    with log.open("a") as file:
        print(*arguments[2:], file=file)
    sys.exit("no network" if os.environ.get("PIP_FAILS") else 0)
elif "_base_executable" in arguments[-1]:
    print(me, *os.environ.get("FAKE_VERSION", "3 11").split(), sep="\\n")
else:
    os.execv({python!r}, [{python!r}, *arguments])
"""
LOCKED = "install --quiet --require-hashes -r requirements.lock"
EDITABLE = "install --quiet --no-deps --no-build-isolation --editable ."


class Repository:
    """A repository with the sources of the environment, and the Python that pretends."""

    def __init__(self, folder):
        self.root = folder
        (folder / "pipeline").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", folder)
        shutil.copy(ROOT / "pipeline" / "environment.py", folder / "pipeline")
        self.write(lock="one==1")
        (folder / "pyproject.toml").write_text("[project]\n")
        self.python = folder / "fake-python"
        self.log = folder / "installed.txt"
        self.python.write_text(FAKE.format(python=sys.executable, log=str(self.log)))
        self.python.chmod(0o755)
        self.venv = folder / ".venv"

    def write(self, lock):
        (self.root / "requirements.lock").write_text(lock + "\n")

    def make(self, target="environment", **variables):
        environment = {key: value for key, value in os.environ.items() if "MAKE" not in key}
        command = ["make", target, f"PYTHON={self.python}"]
        return subprocess.run(
            command, cwd=self.root, env=environment | variables, capture_output=True, text=True
        )

    def installed(self):
        """What pip was asked for since the last call."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture(params=["repository", "a path with spaces"])
def repository(request, tmp_path):
    return Repository(tmp_path / request.param)


def test_it_is_made_once(repository):
    answer = repository.make()
    assert answer.returncode == 0, answer.stderr
    assert repository.installed() == [LOCKED, EDITABLE]
    assert repository.venv.is_symlink()
    assert os.readlink(repository.venv).startswith(".venvs/")
    assert repository.make().returncode == 0
    os.utime(repository.root / "requirements.lock")
    assert repository.make().returncode == 0
    assert repository.installed() == []


def test_a_switch_to_another_lock_and_back_needs_no_network(repository):
    repository.make()
    first = os.readlink(repository.venv)
    repository.write(lock="one==2")
    assert repository.make().returncode == 0
    assert os.readlink(repository.venv) != first
    repository.write(lock="one==1")
    assert repository.make(PIP_FAILS="yes").returncode == 0
    assert os.readlink(repository.venv) == first
    repository.write(lock="one==3")
    repository.make()
    assert len(list((repository.root / ".venvs").glob("*/pyvenv.cfg"))) == 2


def test_a_failed_installation_leaves_the_environment_that_was_there(repository):
    repository.make()
    before = os.readlink(repository.venv)
    repository.write(lock="one==2")
    answer = repository.make(PIP_FAILS="yes")
    assert answer.returncode != 0
    assert ".venv is as it was" in answer.stderr
    assert os.readlink(repository.venv) == before
    repository.installed()
    assert repository.make().returncode == 0
    assert repository.installed() == [LOCKED, EDITABLE]


def test_a_change_of_the_project_installs_only_the_project(repository):
    repository.make()
    repository.installed()
    (repository.root / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert repository.make().returncode == 0
    assert repository.installed() == [EDITABLE]


def test_a_moved_repository_gets_a_new_environment(repository):
    repository.make()
    repository.installed()
    moved = repository.root.rename(repository.root.parent / "moved")
    answer = subprocess.run(
        [sys.executable, "-I", "pipeline/environment.py", "--python", str(moved / "fake-python")],
        cwd=moved,
        capture_output=True,
        text=True,
    )
    assert f"Installing into {moved}" in answer.stdout


def foreign_link(repository, folder):
    folder.mkdir()
    (folder / "precious").touch()
    repository.venv.symlink_to(folder)


def foreign_folder(repository, folder):
    repository.venv.mkdir()
    (repository.venv / "pyvenv.cfg").touch()
    (repository.venv / "precious").touch()


def foreign_file(repository, folder):
    repository.venv.write_text("precious")


def foreign_store(repository, folder):
    (repository.root / ".venvs").mkdir()
    (repository.root / ".venvs" / "precious").touch()


@pytest.mark.parametrize("target", ["environment", "distclean"])
@pytest.mark.parametrize("obstacle", [foreign_link, foreign_folder, foreign_file, foreign_store])
def test_what_make_did_not_make_is_refused_and_kept(obstacle, target, repository, tmp_path):
    obstacle(repository, tmp_path / "other")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    answer = repository.make(target)
    assert answer.returncode != 0
    assert "not made by make" in answer.stderr
    assert "Move it away" in answer.stderr
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_distclean_removes_what_make_made(repository):
    repository.make()
    assert repository.make("distclean").returncode == 0
    assert not os.path.lexists(repository.venv)
    assert not (repository.root / ".venvs").exists()


def test_an_old_python_is_named(repository):
    answer = repository.make(FAKE_VERSION="3 9")
    assert answer.returncode != 0
    assert "Python 3.11 or newer is needed" in answer.stderr
    assert "is 3.9" in answer.stderr
    assert not os.path.lexists(repository.venv)


def test_a_python_that_is_not_there_matters_only_without_an_environment(repository):
    repository.python, python = repository.root / "no-such-python", repository.python
    answer = repository.make()
    assert answer.returncode != 0
    assert "Python 3.11 or newer is needed, but" in answer.stderr
    assert "no-such-python" in answer.stderr
    repository.python = python
    repository.make()
    repository.python = repository.root / "no-such-python"
    assert repository.make().returncode == 0


def test_the_stamp_is_of_this_lock_and_place(repository):
    repository.make()
    stamp = json.loads((repository.venv / "made-by-make.json").read_text())
    assert stamp.keys() == {"path", "lock", "project"}
    assert stamp["path"] == str(repository.root / os.readlink(repository.venv))
