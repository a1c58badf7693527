"""Tables of training runs, including those that have not been run yet.

    ```{trials} cifar10_recipe base
    ```

The arguments are an experiment in which every family changes the recipe in one point, and the
family that uses the recipe itself. The table has a row per family: what was changed, the accuracy,
and the cost. Families that have not been run are listed below, folded.

    ```{runs} cifar10
    ```

The progress of an experiment with long runs, the accuracies of finished runs, and the recipe. With
a family as the second argument, a column says in what each family differs from this one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.application import Sphinx

from results import show_percent
from results_directives import ResultsDirective, table

if TYPE_CHECKING:
    from pipeline.params import Experiment, Model

__all__ = ["Runs", "Trials", "setup"]

_RUNS = ("Family", "Runs", "Test accuracy, %", "Training, last epoch, %", "Training, min")
_HEADS = ("Trial", "Change", "Held-out accuracy, %", "Gain, points", "Epochs", "Training, s")


class _TrainingTable(ResultsDirective):
    """What both tables share."""

    def section(self, experiment: str) -> "Experiment":
        """An experiment's section of ``params.yaml``, on which the page depends.

        Raises:
            ParamsError: if there is none.
        """
        from pipeline.params import ROOT, load_params

        self.env.note_dependency(str(ROOT / "params.yaml"))
        return load_params().section(experiment)

    def value(self, table: str, experiment: str, family: str, seed: int, name: str) -> Any:  # noqa: ANN401
        """A number recorded by a run; None if there is none yet."""
        runs = self.tables[table].get(experiment, {}).get("train", {})
        return runs.get(f"{family}-{seed}", {}).get(name)

    def seconds(self, experiment: str, family: str, seed: int) -> float | None:
        """The seconds that a run has trained; None if there is no record."""
        timing = self.value("provenance", experiment, family, seed, "timing") or {}
        return timing.get("training")


class Runs(_TrainingTable):
    """``{runs} experiment [family]``: finished runs of each family, accuracies, and the recipe."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table and the recipe; a warning if the experiment is missing or trains nothing."""
        from pipeline.figures import FAMILY_LABELS
        from pipeline.params import ParamsError

        experiment, *bases = self.arguments
        try:
            section = self.section(experiment)
        except ParamsError as error:
            return self.missing(f"runs: {error}")
        if section.training is None:
            return self.missing(f"runs: nothing is trained in {experiment}")
        if unknown := [base for base in bases if base not in section.models]:
            return self.missing(f"runs: {experiment}.models has no {unknown[0]}")
        rows = []
        for family, model in section.models.items():
            values = [
                {
                    name: self.value("results", experiment, family, seed, name)
                    for name in ("test_accuracy", "train_accuracy")
                }
                | {"seconds": self.seconds(experiment, family, seed)}
                for seed in section.seeds
            ]
            done = [run for run in values if run["test_accuracy"] is not None]
            rows.append(
                [
                    FAMILY_LABELS[family],
                    *(_difference(model, section.models[base]) for base in bases),
                    f"{len(done)} of {len(section.seeds)}",
                    ", ".join(f"{100 * run['test_accuracy']:.2f}" for run in done),
                    ", ".join(f"{100 * run['train_accuracy']:.1f}" for run in done),
                    ", ".join(f"{run['seconds'] / 60:.0f}" for run in done if run["seconds"]),
                ]
            )
        title = f"Runs of {experiment}, {section.training['epochs']} epochs"
        recipe = nodes.paragraph("", f"The recipe: {_settings(section.training)}.")
        family, *others = _RUNS
        change = ("Change",) * len(bases)
        widths = (24, *(34,) * len(bases), 12, 26, 22, 16)
        return [table((family, *change, *others), rows, widths, "trials", title), recipe]


class Trials(_TrainingTable):
    """``{trials} experiment family``: accuracy on held-out training images, trial by trial."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """The table; a warning if the experiment or the family is missing."""
        from pipeline.figures import FAMILY_LABELS
        from pipeline.params import ParamsError

        experiment, base = self.arguments
        try:
            section = self.section(experiment)
        except ParamsError as error:
            return self.missing(f"trials: {error}")
        if base not in section.models:
            return self.missing(f"trials: {experiment}.models has no {base}")
        rows, waiting = [], []
        seed, measured = section.seeds[0], "validation_accuracy"
        reference = self.value("results", experiment, base, seed, measured)
        for family, model in section.models.items():
            recipe = section.recipe(family)
            accuracy = self.value("results", experiment, family, seed, measured)
            change = _settings(model.training) or ("the recipe" if family == base else model.name)
            if accuracy is None:
                waiting.append(f"{FAMILY_LABELS[family]} ({change})")
                continue
            seconds = self.seconds(experiment, family, seed)
            same_network = model.name == section.models[base].name
            against = ""
            if same_network and family != base and None not in (accuracy, reference):
                against = f"{100 * (accuracy - reference):+.1f}"
            rows.append(
                [
                    FAMILY_LABELS[family],
                    change,
                    show_percent(accuracy).value,
                    against,
                    str(recipe["epochs"]),
                    "" if seconds is None else f"{seconds:,.0f}",
                ]
            )
        shown: list[nodes.Node] = []
        if rows:
            title = f"Trials of {experiment}"
            shown.append(table(_HEADS, rows, (16, 34, 12, 18, 8, 12), "trials", title))
        if waiting:
            shown += _folded(f"{len(waiting)} not run yet", waiting)
        return shown


def _difference(model: "Model", base: "Model") -> str:
    """The settings of a family that another one has not."""
    if model is base:
        return ""
    own = {} if model.name == base.name else {"network": model.name}
    for name in ("overrides", "training"):
        settings, others = getattr(model, name), getattr(base, name)
        own |= {key: value for key, value in settings.items() if others.get(key) != value}
    return _settings(own)


def _settings(training: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in training.items())


def _folded(summary: str, items: Sequence[str]) -> list[nodes.Node]:
    opened = f"<details><summary>{summary}</summary>"
    listed = nodes.bullet_list(
        "", *(nodes.list_item("", nodes.paragraph("", item)) for item in items)
    )
    return [
        nodes.raw("", opened, format="html"),
        listed,
        nodes.raw("", "</details>", format="html"),
    ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives."""
    app.add_directive("runs", Runs)
    app.add_directive("trials", Trials)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
