"""What the book computes from the code itself: parameter counts, and the architecture's figures."""

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
    """A table of zoo models, their parameters counted now, beside numbers quoted from the paper.

    The body is a YAML list of ``{model: NAME, table: QUOTED, ...}``; what else an entry holds
    overrides arguments of the model. ``table`` is in millions, such as ``29M``.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        import torch

        import irevnet

        for path in Path(irevnet.__file__).parent.glob("*.py"):
            self.env.note_dependency(str(path))
        rows = [["Network", "Kernels of F", "Counted here", "Table 1", "Agree"]]
        for entry in yaml.safe_load("\n".join(self.content)):
            name, quoted = entry.pop("model"), entry.pop("table")
            with torch.device("meta"):
                model = irevnet.create_model(name, **entry)
            count = sum(parameter.numel() for parameter in model.parameters())
            agree = "yes" if f"{round(count / 1e6)}M" == quoted else "no"
            rows.append([f"`{name}`", _kernels(model), f"{count:,}", quoted, agree])
        head, *body = rows
        text = [" | ".join(row) for row in [head, ["---", "---", "--:", "--:", "---"], *body]]
        return self.parse_text_to_nodes("\n".join(f"| {line} |" for line in text))


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
    if all(path.exists() and path.stat().st_mtime >= script.stat().st_mtime for path in drawn):
        return
    subprocess.run([sys.executable, str(script)], check=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive, and draws the figures that are older than their script."""
    app.add_directive("parameter-counts", ParameterCounts)
    app.connect("builder-inited", _draw_figures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
