"""Renew the tables of notebooks/teaching_guide.md from notebooks and measurement: `python tools/guide_tables.py`."""

import json
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "notebooks" / "teaching_guide.md"
MEASURED = ROOT / "benchmarks" / "notebooks.json"
STUDENTS, CORES = 30, 8

# Plans for one session: (notebook, section, minutes where exercises are left out, what is left out).
FIRST_HOUR = [
    ("01", 1, None, ""),
    ("01", 2, None, ""),
    ("01", 3, None, ""),
    ("01", 4, None, ""),
    ("01", 5, None, ""),
    ("01", 6, None, ""),
    ("02", 2, None, ""),
]
PLANS = {
    50: FIRST_HOUR,
    90: [
        *FIRST_HOUR,
        ("02", 3, None, ""),
        ("02", 5, 6, "exercises 2.2, 2.3"),
        ("02", 6, None, ""),
        ("02", 7, 4, "exercise 2.4"),
        ("03", 2, 6, "exercise 3.1"),
        ("04", 1, 6, "exercise 4.1"),
        ("04", 2, None, ""),
    ],
    180: [
        ("01", 1, None, ""),
        ("01", 2, None, ""),
        ("01", 3, None, ""),
        ("01", 4, None, ""),
        ("01", 5, None, ""),
        ("01", 6, None, ""),
        ("01", 9, None, ""),
        ("02", 2, None, ""),
        ("02", 3, None, ""),
        ("02", 5, 6, "exercises 2.2, 2.3"),
        ("02", 6, None, ""),
        ("02", 7, None, ""),
        ("break", 0, 15, ""),
        ("03", 2, None, ""),
        ("03", 5, None, ""),
        ("03", 6, None, ""),
        ("04", 1, 6, "exercise 4.1"),
        ("04", 2, None, ""),
        ("04", 3, None, ""),
        ("05", 1, None, ""),
        ("05", 2, 5, "exercise 5.1"),
        ("05", 5, None, ""),
        ("05", 6, None, ""),
    ],
}
# Four weeks of 90 minutes: per week the notebooks, and which of their sections are for the class.
UNIT = [
    {"00": (1, 2, 3, 4), "01": (1, 2, 3, 4, 5, 6), "02": (2, 3, 4)},
    {"03": (1, 2, 3, 5, 6), "04": (1, 2, 3)},
    {"05": (1, 2, 3, 6), "06": (1, 2, 3, 4)},
    {"07": (1, 2, 3, 6, 7), "08": (2, 3, 6)},
]
# Each elective in a class of 50 minutes: these sections; the others at home.
ELECTIVES = {
    "09": (1, 2, 3, 5, 7),
    "10": (1, 3, 5, 6, 7),
    "11": (1, 2, 3, 5),
    "12": (1, 2, 3, 6, 7),
    "13": (1, 3, 4, 5, 6),
    "14": (1, 3, 5, 6),
}


def notebooks():
    """By number: name of the file, minutes in all, and per section its title, minutes and exercises."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        text = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
        total = int(re.search(r"(\d+) minutes", text[0])[1])
        starts = re.findall(r"(?m)^## (\d+) · (.*)\n\*minutes so far: (\d+)\*", "\n\n".join(text))
        ends = [int(minutes) for _, _, minutes in starts[1:]] + [total]
        parts = re.split(r"(?m)^## \d+ · .*\n\*minutes so far: \d+\*", "\n\n".join(text))[1:]
        exercises = [re.findall(r"(?m)^### Exercise (\S+)", part) for part in parts]
        sections = {int(n): (title, end - int(s), e) for (n, title, s), end, e in zip(starts, ends, exercises)}
        found[path.name[:2]] = (path.name, total, sections)
    return found


def plan_table(length):
    books, used = notebooks(), 0
    lines = ["| section | without | minutes |", "|---|---|---|"]
    for number, section, minutes, without in PLANS[length]:
        if number == "break":
            lines.append(f"| break | | {minutes} |")
        else:
            name, _, sections = books[number]
            title, whole, exercises = sections[section]
            assert set(re.findall(r"\d\.\d", without)) <= set(exercises), f"{without} is not in {number} §{section}"
            assert minutes is None or minutes <= whole, f"{number} §{section} has only {whole} minutes"
            minutes = whole if minutes is None else minutes
            lines.append(f"| [{number}]({name}) §{section} · {title} | {without} | {minutes} |")
        used += minutes
    assert used < length, f"the plan for {length} minutes has {used}"
    return "\n".join([*lines, f"| questions | | {length - used} |"]) + "\n"


def unit_table():
    books = notebooks()
    lines = ["| week | in class | minutes | at home | minutes |", "|---|---|---|---|---|"]
    for week, chosen in enumerate(UNIT, start=1):
        here = {n: [s for s in books[n][2] if s in sections] for n, sections in chosen.items()}
        there = {n: [s for s in books[n][2] if s not in sections] for n, sections in chosen.items()}
        minutes = [sum(books[n][2][s][1] for n, some in part.items() for s in some) for part in (here, there)]
        assert minutes[0] < 90, f"week {week} has {minutes[0]} minutes in class"
        cells = ["; ".join(f"{n} §{_ranges(some)}" for n, some in part.items() if some) for part in (here, there)]
        lines.append(f"| {week} | {cells[0]} | {minutes[0]} | {cells[1]} | {minutes[1]} |")
    return "\n".join(lines) + "\n"


def electives_table():
    books = notebooks()
    lines = ["| elective | in class | minutes | at home | minutes |", "|---|---|---|---|---|"]
    for number, chosen in ELECTIVES.items():
        name, _, sections = books[number]
        parts = [chosen, [s for s in sections if s not in chosen]]
        minutes = [sum(sections[s][1] for s in part) for part in parts]
        assert minutes[0] < 50, f"{number} has {minutes[0]} minutes in class"
        cells = [f"§{_ranges(part)}" for part in parts]
        lines.append(f"| [{number}]({name}) | {cells[0]} | {minutes[0]} | {cells[1]} | {minutes[1]} |")
    return "\n".join(lines) + "\n"


def _ranges(numbers):
    """1, 2, 3, 6 -> "1–3, 6"."""
    runs = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)


def guesses_table():
    """The answers as the stored notebooks print them, in the order of their letters."""
    lines = ["| notebook | answers |", "|---|---|"]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        printed = "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))
        if answers := sorted(re.findall(r"(?m)^Guess \d+\.([a-z]+): it's (.+)\.$", printed)):
            lines.append(f"| {path.name[:2]} | {', '.join(f'{letter} **{answer}**' for letter, answer in answers)} |")
    return "\n".join(lines) + "\n"


def machine_table():
    """Measured by tools/measure_notebooks.py, and multiplied by the number of students."""
    stored = json.loads(MEASURED.read_text(encoding="utf-8"))
    lines = [
        f"| kernel | peak memory | CPU time | memory of {STUDENTS} | CPU time of {STUDENTS} on {CORES} cores |",
        "|---|---|---|---|---|",
    ]
    for name, one in stored["kernels"].items():
        peak, seconds = one["peak_mib"], one["cpu_seconds"]
        memory, minutes = peak * STUDENTS / 1024, seconds * STUDENTS / CORES / 60
        shown = name.removesuffix(".ipynb")[:2] if name.endswith(".ipynb") else name
        lines.append(f"| {shown} | {peak:,} MiB | {seconds:.0f} s | {memory:.0f} GiB | {minutes:.1f} min |")
    shared = stored["kernels"]["imports only"]["shared_mib"]
    lines += [
        "",
        f"About {shared} MiB of each kernel's memory are pages of library files, and a machine holds those once for "
        "everybody.",
    ]
    where = stored["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines += ["", f"Preset {stored['preset']}; {where['hardware']}; {versions}; {where['date']}; `{where['command']}`."]
    return "\n".join(lines) + "\n"


TABLES = {
    **{f"plan {length}": lambda length=length: plan_table(length) for length in PLANS},
    "unit": unit_table,
    "electives": electives_table,
    "guesses": guesses_table,
    "machine": machine_table,
}


def between(text, name):
    start = text.index(f"<!-- {name} -->\n") + len(f"<!-- {name} -->\n")
    return start, text.index(f"<!-- /{name} -->")


def write() -> None:
    """Put every table in its place."""
    for name, table in TABLES.items():
        text = GUIDE.read_text(encoding="utf-8")
        start, end = between(text, name)
        GUIDE.write_text(text[:start] + table() + text[end:], encoding="utf-8")


if __name__ == "__main__":
    write()
