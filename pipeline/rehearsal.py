"""A training in miniature, whose bits show whether the training code computes the same.

``python -m pipeline.rehearsal --experiment digits --family resnet`` runs ``notebooks/train.ipynb``
with the family's network and recipe, for all epochs, on two small batches of images, and writes a
fingerprint of the trained network to ``results/digits/rehearsal/resnet.json``. Trained networks
depend on that file, not on the sources: see :mod:`pipeline.stages`.

It runs on the CPU, so that machines with and without a GPU get the same bits. Another kind of
processor may round differently although the code is the same. So if the bits differ from those of
the published file, the code of the commit that published it is rehearsed on this machine, too. If
both give the same bits, the published file stays unchanged.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from papermill.exceptions import PapermillExecutionError

from irevnet.weights import read_tensors
from pipeline.copies import copy_repository, environment_of, link_data
from pipeline.files import read_json
from pipeline.notebook import checkpoint_path
from pipeline.params import ROOT, ParamsError
from pipeline.provenance import git
from pipeline.run import execute, notebook_environment, notebook_parameters

__all__ = ["main", "published", "rehearse"]

_BATCH_SIZE = 32
_STEPS_PER_EPOCH = 2

# Rehearses with the code of the current directory and prints the result; arguments as rehearse().
_PRINT = """
import json, os, sys
from pipeline.rehearsal import rehearse
from pipeline.run import notebook_environment
os.environ |= notebook_environment("train", sys.argv[1])
sys.stdout, shown = sys.stderr, sys.stdout
print(json.dumps(rehearse(*sys.argv[1:])), file=shown)
"""


def rehearse(experiment: str, family: str) -> dict[str, Any]:
    """Trains a network in miniature.

    Args:
        experiment: a section of ``params.yaml``.
        family: one of its models.

    Returns:
        ``weights``: a fingerprint of all parameters and buffers; ``metrics``: what the notebook
        measured, on equally few images.

    Raises:
        ParamsError: if there is no such experiment or family.
        PapermillExecutionError: if the notebook fails.
    """
    parameters = notebook_parameters("train", experiment, family)
    recipe = parameters["training"]
    size = min(_BATCH_SIZE, recipe["batch_size"])
    # Compiling takes longer than the rehearsal and changes rounding only on a GPU.
    parameters["training"] = recipe | {"batch_size": size, "compile": False}
    parameters["images"] = size * _STEPS_PER_EPOCH
    output = ROOT / "scratch" / f"rehearsal-{experiment}-{family}"
    shutil.rmtree(output, ignore_errors=True)
    # An interrupted rehearsal must not be resumed: it may have run other code.
    state = checkpoint_path(experiment, family, 0, output.relative_to(ROOT).as_posix())
    shutil.rmtree(state.parent, ignore_errors=True)
    execute("train", parameters, output)
    result = {
        "weights": _fingerprint(output / "weights.safetensors"),
        "metrics": read_json(output / "metrics.json"),
    }
    shutil.rmtree(output)
    return result


def _fingerprint(path: Path) -> str:
    tensors, _ = read_tensors(path)
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def published(
    experiment: str, family: str, result: dict[str, Any], root: Path = ROOT
) -> dict[str, Any]:
    """The committed rehearsal if its code gives the same bits on this machine, else ``result``.

    Args:
        experiment: a section of ``params.yaml``.
        family: one of its models.
        result: what :func:`rehearse` returned here.
        root: the repository. Without git, or without a committed rehearsal, ``result`` is
            returned.
    """
    name = f"results/{experiment}/rehearsal/{family}.json"
    text = git("show", f"HEAD:{name}", root=root)
    if text is None:
        return result
    try:
        committed = json.loads(text)
    except ValueError:
        print(f"{name}: the committed file is damaged and was ignored")
        return result
    if committed == result:
        return result
    # A shallow clone has a single commit, which git reports here even if the file is older.
    commit = (git("log", "-1", "--format=%H", "--", name, root=root) or "").strip()
    reference = _rehearse_commit(commit, experiment, family, root)
    short = commit[:10]
    if reference == result:
        print(f"{family}: other bits than published, but the code of {short} gives the same: kept")
        return committed
    if reference is None:
        print(f"{family}: other bits than published, and the code of {short} does not run here")
    else:
        print(f"{family}: other bits than the code of {short} gives here")
    print(f"{family}: the networks must be trained again")
    return result


def _rehearse_commit(
    commit: str, experiment: str, family: str, root: Path
) -> dict[str, Any] | None:
    """What :func:`rehearse` returns in a copy of a commit; None if it fails."""
    with tempfile.TemporaryDirectory(prefix="irevnet-rehearsal-") as folder:
        copy = Path(folder, "copy")
        try:
            copy_repository(root, copy, commit)
            link_data(root, copy)
            answer = subprocess.run(
                [sys.executable, "-c", _PRINT, experiment, family],
                cwd=copy,
                env=environment_of(copy, root),
                check=True,
                stdout=subprocess.PIPE,
            )
            return json.loads(answer.stdout)
        except (OSError, RuntimeError, subprocess.CalledProcessError, ValueError):
            return None


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--experiment", required=True, help="a section of params.yaml")
    parser.add_argument("--family", required=True, help="one of its models")
    arguments = parser.parse_args()
    try:
        os.environ |= notebook_environment("train", arguments.experiment)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        result = rehearse(arguments.experiment, arguments.family)
        result = published(arguments.experiment, arguments.family, result)
    except (ParamsError, PapermillExecutionError) as error:
        sys.exit(str(error))
    folder = ROOT / "results" / arguments.experiment / "rehearsal"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{arguments.family}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
