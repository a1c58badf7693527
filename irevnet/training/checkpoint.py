"""The file from which an interrupted training run resumes.

A checkpoint belongs to one run: to its network, recipe, seed, images, and to the code that trains.
Neither a kill nor a full disk loses it: the previous state stays until the new one has been
written, synced and read back.
"""

import ast
import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from irevnet.weights import read_tensors, write_tensors

__all__ = ["Checkpoint", "CheckpointError", "code_digest"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message names it and says why."""


class Checkpoint:
    """One run's state on disk, and the right to write it.

    Two more files may be beside it: ``path.previous``, the state before, and ``path.lock``, which a
    running process holds.

    Args:
        path: the file; its folder is created if it does not exist.
        run: what identifies the run, by name: JSON values that must be equal for a state to be
            used.

    Raises:
        CheckpointError: if the folder cannot be written, or if another process uses the file.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.previous = self.path.with_name(f"{self.path.name}.previous")
        self._lock_path = self.path.with_name(f"{self.path.name}.lock")
        self._run = json.loads(json.dumps(run))
        self.notes: list[str] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire()
            # Find out now, not when the first state has been computed.
            write_tensors(self._unfinished, {}, {"probe": "x" * 4096})
            self._unfinished.unlink()
        except OSError as error:
            raise CheckpointError(f"{self.path.parent} cannot be written: {error}") from error

    def _acquire(self) -> IO[str]:
        """Takes the lock before touching anything else: another process may own the files."""
        while True:
            lock = self._lock_path.open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                raise CheckpointError(
                    f"another process trains with the checkpoint {self.path}; wait for it, or name "
                    "another file"
                ) from error
            # The previous holder may have removed the file since, and a third process made another.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), self._lock_path.stat()):
                    return lock
            lock.close()

    @property
    def _unfinished(self) -> Path:
        return self.path.with_name(f"{self.path.name}.new")

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last good state, tensors and metadata; None if there is none.

        If a file cannot be used, the reason is added to ``notes``.

        Raises:
            CheckpointError: if every state is damaged, or if the state belongs to another run.
        """
        damage = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                tensors, metadata = read_tensors(path)
            except (ValueError, OSError) as error:
                damage.append(str(error))
                continue
            self._check_run(path, metadata.get("run"))
            self.notes += [f"{message}; using {path.name}" for message in damage]
            return tensors, metadata
        if damage:
            raise CheckpointError(
                f"no state of {self.path} can be used: {'; '.join(damage)}; remove it to train "
                "from the start"
            )
        return None

    def save(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Writes a state; if this fails, the last one stays.

        Raises:
            CheckpointError: if it cannot be written, for example on a full disk.
        """
        try:
            write_tensors(self._unfinished, tensors, {**metadata, "run": self._run})
            read_tensors(self._unfinished)
            if self.path.exists():
                os.replace(self.path, self.previous)
            os.replace(self._unfinished, self.path)
            self._sync_folder()
        except (OSError, ValueError) as error:
            self._unfinished.unlink(missing_ok=True)
            kept = "nothing" if not (self.path.exists() or self.previous.exists()) else "the last"
            raise CheckpointError(
                f"the checkpoint {self.path} cannot be written ({error}); kept: {kept}"
            ) from error

    def remove(self) -> None:
        """Removes every file. Call it once the trained weights are safe elsewhere."""
        for path in (self.previous, self.path, self._unfinished):
            path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Releases the lock; the states stay."""
        if not self._lock.closed:
            self._lock_path.unlink(missing_ok=True)
            self._lock.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _check_run(self, path: Path, run: object) -> None:
        if run == self._run:
            return
        theirs = run if isinstance(run, dict) else {}
        different = sorted(
            name
            for name in self._run.keys() | theirs.keys()
            if theirs.get(name) != self._run.get(name)
        )
        raise CheckpointError(
            f"{path} is the checkpoint of another run, which differs in {', '.join(different)}; "
            "remove it, or name another file"
        )


def code_digest() -> str:
    """A fingerprint of what the package computes, without its analyses, 16 hexadecimal digits.

    Comments, docstrings and formatting do not count: an interrupted run can be resumed after they
    change. Versions of Python write syntax trees differently, so each minor version has its own
    fingerprint.
    """
    root = Path(__file__).resolve().parent.parent
    content = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith("analysis/"):
            content.update(f"{name}\n{_syntax(path.read_bytes())}\n".encode())
    return content.hexdigest()[:16]


def _syntax(source: bytes) -> str:
    """The syntax tree of a module without its docstrings, which are strings that nothing uses."""
    tree = _WithoutDocstrings().visit(ast.parse(source))
    return ast.dump(tree)


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node
