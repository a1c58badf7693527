"""The first page: the short answer, the pictures, and the scorecard.

``{answer}`` counts the verdicts, ``{reconstructions}`` shows the gallery of the experiment with the
longest training, ``{scorecard}`` has a row for each claim with a badge for each experiment, and
``{tested-on}`` lists the images, networks and hardware of each experiment. :mod:`pipeline.answer`
derives all of them from the results.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from pipeline.answer import (
    Experiment,
    claims_of,
    clause,
    load_experiments,
    short_answer,
    tested_on,
)
from results_directives import NO_RESULTS, ResultsDirective, badge, claim_page, root, table

__all__ = ["setup"]


class AnswerDirective(ResultsDirective):
    """What the directives of the first page share."""

    @property
    def experiments(self) -> list[Experiment]:
        """The experiments with at least one tested claim."""
        return load_experiments(root(self.env.srcdir))

    def text(self, text: str) -> list[nodes.Node]:
        """Nodes of a line of Markdown."""
        return self.parse_inline(text)[0]


class Answer(AnswerDirective):
    """``{answer}``: how many claims have which verdict, where, at what cost."""

    def run(self) -> list[nodes.Node]:
        """A highlighted paragraph."""
        paragraph = nodes.paragraph("", "", *self.text(short_answer(self.experiments)))
        return [nodes.container("", paragraph, classes=["answer"])]


class TestedOn(AnswerDirective):
    """``{tested-on}``: images, networks and hardware of each experiment."""

    def run(self) -> list[nodes.Node]:
        """A paragraph."""
        return [nodes.paragraph("", "", *self.text(tested_on(self.experiments) or NO_RESULTS))]


class Reconstructions(AnswerDirective):
    """``{reconstructions}``: test images and their reconstructions."""

    def run(self) -> list[nodes.Node]:
        """The figure; nothing if no experiment has one."""
        for one in self.experiments:
            picture = f"results/{one.name}/inversion/gallery.png"
            if (root(self.env.srcdir) / picture).is_file():
                alt = f"Test images ({one.title}) and, below them, their reconstructions"
                figure = nodes.figure("", nodes.image(uri=picture, alt=alt), classes=["hero"])
                figure += nodes.caption(
                    "",
                    "",
                    *self.text(
                        f"First row: test images ({one.title}). Other rows: their reconstructions "
                        "by the inverses of trained networks. [The page on "
                        "inversion](inversion.md) says how exact they are."
                    ),
                )
                self.set_source_info(figure)
                return [figure]
        return []


class Scorecard(AnswerDirective):
    """``{scorecard}``: a claim in each row, a column for each experiment."""

    def run(self) -> list[nodes.Node]:
        """The table, each claim with a link to its page."""
        experiments = self.experiments
        if not experiments:
            return [nodes.paragraph("", NO_RESULTS)]
        heads = ["Id", "Claim", *(f"{one.title}, `{one.name}`" for one in experiments)]
        rows = []
        for row in claims_of(experiments).values():
            page = claim_page(self.env.srcdir, row["id"])
            text = f"[{clause(row)}]({page}.md)" if page in self.env.found_docs else clause(row)
            badges = [[_label(one), badge(one.verdict(row["id"]))] for one in experiments]
            rows.append([row["id"], self.text(text), *badges])
        widths = (6, 50, *[20] * len(experiments))
        card = table([self.text(head) for head in heads], rows, widths, "scorecard")
        self.set_source_info(card)
        return [card]


def _label(experiment: Experiment) -> nodes.inline:
    """The heading of the column, shown in the cell if the page is too narrow for columns."""
    text = f"{experiment.title}: "
    return nodes.inline(text, text, classes=["card-label"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives."""
    app.add_directive("answer", Answer)
    app.add_directive("reconstructions", Reconstructions)
    app.add_directive("scorecard", Scorecard)
    app.add_directive("tested-on", TestedOn)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
