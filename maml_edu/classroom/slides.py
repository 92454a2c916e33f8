"""Slides of a notebook: one HTML file that needs no network, no script and no other file.

A rule decides what is shown, so notebooks need no marks for it. A heading, a prediction, a figure and a print each
start a slide. Lists, tables, formulas and the paragraph that leads up to them are shown, and so are exercises and
claims. All other prose is a note, which opens with a click; code is left out. Use arrow keys, PageDown or a clicker.
"""

import html
import re
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from maml_edu.classroom.handouts import read_notebook
from maml_edu.data.atomic_write import write_atomically

LONGEST_PRINT = 16  # lines; a longer print is for reading
MOST_CLAIMS = 6  # below one figure
TEX_REPLACEMENTS = (  # what latex2mathml or a browser would get wrong, and what they get right
    (r"\\arg\b", r"\\operatorname{arg}"),
    (r"\{aligned\}", "{split}"),
    (r"\\(mathbb|mathcal)\s*([A-Za-z])", r"\\\1{\2}"),
    (r"\\(sin|cos|tanh|ln)\s*(?=[a-z]|\\(?!big|Big|left)[a-z])", r"\\\1\\,"),  # a thin space before the argument
)
GENERATOR = '<meta name="generator" content="maml_edu slides">'  # marks the files that we may replace
PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">$generator<title>$title</title><style>
html { scroll-snap-type: y mandatory; font: 3.5vmin/1.35 "Helvetica Neue", Arial, sans-serif; }
@page { size: 1280px 720px; margin: 0; }
body { margin: 0; }
section { scroll-snap-align: start; min-height: 100vh; box-sizing: border-box; padding: 4vmin 6vmin 5vmin;
  display: flex; flex-direction: column; position: relative; break-after: page; }
h2 { margin: 0; color: #0072b2; font-size: 1.3em; }
section > div { flex: 1; display: flex; flex-direction: column; justify-content: center; gap: .5em; }
section > div > * { margin: 0; }
.question p { font-size: 1.25em; border-left: .4em solid #e69f00; padding-left: 1em; }
img { flex: 1 1 0; min-height: 35vh; max-height: 70vh; object-fit: contain; }
pre { font: .8em/1.35 "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap; }
table { align-self: center; border-collapse: collapse; font-size: .75em; }
td, th { padding: .2em .7em; border-bottom: 1px solid #ccc; text-align: left; }
code { font-size: .85em; background: #f2f2f2; }
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "TeX Gyre Termes Math",
  "DejaVu Math TeX Gyre", math; }
mtd[columnalign=right] { text-align: right; }
mtd[columnalign=left] { text-align: left; }
details { font-size: .7em; background: #fff8e5; padding: .3em 1em; }
footer { position: absolute; right: 2vmin; bottom: 1vmin; font-size: .5em; color: #777; }
</style></head><body>
$sections
</body></html>
""")


@dataclass
class Slide:
    heading: str = ""  # HTML, like the rest
    kind: str = "text"  # or "title", "exercise", "question", "figure", "print"
    shown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        notes = f"<details><summary>notes</summary>{''.join(self.notes)}</details>" if self.notes else ""
        return f"<h2>{self.heading}</h2><div>{''.join(self.shown)}</div>{notes}"


class _Renderer(IPythonRenderer):
    """Formulas as MathML, which browsers draw by themselves; pictures inside the page; links to the web only."""

    def inline_math(self, body: str, display: str = "inline") -> str:
        for pattern, replacement in TEX_REPLACEMENTS:
            body = re.sub(pattern, replacement, body)
        mathml = convert(body, display=display)
        if "\\" in mathml or ">&<" in mathml:  # latex2mathml passes through what it doesn't know
            raise ValueError(f"a formula can't be drawn: latex2mathml doesn't know all of {' '.join(body.split())}")
        return mathml

    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, url, title) if url.startswith("http") else text

    def image(self, text: str, url: str, title: str | None = None) -> str:
        picture = super().image(text, url, title)
        return picture if 'src="data:' in picture else text


def write_slides(notebook: str | Path, out: str | Path) -> int:
    """Write the slides of a notebook with stored outputs to an .html file; returns their number.

    Earlier slides are replaced, any other file is left alone. Raises ValueError if `out` isn't an .html file, if the
    notebook isn't one or has no outputs, or for a formula that can't be drawn; FileExistsError if `out` holds anything
    but slides.
    """
    notebook, out = Path(notebook).expanduser(), Path(out).expanduser()
    if out.suffix.lower() != ".html":
        raise ValueError(f"{out} isn't an .html file: slides are HTML, so give them a name that ends in .html")
    if out.exists() and not (out.is_file() and GENERATOR in out.read_text("utf-8", errors="replace")[:200]):
        raise FileExistsError(f"{out} exists and doesn't hold slides: name another file, or move that one away")
    nb = read_notebook(notebook)
    if not any(cell.get("outputs") for cell in nb.cells):
        raise ValueError(f"{notebook} has no stored outputs, so its slides would show no figures: run it first")
    made = slides(nb, notebook.parent)
    sections = "\n".join(
        f'<section class="{slide.kind}">{slide}<footer>{number} / {len(made)}</footer></section>'
        for number, slide in enumerate(made, start=1)
    )
    title = re.sub(r"<[^>]*>", "", made[0].heading)
    write_atomically(out, PAGE.substitute(title=title, generator=GENERATOR, sections=sections))
    return len(made)


def slides(nb: NotebookNode, folder: str | Path = ".") -> list[Slide]:
    """The slides of a notebook, in order. `folder` is where the notebook finds its pictures."""
    made = [Slide(kind="title")]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            _add_prose(made, _blocks(cell.source, str(folder), cell.get("attachments")))
        for output in cell.get("outputs", []):
            _add_output(made, output)
    return [slide for slide in made if slide.shown or slide.notes]


def _blocks(source: str, folder: str = ".", attachments: dict | None = None) -> list[tuple[str, str]]:
    """The kind of each block of Markdown (paragraph, formula, list, table, heading, …) and its HTML."""
    renderer = _Renderer(False, exclude_anchor_links=True, embed_images=True, path=folder, attachments=attachments)
    markdown = MarkdownWithMath(renderer)  # teaches the renderer tables
    markdown.renderer = None
    tokens, state = markdown.parse(source)
    assert isinstance(tokens, list)
    blocks = []
    for token in tokens:
        formula = any(part["type"] in ("block_math", "latex_environment") for part in token.get("children", []))
        blocks.append(("formula" if formula else token["type"], renderer.render_tokens([token], state)))
    return [(kind, text) for kind, text in blocks if text.strip()]


def _add(made: list[Slide], kind: str, shown: str) -> None:
    """Below what the last slide shows, if that is of this kind and not full; otherwise on a new slide."""
    lines = sum(1 + part.count("\n") + part.count("<tr") for part in [*made[-1].shown, shown])
    full = kind in ("question", "figure") or (kind == "print" and lines > LONGEST_PRINT)
    if made[-1].shown and (made[-1].kind != kind or full):
        made.append(Slide(made[-1].heading))
    made[-1].kind = kind
    made[-1].shown.append(shown)


def _add_prose(made: list[Slide], blocks: list[tuple[str, str]]) -> None:
    for (block, text), (following, _) in zip(blocks, [*blocks[1:], ("paragraph", "")]):
        kind = made[-1].kind if made[-1].kind in ("title", "exercise") else "text"
        if block == "heading":
            heading = re.sub(r"</?h\d[^>]*>", "", text).strip()
            if made[-1].heading:
                made.append(Slide(heading, "exercise" if heading.startswith("Exercise") else "text"))
            made[-1].heading = heading
        elif re.search("<strong>(Guess|Predict).</strong>", text):
            _add(made, "question", text)
        elif "<em>minutes so far" in text:
            continue
        elif kind != "text" or block != "paragraph" or following not in ("paragraph", "heading"):
            _add(made, kind, text)
        else:
            made[-1].notes.append(text)


def _add_output(made: list[Slide], output: NotebookNode) -> None:
    data, about = output.get("data", {}), output.get("metadata", {})
    if "image/png" in data:
        alt = html.escape(about.get("image/png", {}).get("alt", ""))
        _add(made, "figure", f'<img alt="{alt}" src="data:image/png;base64,{"".join(data["image/png"].split())}">')
    elif "text/html" in data:
        _add(made, "print", data["text/html"])
    elif "text/markdown" in data:
        _add(made, "print", "".join(text for _, text in _blocks(data["text/markdown"])))
    elif output.output_type == "stream":
        lines = [line for line in output.text.splitlines() if "%|" not in line and not line.endswith("not done yet.")]
        claims = [line for line in lines if line.startswith(("✓", "✗"))]
        others = "\n".join(line for line in lines if line not in claims).strip("\n")
        if others and others.count("\n") < LONGEST_PRINT:
            _add(made, "print", f"<pre>{html.escape(others)}</pre>")
        for claim in [f"<p>{html.escape(line)}</p>" for line in claims]:
            if made[-1].kind == "figure" and len(made[-1].shown) < MOST_CLAIMS:
                made[-1].shown.append(claim)
            else:
                _add(made, "print", claim)
