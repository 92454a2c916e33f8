"""The command line before anything runs: what it refuses, in one line and exit code 2, and what `--help` says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from maml_edu.__main__ import main
from maml_edu.experiments.arguments import COMMANDS, choices, parse
from maml_edu.experiments.config import DEFAULTS, OPTIONS, Config, flag
from maml_edu.experiments.method_registry import METHODS, methods_of
from maml_edu.experiments.settings import configure

RUNS = ("train", "evaluate", "compare", "navigate")
SMALLEST = {  # what each command can't do without, besides --out
    "train": ["--dataset", "sine", "--preset", "smoke"],
    "evaluate": ["--checkpoint", "sine_maml"],
    "compare": ["--dataset", "glyphs"],
    "navigate": [],
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """refused(argv) -> the one line on stderr; nothing is left on the disk, and nothing is built or trained."""
    monkeypatch.chdir(tmp_path)

    def run(argv):
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert err.startswith("maml_edu: ") and err.count("\n") == 1 and not out, (out, err)
        assert "Traceback" not in err and "[Errno" not in err
        assert not list(tmp_path.iterdir())
        return err

    return run


# --------------------------------------------------------------------------------------------------
# Bad values

NOT_ABOVE_ZERO = ("0", "-1", "nan", "inf")
BAD = {
    "ways": ("1", "0", "-3", "five", "10000000000"),
    "shots": ("0", "-1", "1.5"),
    "queries": ("0", "-1"),
    "test_shots": ("0", "-1"),
    "test_queries": ("0", "-1"),
    "trajectories": ("0", "1"),
    "steps": ("-1", "two"),
    "test_steps": ("-1",),
    "alpha": ("-1", "nan", "inf", "1e400", "much"),
    "alpha_lr": NOT_ABOVE_ZERO,
    "multi_step": ("-1",),
    "momentum": ("-0.1", "1", "nan"),
    "epsilon": NOT_ABOVE_ZERO,
    "keep": ("-1",),
    "strength": NOT_ABOVE_ZERO,
    "cg_steps": ("0",),
    "filters": ("0", "-2"),
    "tasks": ("0", "-1", "9" * 20),
    "iterations": ("0", "-1", "9" * 400),
    "lr": ("0", "-1", "nan", "inf"),
    "clip": NOT_ABOVE_ZERO,
    "test_tasks": ("0", "1", "-1"),
    "seed": ("-1", str(2**63), "9" * 400, "1e3"),
    "threads": ("0", "-1", "100000"),
    "dataset": ("imagenet", ""),
    "split": ("vinyals",),
    "method": ("maml++", ""),
    "methods": ("adam",),
    "init": ("zero",),
    "preset": ("enormous",),
    "schedule": ("linear",),
    "precision": ("float16",),
    "out": ("",),
}
TABLE = [(command, name, bad) for name, values in BAD.items() for bad in values for command in RUNS]
TABLE = [row for row in TABLE if row[0] in OPTIONS[row[1]].metadata["commands"]]


@pytest.mark.parametrize("command, name, bad", TABLE, ids=lambda value: str(value)[:12])
def test_every_bad_value_is_one_line_and_exit_code_2(command, name, bad, refused):
    assert flag(name) in refused([command, *SMALLEST[command], "--out", "run", f"{flag(name)}={bad}"])


def test_every_option_with_a_value_is_in_the_table():
    """Free text and switches apart: a device is refused by torch, a checkpoint by its file."""
    free = {"checkpoint", "device", "compile", "learn_alpha", "resume"}
    options = {name for name, o in OPTIONS.items() if set(o.metadata["commands"]) & set(RUNS)}
    assert options - free == set(BAD)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--dataset glyphs --method oracle", "--method oracle exists for --dataset sine only"),
        ("--dataset sine --method protomaml", "exists for --dataset omniglot or glyphs only"),
        ("--dataset sine --ways 3", "--ways means nothing for --dataset sine"),
        ("--dataset sine --filters 3", "--filters means nothing for --dataset sine"),
        ("--dataset sine --split lake", "--split means nothing for --dataset sine"),
        ("--dataset glyphs --init fan-in", "--init means nothing for --dataset glyphs"),
        ("--dataset sine --momentum 0.5", "--momentum changes nothing with --method maml"),
        ("--dataset sine --method joint --alpha 0.1", "--alpha changes nothing with --method joint"),
        ("--dataset glyphs --method prototypes --steps 2", "--steps changes nothing with --method prototypes"),
        ("--dataset sine --alpha-lr 0.1", "add --learn-alpha"),
        ("--dataset sine --multi-step 5", "and --steps is 1"),
        (
            "--dataset sine --method joint --multi-step 5 --learn-alpha",
            "--learn-alpha doesn't work with --method joint",
        ),
        ("--dataset sine --method anil --steps 2 --multi-step 5", "--multi-step doesn't work with --method anil"),
        ("--dataset sine --method reptile --learn-alpha", "it does with maml, fomaml, metasgd"),
        ("--dataset sine --method imaml --compile", "--compile doesn't work with --method imaml"),
        ("--dataset sine --method truncated --keep 7", "there are only 5 inner steps"),
        ("--dataset glyphs --ways 300", "300 ways need 300 different characters"),
        ("--dataset glyphs --ways 30", "30 ways need 30 different characters"),  # enough to train, not to validate
        ("--dataset glyphs --shots 15 --queries 6", "different drawings"),
        ("--dataset glyphs --split lake", "holds out whole alphabets"),
        ("--dataset sine --device toaster", "--device toaster is not available here"),
        ("--dataset sine --precision tf32 --device cpu", "--precision tf32 needs a CUDA device"),
        ("--dataset sine --iter 5", "unrecognized arguments: --iter 5"),  # no abbreviations
    ],
)
def test_settings_that_do_not_go_together(flags, message, refused):
    assert message in refused(["train", *flags.split(), "--out", "run"])


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "required: train|evaluate"),
        (["learn"], "invalid choice: 'learn'"),
        (["train"], "required: --out"),
        (["evaluate", "--out", "run"], "required: --checkpoint"),
        (["evaluate", "--out", "run", "--checkpoint", "sine_maml", "--alpha", "7"], "--alpha 7"),
        (["evaluate", "--out", "run", "--checkpoint", "sine_maml", "--resume"], "--resume"),
        (["evaluate", "--out", "run", "--checkpoint", "sine_maml", "--ways", "5"], "--ways means nothing"),
        (["evaluate", "--out", "run", "--checkpoint", "nothing"], "no checkpoint 'nothing'; shipped"),
        (["evaluate", "--out", "run", "--checkpoint", "navigation_maml"], "is a policy"),
        (["evaluate", "--out", "run", "--checkpoint", "sine_process"], "give --dataset"),
        (["navigate", "--out", "run", "--method", "reptile"], "invalid choice: 'reptile'"),
        (["train", "--out", "~nobody-by-this-name/run"], "--out"),
    ],
)
def test_wrong_usage_is_explained(argv, message, refused):
    assert message in refused(argv)


def test_an_unknown_preset_in_the_environment_is_named(refused, monkeypatch):
    monkeypatch.setenv("MAML_EDU_PRESET", "enormous")
    assert "MAML_EDU_PRESET='enormous' is no preset; choose smoke, quick or full" in refused(
        ["train", "--dataset", "sine", "--out", "run"]
    )


@pytest.mark.parametrize("size, message", [("4", "is 4, without RANK, MASTER_ADDR, MASTER_PORT"), ("many", "'many'")])
def test_what_a_cluster_left_in_the_environment_is_named(size, message, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    error = refused(["train", "--dataset", "sine", "--out", "run"])
    assert "WORLD_SIZE" in error and message in error


def test_a_table_is_made_by_one_process(refused, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "compare runs in one process" in refused(["compare", "--dataset", "glyphs", "--out", "run"])


# --------------------------------------------------------------------------------------------------
# Paths


@pytest.mark.parametrize("command", RUNS)
def test_a_home_in_any_path_is_meant(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    config = parse([command, *SMALLEST[command], "--out=~/runs/a"])
    assert config.out == tmp_path / "runs" / "a"
    if command == "evaluate":
        assert parse(["evaluate", "--checkpoint=~/a.pt", "--out=~/b"]).checkpoint == str(tmp_path / "a.pt")
        assert parse(["data", "--root=~/omniglot"]).root == tmp_path / "omniglot"
        assert parse(["handout", "~/course", "~/a.ipynb"]).notebooks == (tmp_path / "a.ipynb",)
        slides = parse(["slides", "~/a.ipynb", "~/a.html"])
        assert (slides.notebook, slides.out) == (tmp_path / "a.ipynb", tmp_path / "a.html")


@pytest.mark.parametrize("command", RUNS)
def test_a_file_or_the_home_is_no_place_for_a_run(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "file").write_text("mine")
    for out, message in (("~/file", "is a file; name a folder"), ("~", "is no place for a run"), ("/", "no place")):
        assert main([command, *SMALLEST[command], "--out", out]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main([command, *SMALLEST[command], "--out", "~/file/run"]) == 2
    assert "file" in (error := capsys.readouterr().err) and "[Errno" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


# --------------------------------------------------------------------------------------------------
# The same everywhere


def test_help_explains_every_option_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "None" not in text and "default: )" not in text
        for name, option in OPTIONS.items():
            if command in option.metadata["commands"] and command not in option.metadata.get("positional", {}):
                (line,) = re.findall(rf"  {flag(name)}(?: .*)?\n?.*", text)[:1]
                assert len(line.split()) > 3 and ("(default: " in line or name in ("out", "checkpoint")), line
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"{command} " in text and summary in text for command, summary in COMMANDS.items())


def test_help_says_what_a_preset_means(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "outer steps (default: sine 20 / 5000 / 70000; characters 20 / 600 / 60000)" in text
    assert "tasks per meta-batch (default: sine 25; characters 8 / 8 / 32)" in text
    for (kind, preset), settings in DEFAULTS.items():
        dataset = "sine" if kind == "sine" else "glyphs"
        config = configure("train", {"dataset": dataset, "preset": preset})
        assert {name: getattr(config, name) for name in ("iterations", "lr", "alpha")}.items() <= settings.items()
    assert all(name in text and entry.summary in text for name, entry in METHODS.items() if name in methods_of("train"))


def test_a_flag_means_the_same_in_every_command():
    assert {command: choices(command, "method") for command in ("train", "navigate")} == {
        "train": tuple(n for n, e in METHODS.items() if {"sine", "characters"} & set(e.build)),
        "navigate": ("maml", "fomaml", "joint", "dice", "ratio"),
    }
    for command in ("train", "compare", "navigate"):
        config = parse([command, *SMALLEST[command], "--out", "a", "--tasks", "3", "--iterations", "7", "--seed", "2"])
        assert (config.tasks, config.iterations, config.seed) == (3, 7, 2)


def test_the_help_needs_no_torch():
    program = "import sys; from maml_edu.__main__ import main; code = main(['train', '--help']); "
    program += "sys.exit(code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_never_fails_for_want_of_a_letter(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    run = subprocess.run([sys.executable, "-m", "maml_edu", "train", "--help"], env=environment, capture_output=True)
    assert run.returncode == 0 and not run.stderr and b"--momentum" in run.stdout


def test_an_interruption_before_anything_is_known_is_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("maml_edu.experiments.arguments._parser", interrupted)
    assert main(["train", "--out", "somewhere"]) == 130
    assert capsys.readouterr().err == "maml_edu: interrupted, nothing written\n"


def test_the_defaults_of_a_method_come_before_those_of_a_preset():
    adam, plain = (configure("train", {"dataset": "sine", "method": m}) for m in ("adam", "maml"))
    assert (adam.steps, plain.steps) == (5, 1)
    assert configure("train", {"dataset": "sine", "method": "adam", "steps": 2}).steps == 2
    assert configure("train", {"dataset": "glyphs"}).test_shots == 1
    assert configure("train", {"dataset": "glyphs", "shots": 3}).test_queries == 3
    assert isinstance(plain, Config) and hash(plain)


# --------------------------------------------------------------------------------------------------
# What is written down

ROOT = Path(__file__).resolve().parents[1]


def commands_written_down():
    """(where, what comes after `python -m maml_edu`), of every page and every notebook's text."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("notebooks/**/*.md")]:
        yield from ((path.name, c) for c in commands_in(path.read_text(encoding="utf-8")))
    for path in ROOT.glob("notebooks/*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                yield from ((path.name, c) for c in commands_in("".join(cell["source"])))


def commands_in(text):
    """A line that ends in a backslash goes on."""
    return re.findall(r"-m maml_edu ([^`\n#]+)", re.sub(r"\\\n\s*", "", text))


@pytest.mark.parametrize("where, command", sorted(set(commands_written_down())))
def test_every_command_that_is_written_down_makes_sense(where, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if "--help" not in words and not set(words) & {"…", "|"}:  # those name the command, without its flags
        assert parse(words).command == words[0]
