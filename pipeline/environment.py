"""Makes the environment that ``make`` runs everything in: ``.venv``, a link into ``.venvs``.

The Makefile runs this file before any package is installed, so it uses only the standard library.
For each ``requirements.lock`` it makes one environment, ``.venvs/<start of the lock's hash>``, and
points ``.venv`` to it once everything is installed. An interrupted or failed installation therefore
leaves ``.venv`` unchanged, and switching to another branch and back installs nothing. The scripts
of an environment contain its path, so it is built in its final place.

A ``.venv`` that was not made here is never changed; :class:`Refused` is raised instead.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["Refused", "ensure", "main", "remove"]

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
_KEPT = 2  # environments, of 6 GB each, so that a switch between two branches is free
_STAMP = "made-by-make.json"


class Refused(Exception):
    """The environment cannot be made; the message says why and what to do."""


def ensure(root: Path, python: str) -> Path:
    """Makes ``.venv`` fit ``requirements.lock`` and ``pyproject.toml``, if it does not yet.

    Args:
        root: the repository.
        python: the Python that makes an environment, 3.11 or newer.

    Returns:
        The folder of the environment.

    Raises:
        Refused: if ``.venv`` was not made here, or the locked packages cannot be installed, in
            which case ``.venv`` is unchanged; or if this package cannot be installed into it, which
            the next call tries again.
    """
    environment = _current(root)
    if environment is None or not _fits(root, environment):
        with _locked(root):
            environment = _replace(root, python)
    project = _hash(root / "pyproject.toml")
    if _stamp(environment).get("project") != project:
        with _locked(root):
            # Another make may have installed it in the meantime.
            if _stamp(environment).get("project") != project:
                options = ["--quiet", "--no-deps", "--no-build-isolation", "--editable"]
                consequence = "this package is not installed in .venv yet"
                _pip(root, environment, ["install", *options, "."], consequence)
                _write_stamp(environment, _stamp(environment) | {"project": project})
    return environment


def remove(root: Path) -> None:
    """Removes ``.venv`` and ``.venvs``.

    Raises:
        Refused: if ``.venv`` or ``.venvs`` was not made here.
    """
    _current(root)
    with _locked(root):
        (root / ".venv").unlink(missing_ok=True)
        shutil.rmtree(root / ".venvs")


def _current(root: Path) -> Path | None:
    """The environment at ``.venv``, or None if there is none.

    Raises:
        Refused: if it was not made here.
    """
    link = root / ".venv"
    if not os.path.lexists(link):
        return None
    if link.is_symlink() and (target := Path(os.readlink(link))).parent == Path(".venvs"):
        return root / target
    raise Refused(
        f"{link} was not made by make, or by an old version of it. Move it away or rename it, then "
        "run make again."
    )


def _fits(root: Path, environment: Path) -> bool:
    """Whether an environment is complete, was not moved, and matches the lock."""
    stamp, lock = _stamp(environment), _hash(root / "requirements.lock")
    return stamp.get("path") == str(environment) and stamp.get("lock") == lock


def _replace(root: Path, python: str) -> Path:
    """Points ``.venv`` to the environment of the lock, which is built if it does not exist."""
    environment = root / ".venvs" / _hash(root / "requirements.lock")[:12]
    if not _fits(root, environment):
        _build(root, environment, python)
    new_link = root / ".venvs" / f"link-{os.getpid()}"
    new_link.symlink_to(environment.relative_to(root))
    new_link.replace(root / ".venv")
    (environment / _STAMP).touch()
    complete = [path for path in (root / ".venvs").iterdir() if (path / _STAMP).is_file()]
    complete.sort(key=lambda path: (path / _STAMP).stat().st_mtime, reverse=True)
    for path in (root / ".venvs").iterdir():
        if path.is_dir() and path not in complete[:_KEPT]:
            shutil.rmtree(path)
    return environment


def _build(root: Path, environment: Path, python: str) -> None:
    base = _base_python(python)
    shutil.rmtree(environment, ignore_errors=True)  # left by an interrupted run
    print(f"Installing into {environment}: about 6 GB, a few minutes", flush=True)
    make = [base, "-m", "venv", "--prompt", "irevnet", str(environment)]
    if subprocess.run(make).returncode != 0:
        raise Refused(f"'{base} -m venv' failed, see above; .venv is as it was.")
    options = ["--quiet", "--require-hashes", "-r", "requirements.lock"]
    _pip(root, environment, ["install", *options], ".venv is as it was")
    lock = _hash(root / "requirements.lock")
    _write_stamp(environment, {"path": str(environment), "lock": lock})


def _base_python(python: str) -> str:
    """The executable behind ``python``, which may itself belong to an environment.

    Raises:
        Refused: if it is too old or comes without ``venv``.
    """
    ask = "import sys; print(sys._base_executable, *sys.version_info[:2], sep='\\n')"
    try:
        answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
        base, *version = answer.stdout.split("\n")[:3]
        too_old = tuple(map(int, version)) < OLDEST
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise Refused(f"Python 3.11 or newer is needed, but '{python}' fails: {error}") from error
    if too_old:
        raise Refused(
            f"Python 3.11 or newer is needed, but '{python}' is {'.'.join(version)}.\n"
            "Name another one: make PYTHON=/path/to/python3.11 ..."
        )
    if subprocess.run([base, "-c", "import ensurepip, venv"], capture_output=True).returncode != 0:
        raise Refused(
            f"'{python}' comes without venv; on Debian and Ubuntu: apt-get install python3-venv"
        )
    return base


def _pip(root: Path, environment: Path, arguments: Sequence[str], consequence: str) -> None:
    command = [str(environment / "bin" / "python"), "-m", "pip", *arguments]
    if subprocess.run(command, cwd=root).returncode != 0:
        raise Refused(f"'pip {' '.join(arguments)}' failed, see above; {consequence}.")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Creates ``.venvs`` and locks it, waiting until no other process holds the lock."""
    folder = root / ".venvs"
    mark = folder / "CACHEDIR.TAG"
    if os.path.lexists(folder) and not mark.is_file():
        raise Refused(f"{folder} was not made by make. Move it away, then run make again.")
    folder.mkdir(exist_ok=True)
    with mark.open("a") as file:
        if file.tell() == 0:
            file.write("Signature: 8a477f597d28d172789f06886806bc55\n# made by make\n")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("Waiting: another make is changing .venv", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _hash(path: Path) -> str:
    # Read as text, so that the line endings of a checkout do not matter.
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def _stamp(environment: Path) -> dict[str, str]:
    try:
        stamp = json.loads((environment / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(environment: Path, stamp: dict[str, str]) -> None:
    new = environment / f"{_STAMP}.{os.getpid()}"
    new.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    new.replace(environment / _STAMP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--python", default=sys.executable, help="Python that makes an environment")
    parser.add_argument("--remove", action="store_true", help="remove the environments instead")
    options = parser.parse_args(arguments)
    try:
        if options.remove:
            remove(ROOT)
        else:
            ensure(ROOT, options.python)
    except (Refused, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
