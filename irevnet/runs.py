"""Finds the trained networks that come with the repository.

``results/<experiment>/weights/`` holds ``runs.json``, the list of an experiment's training runs,
and the weights of the published run of each family; the weights of the other runs are beside their
results. An installed package has the contents of that folder under
``irevnet/pretrained/<experiment>/``.
"""

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TrainedRun", "find_run"]


@dataclass(frozen=True)
class TrainedRun:
    """One training run of an experiment.

    Args:
        experiment: name of the experiment.
        family: name of the family of networks in the experiment.
        model: the network's name in the zoo.
        seed: seed of the initial weights and of training.
        published: whether it represents its family where only one network is shown.
        path: the file of its weights, which may be missing.
    """

    experiment: str
    family: str
    model: str
    seed: int
    published: bool
    path: Path


def find_run(
    model: str, experiment: str, *, family: str | None = None, seed: int | None = None
) -> TrainedRun:
    """The training run that ``create_model(model, pretrained=experiment, ...)`` loads.

    Args:
        model: a network's name in the zoo.
        experiment: name of an experiment.
        family: name of the family, needed if several families of the experiment have this network.
        seed: seed of the run; by default that of the published one.

    Raises:
        ValueError: if there is no such run or its weights are missing, or if several families have
            the network and none is named; the message lists what is available.
    """
    runs = _runs()
    matching = [run for run in runs if (run.model, run.experiment) == (model, experiment)]
    families = list(dict.fromkeys(run.family for run in matching))
    if not matching or (family is not None and family not in families):
        available = sorted(
            {f"{run.model} with pretrained={run.experiment!r}" for run in runs if run.published}
        )
        wanted = repr(experiment) if family is None else f"family {family!r} of {experiment!r}"
        raise ValueError(
            f"no pretrained weights of {model} for {wanted}; "
            f"available are: {', '.join(available) or 'none'}"
        )
    if family is None and len(families) > 1:
        raise ValueError(
            f"family must be one of {', '.join(families)}: {experiment!r} has several with the "
            f"network {model}"
        )
    matching = [run for run in matching if family in (None, run.family)]
    chosen = [run for run in matching if (run.published if seed is None else run.seed == seed)]
    if not chosen:
        raise ValueError(
            f"seed must be one of {[run.seed for run in matching]} for {model} with "
            f"pretrained={experiment!r}, got {seed}"
        )
    run = chosen[0]
    if not run.path.is_file():
        raise ValueError(
            f"the weights of {run.family} with seed {run.seed} of {experiment!r} are missing: "
            f"there is no {run.path}"
        )
    return run


def _runs() -> list[TrainedRun]:
    """All training runs of all experiments; those of an installed package take precedence."""
    package = Path(__file__).parent
    lists: dict[str, Path] = {}
    for path in sorted(package.glob("pretrained/*/runs.json")):
        lists[path.parent.name] = path
    for path in sorted(package.parent.glob("results/*/weights/runs.json")):
        lists.setdefault(path.parent.parent.name, path)
    return [run for experiment, path in lists.items() for run in _read(experiment, path)]


def _read(experiment: str, path: Path) -> list[TrainedRun]:
    runs = []
    try:
        for entry in json.loads(path.read_bytes()):
            family, seed, published = entry["family"], entry["seed"], entry["published"]
            weights = path.parent / f"{family}.safetensors"
            if not published:
                weights = path.parent.parent / f"train/{family}-{seed}/weights.safetensors"
            runs.append(TrainedRun(experiment, family, entry["model"], seed, published, weights))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    return runs
