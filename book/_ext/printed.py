"""The directive ``{printed}``: a command of the page *One variation*, and what it printed.

``{printed} metrics`` shows the command of that name in :mod:`benchmarks.variation` and its output,
with tables rendered, from the results of the one device that has run it.
"""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx

from results_directives import ResultsDirective

__all__ = ["Printed", "setup"]


class Printed(ResultsDirective):
    """``{printed} NAME``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Command and output; a warning if the results or the command are missing."""
        (name,) = self.arguments
        records = [
            own["variation"] for own in self.tables["benchmarks"].values() if "variation" in own
        ]
        if len(records) != 1:
            return self.missing(f"printed: needs exactly one variation.json, found {len(records)}")
        if name not in records[0]["printed"]:
            there = ", ".join(records[0]["printed"])
            return self.missing(f"printed: {name} is not one of {there}")
        command = nodes.literal_block("", records[0]["commands"][name], language="bash")
        output = records[0]["printed"][name]
        if output.startswith("|"):
            shown = nodes.container()
            self.state.nested_parse(StringList(output.splitlines(), "printed"), 0, shown)
        elif output:
            shown = nodes.literal_block("", output, language="text")
        else:
            shown = nodes.paragraph("", "", nodes.emphasis("", "It prints nothing."))
        return [command, shown]


def setup(app: Sphinx) -> dict[str, bool | str]:
    """Registers the directive."""
    app.add_directive("printed", Printed)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
