"""Slides: what is shown, what is a note, and that a page needs neither network nor script nor other files."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from maml_edu.classroom.slides import LONGEST_PRINT, slides, write_slides

PATHS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def printed(text):
    return new_output("stream", text=text)


def figure(alt=""):
    return new_output("display_data", {"image/png": PNG}, metadata={"image/png": {"alt": alt}})


def of(*cells):
    """The slides of a notebook with these cells; a string is Markdown."""
    return slides(new_notebook(cells=[new_markdown_cell(c) if isinstance(c, str) else c for c in cells]))


class Page(HTMLParser):
    """What a browser would fetch or run by itself, and how many formulas it would draw."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.formulas, self.scripts = [], 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.formulas += tag == "math"
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attributes)
        loads = ("src", "srcset", "poster", "data") + (("href",) if tag in ("link", "image", "use", "base") else ())
        self.fetched += [value for name, value in attributes if name in loads]


# ---------------------------------------------------------------- the notebooks of the series


@pytest.mark.parametrize("path", PATHS, ids=[path.stem[:2] for path in PATHS])
def test_slides_need_no_network_and_no_file_beside_them(path, tmp_path):
    out = tmp_path / "slides.html"
    number = write_slides(path, out)
    text = out.read_text(encoding="utf-8")
    page, nb = Page(text), nbformat.read(path, as_version=4)
    pictures = [o for cell in nb.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(page.fetched) == len(pictures)
    assert all(url.startswith("data:image/png;base64,") for url in page.fetched)
    assert page.scripts == 0 and not re.search(r"@import|url\(", text)
    assert text.count("<section ") == number == text.count("</section>")
    assert page.formulas > 0 and "merror" not in text
    prose = re.sub(r'(?s)<code.*?</code>|<pre.*?</pre>|<style.*?</style>|alt="[^"]*"', "", text)
    assert "$" not in prose and "\\" not in prose  # no formula was left as TeX
    assert [p.name for p in tmp_path.iterdir()] == ["slides.html"]

    shown = slides(nb)
    source = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    headings = {slide.heading for slide in shown}
    assert set(re.findall(r"(?m)^### (Exercise .*)$", source)) <= headings
    sections = {re.sub(r"[`$].*", "", text) for text in re.findall(r"(?m)^## (.*)$", source)}
    assert all(any(heading.startswith(section) for heading in headings) for section in sections)
    assert sum(slide.kind == "question" for slide in shown) == len(re.findall(r"\*\*(Guess|Predict)\.\*\*", source))
    assert shown[0].kind == "title" and shown[0].heading.startswith(path.name[:2])


# ---------------------------------------------------------------- what is shown


def test_prose_is_a_note_and_claims_are_below_their_figure():
    title, step, question, picture, numbers, points = of(
        "# 01 · Title\n\nWhat it is about.",
        "## 1 · First\n*minutes so far: 0*\n\nLong prose.\n\nThe step is\n\n$$\\theta - \\alpha g$$\n\nMore prose.",
        "**Guess.** Up or down?",
        new_code_cell("draw()", outputs=[figure('a "b"'), printed("✓ it rises\n")]),
        new_code_cell(
            "show()", outputs=[printed("training 100%|███|\nα  0.1\n✓ it holds\nExercise 1.1: not done yet.\n")]
        ),
        "Down. [02](02.ipynb) says [why](https://example.org).\n\nTwo points:\n- one\n- two",
    )
    assert title.heading == "01 · Title" and "What it is about." in title.shown[0]
    assert step.heading == question.heading == "1 · First"
    assert "The step is" in step.shown[0] and "<math" in step.shown[1] and len(step.shown) == 2
    assert "Long prose" in step.notes[0] and "More prose" in step.notes[1] and "minutes" not in str(step)
    assert question.kind == "question" and "Up or down?" in question.shown[0]
    assert picture.kind == "figure" and "a &quot;b&quot;" in picture.shown[0] and "it rises" in picture.shown[1]
    assert numbers.shown == ["<pre>α  0.1</pre>", "<p>✓ it holds</p>"]
    assert "Down. 02 says" in numbers.notes[0] and 'href="https://example.org"' in numbers.notes[0]
    assert "Two points:" in points.shown[0] and "<li>one</li>" in points.shown[1]
    assert "<details>" in str(step) and "<details>" not in str(points)


def test_an_exercise_is_shown_with_all_its_text():
    _, exercise = of("# T\n\ntext", "### Exercise 1.1 · Try\nDifficulty ●○○\n\nDo this.\n\nAnd that.")
    assert exercise.kind == "exercise" and len(exercise.shown) == 3 and not exercise.notes


def test_a_heading_with_nothing_below_it_has_no_slide():
    made = of("# T\n\ntext", "## 1 · Nothing", "## 2 · A note\n\nprose")
    assert [slide.heading for slide in made] == ["T", "2 · A note"]


def test_prints_share_a_slide_until_it_is_full_and_long_ones_are_left_out():
    def lines(n):
        return new_code_cell("", outputs=[printed("\n".join("x" * n))])

    made = of("# T\n\ntext", lines(6), lines(6), lines(6), lines(LONGEST_PRINT), lines(LONGEST_PRINT + 1))
    assert [len(slide.shown) for slide in made] == [1, 2, 1, 1]
    claims = new_code_cell("", outputs=[figure(), printed("✓ so\n" * 20)])
    _, picture, rest = of("# T\n\ntext", claims)
    assert len(picture.shown) == 6 and len(rest.shown) == 15


def test_tables_and_markdown_of_a_cell_are_shown():
    table = new_output("display_data", {"text/html": "<table><tr><td>1</td></tr></table>"})
    note = new_output("display_data", {"text/markdown": "*two* $x$"})
    _, made = of("# T\n\ntext", new_code_cell("", outputs=[table, note]))
    assert "<table>" in made.shown[0] and "<em>two</em>" in made.shown[1] and "<math" in made.shown[1]


def test_pictures_in_markdown_are_part_of_the_page(tmp_path):
    (tmp_path / "here.png").write_bytes(b"picture")
    cell = new_markdown_cell(
        "# T\n\n![a](here.png) ![far](https://example.org/b.png) ![gone](c.png) ![d](attachment:d.png)"
    )
    cell.attachments = {"d.png": {"image/png": PNG}}
    (title,) = slides(new_notebook(cells=[cell]), tmp_path)
    fetched = Page(title.shown[0]).fetched
    assert len(fetched) == 2 and all(url.startswith("data:image/png;base64,") for url in fetched)
    assert "far" in title.shown[0] and "gone" in title.shown[0]


@pytest.mark.parametrize(
    "tex, mathml",
    [
        (r"$$\begin{aligned}a &= b \\ c &= d\end{aligned}$$", "<mtable"),
        (r"\begin{align}a &= b\end{align}", "<mtable"),
        (r"$\arg\min_x$", "arg"),
        (r"$\mathbb E[x]$", "&#x1D53C;"),
        (r"$\mathcal T$", "&#x1D4AF;"),
        (r"$\sin\theta + \cos x$", "<mspace"),
    ],
)
def test_formulas_that_need_help_are_drawn(tex, mathml):
    (title,) = of(f"# T\n\n{tex}")
    assert mathml in title.shown[0] and "\\" not in title.shown[0]


def test_a_formula_that_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"a formula can't be drawn: .*nosuchcommand"):
        of("# T\n\n$\\nosuchcommand x$")


# ---------------------------------------------------------------- the file


@pytest.fixture
def lesson(tmp_path):
    path = tmp_path / "lesson.ipynb"
    cells = [new_markdown_cell("# T\n\ntext"), new_code_cell("", outputs=[printed("2")])]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_slides_are_written_and_written_again(lesson, tmp_path):
    out = tmp_path / "new" / "slides.HTML"
    assert write_slides(lesson, out) == 2
    first = out.read_text(encoding="utf-8")
    assert write_slides(lesson, out) == 2 and out.read_text(encoding="utf-8") == first
    assert first.count("<section") == 2 and "<title>T</title>" in first and "2 / 2" in first


@pytest.mark.parametrize("target", ["lesson.ipynb", "other.ipynb", "lesson", "lesson.py"])
def test_a_target_of_another_kind_is_refused(target, lesson):
    out = lesson.with_name(target)
    before = out.read_bytes() if out.exists() else None
    with pytest.raises(ValueError, match="isn't an .html file"):
        write_slides(lesson, out)
    assert (out.read_bytes() if out.exists() else None) == before


@pytest.mark.parametrize("kind", ["page", "notebook", "link to the notebook", "folder", "bytes"])
def test_an_html_file_that_holds_something_else_is_left_alone(kind, lesson):
    out = lesson.with_name("mine.html")
    if kind == "folder":
        out.mkdir()
    elif kind == "link to the notebook":
        out.symlink_to(lesson)
    else:
        out.write_bytes({"page": b"<html>mine</html>", "notebook": lesson.read_bytes(), "bytes": b"\xff\xfe"}[kind])
    before = lesson.read_bytes()
    with pytest.raises(FileExistsError, match="exists and doesn't hold slides: name another file"):
        write_slides(lesson, out)
    assert lesson.read_bytes() == before and not (out.is_file() and "section" in out.read_text(errors="replace"))


@pytest.mark.parametrize(
    "content, error, message",
    [
        (None, FileNotFoundError, "there is no notebook"),
        ("name,grade", ValueError, "isn't a notebook that can be read"),
        (nbformat.writes(new_notebook(cells=[new_code_cell("1")])), ValueError, "no stored outputs, .* run it first"),
    ],
)
def test_a_source_without_slides_is_named_and_nothing_is_written(content, error, message, tmp_path):
    source = tmp_path / "a.ipynb"
    if content is not None:
        source.write_text(content)
    with pytest.raises(error, match=message):
        write_slides(source, tmp_path / "slides.html")
    assert not (tmp_path / "slides.html").exists()
