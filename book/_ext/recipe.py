"""The table of recipe trials: what was changed, what it cost, what it gave.

    ```{trials} cifar10_recipe base
    ```

An experiment in which every family is the recipe with one change, and the family that is the recipe
itself. A row per family; one that has not been run says so.
"""

from typing import Any

from docutils import nodes
from results_directives import ResultsDirective
from sphinx.application import Sphinx

from results import show_percent

__all__ = ["Trials", "setup"]

_HEADS = ("Trial", "Change", "Epochs", "Training, s", "Held out, %", "Against the recipe, points")


class Trials(ResultsDirective):
    """``{trials} experiment family``: accuracy on held-out training images, trial by trial."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """The table; a warning that names what is not there."""
        from pipeline.figures import FAMILY_LABELS
        from pipeline.params import ROOT, ParamsError, load_params

        experiment, base = self.arguments
        self.env.note_dependency(str(ROOT / "params.yaml"))
        try:
            section = load_params().section(experiment)
        except ParamsError as error:
            return self.missing(f"trials: {error}")
        if base not in section.models:
            return self.missing(f"trials: {experiment}.models has no {base}")
        group = nodes.tgroup(cols=len(_HEADS))
        group += [nodes.colspec(colwidth=width) for width in (16, 34, 8, 12, 12, 18)]
        head, body = nodes.thead(), nodes.tbody()
        head += _row(_HEADS)
        reference = self._accuracy(experiment, base, section.seeds[0])
        for family, model in section.models.items():
            recipe = section.recipe(family)
            accuracy = self._accuracy(experiment, family, section.seeds[0])
            own_network = model.name == section.models[base].name
            against = ""
            if own_network and family != base and None not in (accuracy, reference):
                against = f"{100 * (accuracy - reference):+.1f}"
            body += _row(
                [
                    FAMILY_LABELS[family],
                    _change(model.training) or ("the recipe" if family == base else model.name),
                    str(recipe["epochs"]),
                    self._seconds(experiment, family, section.seeds[0]),
                    "not run yet" if accuracy is None else show_percent(accuracy).value,
                    against,
                ]
            )
        group += [head, body]
        title = nodes.title("", f"Trials of {experiment}")
        return [nodes.table("", title, group, classes=["trials"])]

    def _accuracy(self, experiment: str, family: str, seed: int) -> float | None:
        run = self._run("results", experiment, family, seed)
        return run.get("validation_accuracy")

    def _seconds(self, experiment: str, family: str, seed: int) -> str:
        timing = self._run("provenance", experiment, family, seed).get("timing", {})
        return f"{timing['training']:,.0f}" if "training" in timing else ""

    def _run(self, table: str, experiment: str, family: str, seed: int) -> dict[str, Any]:
        runs = self.tables[table].get(experiment, {}).get("train", {})
        return runs.get(f"{family}-{seed}", {})


def _change(training: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in training.items())


def _row(cells: Any) -> nodes.row:  # noqa: ANN401
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("trials", Trials)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
