"""Slides from a notebook: one HTML file that needs no network, no reveal.js and no MathJax.

What goes on a slide is decided by rule, so notebooks carry no marks for it:

- the title and the contract; every section and sub-section with its heading;
- lists, tables and display formulas, each with the paragraph that leads up to it;
- what begins with **Predict.** or **Planned failure.**, the former on a slide of its own; exercises with their text;
- figures, tables and printed numbers as they are stored, and the claims below the figure they belong to.

All other paragraphs are notes: key N shows those of the slide. Code is left out.
"""

from __future__ import annotations

import functools
import html
import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from maml_edu.data.atomic_write import write_whole

LONGEST_PRINT = 16  # lines of a print that are shown on a slide; a longer one is for reading
LONGEST_TABLE = 10  # rows of a table on one slide; more rows go on the next
LONGEST_LINE = 100  # characters; a print with longer lines wraps them
# What the converter of formulas does not know, and what it does know: patterns and replacements.
FOR_THE_CONVERTER = (
    (r"\\arg(?![a-z])", r"\\operatorname{arg}"),
    (r"\{aligned\}", "{split}"),
    (r"\\(mathbb|mathcal|mathrm)\s*([A-Za-z])", r"\\\1{\2}"),
    (r"\\(sin|cos|tanh|ln)\s*(?=[a-zA-Z]|\\[a-z]+(?<!big)(?<!Big)(?<!left)(?![a-zA-Z]))", r"\\\1\\,"),  # a thin space
)


@dataclass
class Slide:
    heading: str
    body: list[str] = field(default_factory=list)  # HTML
    notes: list[str] = field(default_factory=list)  # HTML
    kind: str = "text"  # or title, question, figure, print


def write_slides(notebook: str | Path, out: str | Path) -> int:
    """Write the slides of a notebook with stored outputs to one HTML file; returns their number."""
    nb = nbformat.read(notebook, as_version=4)
    if not any(cell.get("outputs") for cell in nb.cells):
        raise ValueError(f"{notebook} has no stored outputs, so its slides would have no figures: run it first")
    shown = slides(nb)
    write_whole(out, _page(shown))
    return len(shown)


def slides(nb: nbformat.NotebookNode) -> list[Slide]:
    """The slides of a notebook, in order; those that would be empty but for their heading are left out."""
    made = [Slide("", kind="title")]
    section = ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            section = _add_text(made, cell.source, section)
        else:
            _add_outputs(made, cell.get("outputs", []), section)
    full: list[Slide] = []
    for slide in made:
        if slide.body or slide.kind == "title" or not full:
            full.append(slide)
        else:
            full[-1].notes += slide.notes
    return full


def _add_text(made, source, section):
    """Sort the blocks of a markdown cell into slides and notes; returns the heading for what follows."""
    blocks, around = _blocks(source), section
    for block, after in zip(blocks, [*blocks[1:], ""]):
        if heading := re.match(r"(#+)\s+(.*)", block):
            section = heading[2]
            around = around if section.startswith("Exercise") else section
            if len(heading[1]) > 1:
                made.append(Slide(section))
            else:
                made[-1].heading = section
            continue
        if re.fullmatch(r"\*minutes so far: \d+\*", block):
            continue
        has_table = any("<table" in part for part in made[-1].body)
        second_table = has_table and (block.startswith("|") or after.startswith("|"))
        if (made[-1].kind in ("figure", "print", "question") and _is_shown(block, after)) or second_table:
            made.append(Slide(section))
        if "**Predict.**" in block:
            lead, question = block.split("**Predict.**", 1)
            if lead.strip():
                made[-1].notes.append(_html(lead))
            made.append(Slide(section, [_html("**Predict.**" + question)], kind="question"))
        elif _is_shown(block, after) or made[-1].kind == "title" or section.startswith("Exercise"):
            made[-1].body.append(_html(block))
        else:
            made[-1].notes.append(_html(block))
    return around


def _blocks(source):
    """Paragraphs, lists, tables, formulas and headings, each as a string of its own."""
    source = re.sub(r"(?m)^(#+ .*|\*minutes so far: \d+\*)$", r"\n\1\n", source)
    source = re.sub(r"(?s)\$\$.*?\$\$", lambda m: "\n\n" + re.sub(r"\n\s*\n", "\n", m[0]) + "\n\n", source)
    source = re.sub(r"(?m)^(?![-|*#\d\s])(.+)\n(?=- |\| )", r"\1\n\n", source)  # a paragraph, a list at its heels
    blocks = [block.strip() for block in re.split(r"\n\s*\n", source) if block.strip(" \n.,;")]
    return [part for block in blocks for part in _parts(block)]


def _parts(block):
    """A long table in several, each with the head of the first."""
    if not block.startswith("|"):
        return [block]
    head, rows = block.splitlines()[:2], block.splitlines()[2:]
    return ["\n".join(head + rows[i : i + LONGEST_TABLE]) for i in range(0, len(rows), LONGEST_TABLE)]


def _is_shown(block, after):
    if re.match(r"(- |\* |\d+\. |\||\$\$|!\[)", block):
        return True
    if re.match(r"(Difficulty|\*\*(Predict|Planned failure))", block):
        return True
    return after.startswith(("$$", "- ", "|"))


def _add_outputs(made, outputs, section):
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            alt = html.escape(output.metadata.get("image/png", {}).get("alt", ""), quote=True)
            picture = f'<img alt="{alt}" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
            made.append(Slide(section, [picture], kind="figure"))
        elif "text/html" in data:
            made.append(Slide(section, ["".join(data["text/html"])], kind="print"))
        elif "text/markdown" in data:
            made.append(Slide(section, [_html("".join(data["text/markdown"]))], kind="print"))
        elif output.output_type == "stream":
            _add_print(made, output.text, section)


def _add_print(made, text, section):
    lines = [line for line in text.splitlines() if "%|" not in line and not line.endswith("not done yet.")]
    claims = [line for line in lines if line.startswith(("✓", "✗"))]
    others = "\n".join(line for line in lines if line not in claims).strip("\n")
    if others and others.count("\n") < LONGEST_PRINT:
        last = made[-1]
        room = LONGEST_PRINT - sum(part.count("\n") + 2 for part in last.body) - others.count("\n")
        if last.kind != "print" or last.heading != section or last.notes or room <= 0:
            made.append(Slide(section, kind="print"))
        long = ' class="long"' if max(map(len, others.splitlines())) > LONGEST_LINE else ""
        made[-1].body.append(f"<pre{long}>{html.escape(others)}</pre>")
    if claims:
        if made[-1].kind not in ("figure", "print"):
            made.append(Slide(section, kind="print"))
        made[-1].body += [f'<p class="claim">{html.escape(line)}</p>' for line in claims]


@functools.cache
def _markdown():
    """Markdown to HTML, formulas as MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    def mathml(tex, display):
        for unknown, known in FOR_THE_CONVERTER:
            tex = re.sub(unknown, known, tex)
        found = convert(tex, display=display)
        if "\\" in found or ">&<" in found:  # what it does not know it passes through
            raise ValueError(f"this formula cannot be shown on a slide: {tex.strip()}")
        return found

    class Renderer(IPythonRenderer):
        def block_math(self, body):
            return mathml(body, "block")

        def inline_math(self, body):
            return mathml(body, "inline")

        def link(self, text, url, title=None):
            return super().link(text, url, title) if url.startswith("http") else text  # no notebook beside a slide

    return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True))


def _html(text):
    return _markdown().render(text)


def _page(shown):
    sections = []
    for number, slide in enumerate(shown, start=1):
        level = 1 if slide.kind == "title" else 2
        heading = re.sub(r"^<p>|</p>$", "", _html(slide.heading).strip())
        notes = f"<aside>{''.join(slide.notes)}</aside>" if slide.notes else ""
        body = f'<div class="body">{"".join(slide.body)}</div>'
        foot = f"<footer>{number} / {len(shown)}{' · N: notes' if slide.notes else ''}</footer>"
        inner = f"<h{level}>{heading}</h{level}>{body}{notes}{foot}"
        sections.append(f'<section class="{slide.kind}" id="slide-{number}">{inner}</section>')
    title = html.escape(re.sub(r"[$\\]", "", shown[0].heading))
    return _PAGE.replace("{title}", title).replace("{slides}", "\n".join(sections))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
* { box-sizing: border-box; }
body { margin: 0; background: #444; font: 30px/1.4 "Helvetica Neue", Arial, sans-serif; color: #111; }
section { display: none; position: fixed; left: 50%; top: 50%; width: 1280px; height: 720px; background: white;
  padding: 40px 60px 50px; overflow: hidden; transform: translate(-50%, -50%) scale(var(--scale, 1)); }
section.current { display: flex; flex-direction: column; }
h1 { font-size: 1.7em; margin: 0 0 .4em; color: #0072B2; }
h2 { font-size: 1.15em; margin: 0 0 .6em; color: #0072B2; }
.body { flex: 1; min-height: 0; display: flex; flex-direction: column; justify-content: center; font-size: 1em; }
.body > * { flex-shrink: 0; margin: .35em 0; }
.title .body > * { margin: .25em 0; }
.figure .body { align-items: center; }
.figure .body img { flex: 1 1 0; min-height: 200px; max-width: 100%; object-fit: contain; }
.question .body { font-size: 1.25em; padding: 0 .5em; border-left: 12px solid #E69F00; }
pre { font: .8em/1.35 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre.long { white-space: pre-wrap; }
.claim { margin: .1em 0 !important; }
.figure .claim { font-size: .75em; }
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math; }
table { border-collapse: collapse; font-size: .75em; align-self: center; }
td, th { padding: .2em .7em; border-bottom: 1px solid #ccc; text-align: left; }
code { font-size: .85em; background: #f2f2f2; padding: 0 .2em; }
mtd[columnalign="right"] { text-align: right; }
mtd[columnalign="left"] { text-align: left; }
math[display="block"] { margin: .3em 0; font-size: 1.1em; }
aside { display: none; position: absolute; inset: auto 0 0 0; max-height: 55%; overflow: auto; padding: 10px 60px;
  background: #fff8e5; border-top: 3px solid #E69F00; font-size: .68em; }
.with-notes aside { display: block; }
footer { position: absolute; right: 24px; bottom: 12px; font-size: .5em; color: #777; }
@media print {
  @page { size: 1280px 720px; margin: 0; }
  section, section.current { display: flex; flex-direction: column; position: relative; left: 0; top: 0;
    transform: none; break-after: page; }
}
</style>
</head>
<body>
{slides}
<script>
const all = [...document.querySelectorAll("section")];
let at = 0;
function fit(slide) {  // text that does not fit gets smaller, down to half
  const body = slide.querySelector(".body");
  for (let size = 1; size > 0.5; size -= 0.05) {
    if (body.scrollHeight <= body.clientHeight && body.scrollWidth <= body.clientWidth) break;
    body.style.fontSize = size - 0.05 + "em";
  }
}
function go(to) {
  all[at].classList.remove("current");
  at = Math.max(0, Math.min(all.length - 1, to));
  all[at].classList.add("current");
  fit(all[at]);
  history.replaceState(null, "", "#" + (at + 1));
}
function scale() {
  document.body.style.setProperty("--scale", Math.min(innerWidth / 1280, innerHeight / 720));
}
addEventListener("keydown", (event) => {
  const steps = { ArrowRight: 1, PageDown: 1, " ": 1, Enter: 1, ArrowLeft: -1, PageUp: -1, Home: -1e9, End: 1e9 };
  if (event.key in steps) { go(at + steps[event.key]); event.preventDefault(); }
  if (event.key === "n" || event.key === "N") document.body.classList.toggle("with-notes");
});
addEventListener("click", (event) => { if (!event.target.closest("a, aside")) go(at + 1); });
addEventListener("resize", scale);
addEventListener("hashchange", () => go(parseInt(location.hash.slice(1)) - 1 || 0));
addEventListener("beforeprint", () => all.forEach((slide) => { slide.classList.add("current"); fit(slide); }));
addEventListener("afterprint", () => { all.forEach((slide) => slide.classList.remove("current")); go(at); });
scale();
go(parseInt(location.hash.slice(1)) - 1 || 0);
</script>
</body>
</html>
"""
