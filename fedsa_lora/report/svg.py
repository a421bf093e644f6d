"""A figure as SVG within a page: drawn in the colours of paper, it takes those of the reader's screen."""

import io
import re
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fedsa_lora.report.bands import MARK
from fedsa_lora.report.style import DARK, LIGHT, FigureStyle

VARIABLES = ("paper", "ink", "muted", "grid", "personalised", "alone", "down")  # fields that are a colour
VARIABLE = {getattr(LIGHT, name).lower(): f"var(--{name})" for name in VARIABLES}
# A page has its own font and joins, and everything in a figure lies within its axes.
DROPPED = {"metadata", "style", "clipPath"}


def to_svg(fig: Figure, name: str, layout: str) -> str:
    """The figure, drawn in the style LIGHT, as an `svg` element of class `layout`.

    Its text stays text and is escaped; its ids are its own as long as no other figure of a page has both its
    `name` and its `layout`, and the same figure gives the same characters.
    """
    drawn = io.StringIO()
    salt = f"{name} {layout}"
    fig.set_dpi(72)  # SVG counts in points
    # Pictures stay apart, since each is for one kind of screen (`shade`).
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "image.composite_image": False}):
        FigureCanvasSVG(fig).print_svg(drawn, metadata={"Date": None})  # type: ignore[no-untyped-call]
    root = ElementTree.fromstring(drawn.getvalue())  # as matplotlib has just written it
    for element in root.iter():
        _simplify(element)
    root.attrib = {"class": layout, "viewBox": root.attrib["viewBox"]}
    return ElementTree.tostring(root, encoding="unicode")


def colours(style: FigureStyle) -> str:
    """Declarations of the colours of a style, as the figures of a page name them."""
    return " ".join(f"--{name}: {getattr(style, name)};" for name in VARIABLES)


STYLE = f"""
figure svg {{ {colours(LIGHT)}
  display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }}
figure .narrow, figure .dark {{ display: none; }}
svg .value {{ fill: var(--ink); opacity: 0; }} svg .value:hover, svg .value.shown {{ opacity: .1; }}
@media screen and (max-width: 640px) {{ figure .wide {{ display: none; }}
  figure .narrow {{ display: block; }} }}
@media screen and (prefers-color-scheme: dark) {{ figure svg {{ {colours(DARK)} }}
  figure .light {{ display: none; }} figure .dark {{ display: inline; }} }}
@media print {{ .figures figure:not(.full) .wide {{ display: none; }}
  .figures figure:not(.full) .narrow {{ display: block; }} }}
"""


def _simplify(element: ElementTree.Element) -> None:
    """Leave of an element what a page needs: no namespaces, blanks, groups' ids, or digits beyond sight."""
    element.tag = _local(element.tag)
    element.tail = None
    if element.tag not in ("text", "title"):
        element.text = None
    for child in list(element):
        if _local(child.tag) in DROPPED:
            element.remove(child)
    found = {_local(name): " ".join(value.split()) for name, value in element.attrib.items()}
    found.pop("clip-path", None)
    if element.tag == "g":
        name = found.pop("id", "")
        if name.startswith(MARK):
            _entitle(element, name.removeprefix(MARK))
            found["class"] = "value"
    if element.tag == "image":
        found["class"] = found.pop("id")
        found["href"] = found["href"].replace(" ", "")
    if found.get("transform", "").startswith("rotate(-0 "):
        del found["transform"]
    for name in {"d", "x", "y"} & found.keys():
        found[name] = re.sub(r"(\.\d\d)\d+", r"\1", found[name])
    if "style" in found:
        own = re.sub(r"font-family: [^;]*; ", "", found["style"])
        found["style"] = re.sub(r"#[0-9a-f]{6}", lambda colour: VARIABLE.get(colour[0], colour[0]), own)
    element.attrib = found


def _entitle(band: ElementTree.Element, text: str) -> None:
    """Make a group a band whose title is a text."""
    for path in band:
        del path.attrib["style"]
    title = ElementTree.Element("title")
    title.text = text
    band.insert(0, title)


def _local(name: str) -> str:
    """A name without its namespace, which a page does not need."""
    return name.rpartition("}")[2]
