"""Parts of the book that come from the code itself: sizes of networks, architecture figures."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["setup"]

_KERNELS_OF_BASELINES = (
    "1\N{MULTIPLICATION SIGN}1, 3\N{MULTIPLICATION SIGN}3, 1\N{MULTIPLICATION SIGN}1"
)


class ParameterCounts(SphinxDirective):
    """A table of zoo models: parameters counted during the build, beside the paper's numbers.

    The body is a YAML list of ``{model: NAME, table: QUOTED, ...}``; further entries override
    arguments of the model. ``table`` is in millions, such as ``29M``.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        import torch

        import irevnet

        _note_code(self)
        rows = [["Network", "Kernels of F", "Counted here", "Table 1", "Agree"]]
        for entry in yaml.safe_load("\n".join(self.content)):
            name, quoted = entry.pop("model"), entry.pop("table")
            with torch.device("meta"):
                model = irevnet.create_model(name, **entry)
            count = sum(parameter.numel() for parameter in model.parameters())
            agree = "yes" if f"{round(count / 1e6)}M" == quoted else "no"
            rows.append([f"`{name}`", _kernels(model), f"{count:,}", quoted, agree])
        return _table(self, rows, "--rr-")


class NetworkSizes(SphinxDirective):
    """A table of an experiment's networks: convolutions, parameters and multiply-adds.

    The argument names a section of ``params.yaml``.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        import irevnet
        from pipeline.figures import FAMILY_LABELS
        from pipeline.params import ROOT, load_params

        _note_code(self)
        self.env.note_dependency(str(ROOT / "params.yaml"))
        rows = [["", "in the zoo", "convolutions", "parameters", "multiply-adds per image"]]
        for family, settings in load_params().sections[self.arguments[0]].models.items():
            with torch.device("meta"), FlopCounterMode(display=False) as counter:
                model = irevnet.create_model(settings.name, **settings.overrides).eval()
                model(torch.empty(1, *model.in_shape))
            convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in model.modules())
            parameters = sum(parameter.numel() for parameter in model.parameters())
            # A multiply-add counts as two operations.
            multiply_adds = counter.get_total_flops() / 2
            rows.append(
                [
                    FAMILY_LABELS[family],
                    f"`{settings.name}`",
                    str(convolutions),
                    f"{parameters / 1e6:.2f} M",
                    f"{multiply_adds / 1e6:,.3g} M",
                ]
            )
        return _table(self, rows, "--rrr")


class Models(SphinxDirective):
    """A table of all models of the zoo: input, parameters, trained weights and their accuracy."""

    def run(self) -> list[nodes.Node]:
        import torch

        import irevnet
        from pipeline.files import read_json
        from pipeline.params import ROOT

        trained: dict[str, list[str]] = {}
        for path in sorted((ROOT / "results").glob("*/weights/runs.json")):
            self.env.note_dependency(str(path))
            for run in read_json(path):
                if run["published"]:
                    accuracy = f"{100 * run['metrics']['test_accuracy']:.1f}%"
                    entry = f'`"{path.parent.parent.name}"` ({accuracy})'
                    trained.setdefault(run["model"], []).append(entry)
        _note_code(self)
        rows = [
            ["name", "class", "input", "classes", "parameters", "`pretrained=` (test accuracy)"]
        ]
        for name in irevnet.list_models():
            with torch.device("meta"):
                model = irevnet.create_model(name)
            arguments = irevnet.zoo.model_arguments(name)
            shape = getattr(model, "in_shape", (3, 224, 224))  # torchvision's ResNet-50
            rows.append(
                [
                    f"`{name}`",
                    type(model).__name__,
                    " x ".join(map(str, shape)),
                    str(arguments.get("num_classes", 1000)),
                    f"{sum(parameter.numel() for parameter in model.parameters()):,}",
                    ", ".join(trained.get(name, [])),
                ]
            )
        return _table(self, rows, "---rr-")


def _code() -> list[Path]:
    """The source files of the package, which builds the networks."""
    import irevnet

    return sorted(Path(irevnet.__file__).parent.rglob("*.py"))


def _note_code(directive: SphinxDirective) -> None:
    """Makes Sphinx read the page again when the package has changed."""
    for path in _code():
        directive.env.note_dependency(str(path))


def _table(directive: SphinxDirective, rows: list[list[str]], columns: str) -> list[nodes.Node]:
    """A table with a heading; an ``r`` in ``columns`` aligns a column to the right."""
    head, *body = rows
    line = ["--:" if column == "r" else "---" for column in columns]
    text = [f"| {' | '.join(row)} |" for row in (head, line, *body)]
    return directive.parse_text_to_nodes("\n".join(text))


def _kernels(model: Any) -> str:  # noqa: ANN401
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        return _KERNELS_OF_BASELINES
    convolutions = [m for m in blocks[0].residual if hasattr(m, "kernel_size")]
    return ", ".join(
        f"{m.kernel_size[0]}\N{MULTIPLICATION SIGN}{m.kernel_size[1]}" for m in convolutions
    )


def _draw_figures(app: Sphinx) -> None:
    script = Path(app.srcdir, "figures", "architecture.py")
    drawn = [script.with_name(f"{name}.svg") for name in ("block", "network")]
    newest = max(path.stat().st_mtime for path in (script, *_code()))
    if all(path.exists() and path.stat().st_mtime >= newest for path in drawn):
        return
    subprocess.run([sys.executable, str(script)], check=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives, and redraws figures that are older than the code they show."""
    app.add_directive("models", Models)
    app.add_directive("parameter-counts", ParameterCounts)
    app.add_directive("network-sizes", NetworkSizes)
    app.connect("builder-inited", _draw_figures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
