"""The guide for teachers says what is there: minutes of the notebooks, messages of the checks, measured numbers."""

import contextlib
import io
import json
import re
import shlex

import pytest
import torch

from maml_edu.classroom.exercises import registry
from tools.guide_tables import GUIDE, MEASURED, ROOT, TABLES, between, notebooks


def test_every_kernel_stays_below_the_limit_that_the_guide_gives():
    kernels = json.loads(MEASURED.read_text(encoding="utf-8"))["kernels"]
    gibibytes = float(re.search(r"Allow ([\d.]+) GiB per kernel", GUIDE.read_text(encoding="utf-8"))[1])
    assert max(one["peak_mib"] for one in kernels.values()) < 0.85 * gibibytes * 1024


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_notebooks_and_of_the_measurement(name):
    text = GUIDE.read_text(encoding="utf-8")
    start, end = between(text, name)
    assert text[start:end] == TABLES[name](), "python tools/guide_tables.py renews it"


def test_quoted_messages_are_those_of_the_checks():
    text = GUIDE.read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (\d+\.\d+) \| .*? \| (.*) \|$", text)
    assert len(rows) >= 10
    for number, message in rows:
        assert message in registry()[number].mistakes, f"{number}: {message}"
    named = re.findall(r"(\d+\.\d) \(([^)]+)\)", text)
    assert named and all(registry()[number].title == title for number, title in named)


def test_the_example_of_a_check_prints_what_it_says():
    code, printed = re.search(
        r"```python\n(.*?)```\n+```text\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    ).groups()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue() == printed


def test_the_numbers_of_the_answers_are_those_stored_or_derived():
    from maml_edu.data.sine import SineTasks
    from maml_edu.experiments.published import PUBLISHED_OMNIGLOT
    from maml_edu.experiments.results import read_results

    text, found = GUIDE.read_text(encoding="utf-8"), read_results(ROOT / "notebooks" / "results")
    for method in ("maml", "joint"):
        for score in found[f"sine_5shot_{method}"]["per_step"][:2]:
            assert f"{score['mean']:.2f} ± {score['half_width']:.2f}" in text
    for name in ("Reptile", "Reptile, transductive"):
        assert f"{PUBLISHED_OMNIGLOT[name][0][0]:.2f} %" in text
    assert f"The product is {-SineTasks().mean_function(torch.zeros(())).item():.3f}" in text
    for power, settles, loss in ((2, "−0.885", "0.028"), (1, "−0.4", "0.059")):
        h, c, alpha = (1.0, 3.0), (-1.0, 1.0), 0.3
        weights = [k * (1 - alpha * k) ** power for k in h]
        theta = sum(w * m for w, m in zip(weights, c)) / sum(weights)
        mean_loss = sum(0.5 * k * ((1 - alpha * k) * (theta - m)) ** 2 for k, m in zip(h, c)) / 2
        assert abs(theta - float(settles.replace("−", "-"))) < 5e-4 and abs(mean_loss - float(loss)) < 5e-4
        assert settles in text and loss in text


def test_links_and_sections_exist():
    text, books = GUIDE.read_text(encoding="utf-8"), notebooks()
    for target in set(re.findall(r"\]\((?!http)([^)#]+)\)", text)):
        assert (GUIDE.parent / target).exists(), target
    for number, section in re.findall(r"\b([01]\d) §(\d+)", text):
        assert int(section) in books[number][2], f"{number} §{section}"


def test_its_commands_are_understood():
    from maml_edu.experiments.arguments import parse

    found = re.findall(r"(?m)^ *(?:\w+=\S+ )*python -m maml_edu (.*)$", GUIDE.read_text(encoding="utf-8"))
    assert {command.split()[0] for command in found} >= {"handout", "slides", "data"}
    for command in found:
        parse(shlex.split(command))
    for script in re.findall(r"(?m)^python (tests/\S+)", GUIDE.read_text(encoding="utf-8")):
        assert (ROOT / script).exists()
