"""The directive ``{slider}``: a reader moves through the steps of walks, without a server.

``{slider} results/digits/interpolation/walk.png`` shows one step at a time of the walks that
:meth:`pipeline.notebook.Results.save_walk` has put into one picture, with a slider below. The file
``walk.json`` beside the picture describes it. The option ``alt`` is required; the body is the
caption. Without scripts, and in print, the whole picture is shown.
"""

import html
import json
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from assets import add_assets

__all__ = ["Slider", "setup"]

ASSETS = Path(__file__).with_name("slider_assets")


class Slider(SphinxDirective):
    """``{slider} PICTURE.png`` with the option ``alt`` and a caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """A container with the controls, hidden until a script shows them, and the picture.

        Raises:
            DirectiveError: if there is no ``alt``, or the description of the picture is missing or
                damaged.
        """
        alt = self.options.get("alt")
        if not alt:
            raise self.error(f"slider {self.arguments[0]}: the option alt is required")
        description = Path(self.arguments[0]).with_suffix(".json").as_posix()
        relative, path = self.env.relfn2path(description)
        self.env.note_dependency(relative)
        try:
            walk = json.loads(Path(path).read_text())
            controls = _controls(f"slider-{self.env.new_serialno('slider')}", walk, alt)
        except (OSError, ValueError, KeyError) as error:
            raise self.error(f"slider: {relative} cannot be used: {error!r}") from error
        picture = nodes.figure("", nodes.image(uri=self.arguments[0], alt=alt))
        if self.content:
            caption = nodes.caption("", "", *self.parse_inline("\n".join(self.content))[0])
            picture += caption
        self.set_source_info(picture)
        raw = nodes.raw("", controls, format="html")
        return [nodes.container("", raw, picture, classes=["slider"])]


def _controls(name: str, walk: dict[str, Any], alt: str) -> str:
    """HTML of the squares, in which a script shows parts of the picture, and of the slider.

    Args:
        name: an id that no other slider on the page has.
        walk: what ``save_walk`` has written.
        alt: what the squares show.
    """
    lines, heads, steps = walk["lines"], walk["heads"], walk["steps"]
    first, last = walk["ends"]
    if len(walk["notes"]) != len(lines) * len(heads):
        raise ValueError(f"notes are of {len(walk['notes'])} walks, not {len(lines) * len(heads)}")
    equal = [first + (last - first) * step / (steps - 1) for step in range(steps)]
    at = walk.get("values", equal)
    digits = 0 if all(float(value).is_integer() for value in at) else 2
    values = [f"{value:,.{digits}f}" for value in at]
    data = {"values": values, "notes": walk["notes"]}
    parts = [f'<div class="slider-view" data-walk="{html.escape(json.dumps(data))}" hidden>']
    parts.append(f'<div role="group" aria-label="{html.escape(alt)}">')
    for line in lines:
        parts.append(f'<p class="slider-line">{html.escape(line)}</p><div class="slider-squares">')
        for head in heads:
            shown = html.escape(f"{line}, {head}")
            parts.append(
                f'<div><div class="slider-square" role="img" aria-label="{shown}"></div>'
                f"<div>{html.escape(head)}</div>"
                '<div class="slider-note"></div></div>'
            )
        parts.append("</div>")
    parts.append("</div>")
    # Start in the middle: the ends show the least.
    parts.append(
        f'<p class="slider-control"><label for="{name}">{html.escape(walk["label"])}</label> '
        f'<input type="range" id="{name}" min="0" max="{steps - 1}" step="1" '
        f'value="{steps // 2}" autocomplete="off"> '
        f'<output for="{name}">{values[steps // 2]}</output></p></div>'
    )
    return "\n".join(parts)


def _used(doctree: nodes.document) -> bool:
    return any("slider" in one["classes"] for one in doctree.findall(nodes.container))


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive and what its pages load."""
    app.add_directive("slider", Slider)
    add_assets(app, ASSETS, _used)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
