"""Results as JSON: the form that the notebooks read, written whole or not at all."""

import json
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.inner_loops import RUNS
from maml_edu.engine import distributed
from maml_edu.evaluation import StepScore
from maml_edu.experiments.arguments import parse
from maml_edu.experiments.results import (
    headline,
    omniglot_runs,
    over_seeds,
    provenance,
    read_result,
    read_results,
    result,
    typed,
    write_result,
)

ROOT = Path(__file__).resolve().parents[1]
STORED = sorted((ROOT / "notebooks" / "results").glob("*.json"))
SCORES = [
    StepScore(0, 0.2, 0.0123456789, 0.2, 0, 3, torch.tensor([0.1, 0.2, 0.3])),
    StepScore(1, None, None, 0.5, 1, 3, torch.tensor([0.1, 0.5, math.nan])),
    StepScore(2, None, None, math.inf, 2, 3, torch.tensor([0.1, math.nan, math.nan])),
]
PROTOCOL = {"split": "finn", "ways": 5, "alpha": 0.4, "inner_steps": 1, "resize": "28×28"}


def example():
    return result("glyphs 5-way 1-shot", "maml", PROTOCOL, SCORES, provenance(0, 12.34, command="run"), metric="loss")


def strict(text):
    """JSON as other programs read it: without NaN and Infinity."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def assert_form(stored):
    assert {"experiment", "method", "protocol", "per_step", "provenance"} <= set(stored)
    assert [one["step"] for one in stored["per_step"]] == list(range(len(stored["per_step"])))
    for one in stored["per_step"]:
        assert set(one) >= {"step", "mean", "half_width", "median", "diverged", "n"}
        assert (one["mean"] is None) == (one["half_width"] is None) == (one["diverged"] > 0)
    assert stored["protocol"]["inner_steps"] in range(len(stored["per_step"]))  # the step of the headline
    made = {"hardware", "device", "versions", "seed", "command", "seconds", "date"}
    assert set(stored["provenance"]) - {"commit"} == made
    assert set(stored["provenance"]["versions"]) == {"python", "torch"}


def test_form_of_a_result(tmp_path):
    write_result(tmp_path / "new" / "one.json", example())
    text = (tmp_path / "new" / "one.json").read_text(encoding="utf-8")
    stored = strict(text)
    assert_form(stored)
    assert stored["experiment"] == "glyphs 5-way 1-shot" and stored["method"] == "maml" and stored["metric"] == "loss"
    assert stored["protocol"] == PROTOCOL and "28×28" in text  # readable, not escaped
    first, second, third = stored["per_step"]
    assert first == {"step": 0, "mean": 0.2, "half_width": 0.0123457, "median": 0.2, "diverged": 0, "n": 3}
    assert second == {"step": 1, "mean": None, "half_width": None, "median": 0.5, "diverged": 1, "n": 3}
    assert third["median"] is None  # infinite: JSON has no word for it


def test_provenance():
    made = provenance(3, 1.26, "cpu")
    assert made["seed"] == 3 and made["seconds"] == 1.3 and made["device"] == "cpu"
    assert made["versions"]["torch"] == torch.__version__
    assert "thread" in made["hardware"] and made["command"] and len(made["date"]) == len("2025-01-31")


def git(*arguments):
    run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else None


@pytest.mark.skipif(not (ROOT / ".git").exists() or git("rev-parse", "HEAD") is None, reason="not in a git checkout")
def test_a_new_result_names_the_commit_it_was_made_with():
    assert provenance(0, 0.0)["commit"].removesuffix("-dirty") == git("rev-parse", "HEAD")


def test_outside_of_git_there_is_no_commit_and_no_error(monkeypatch):
    def no_git(*_, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert "commit" not in provenance(0, 0.0)


def test_the_command_is_what_one_types_in_the_root(monkeypatch, tmp_path):
    for script, expected in (
        (ROOT / "benchmarks" / "compare.py", "python benchmarks/compare.py --x 'two words'"),
        (tmp_path / "elsewhere.py", "python elsewhere.py --x 'two words'"),
    ):
        monkeypatch.setattr("sys.argv", [str(script), "--x", "two words"])
        assert provenance(0, 0.0)["command"] == expected
    assert typed(["train", "--out", "two words"]) == "python -m maml_edu train --out 'two words'"
    monkeypatch.setattr(distributed, "size", lambda: 3)
    assert typed(["train"]) == "torchrun --nproc-per-node 3 -m maml_edu train"


BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.json"))


@pytest.mark.parametrize("path", [*STORED, *BENCHMARKS], ids=lambda path: path.stem)
def test_no_stored_command_names_a_folder_of_a_machine(path):
    command = json.loads(path.read_text(encoding="utf-8"))["provenance"]["command"]
    assert not any(word.startswith(("/", "~")) or ":\\" in word for word in command.split())


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_results_have_the_form(path):
    stored = strict(path.read_text(encoding="utf-8"))
    assert_form(stored)
    assert re.fullmatch("[0-9a-f]{40}", stored["provenance"]["commit"])  # that of the code which made them


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_that_can_be_made_again_are_those_stored(name):
    """The flags of benchmarks/inner_loops.py, where the stored result was made by an older script."""
    config = parse(["train", *RUNS[name].split(), "--out", "anywhere"])
    stored = read_result(ROOT / "notebooks" / "results" / f"{name}.json")
    protocol = stored["protocol"]
    asked = (config.iterations, config.tasks, config.steps, config.test_steps, config.test_shots, config.test_queries)
    names = ("iterations", "meta_batch", "inner_steps_train", "inner_steps", "test_shots", "test_queries")
    assert asked == tuple(protocol[n] for n in names)
    assert config.alpha == protocol["alpha"] and config.learn_alpha == protocol["alpha_learned"]
    assert config.multi_step == protocol.get("multi_step", 0) and f"lr {config.lr:g}, " in protocol["outer"]
    assert config.schedule in protocol["outer"] and ("clip None" in protocol["outer"]) <= (config.clip is None)
    assert config.method == stored["method"] or stored["method"] in ("perstep", "multistep", "clip", "outer", "smaller")


def test_results_of_a_folder(tmp_path):
    for name in ("b", "a"):
        write_result(tmp_path / f"{name}.json", {**example(), "experiment": name})
    (tmp_path / "notes.txt").write_text("no result")
    results = read_results(tmp_path)
    assert list(results) == ["a", "b"] and results["b"]["experiment"] == "b"
    with pytest.raises(FileNotFoundError, match="own folder"):
        read_results(tmp_path / "nowhere")


def changed(change):
    stored = json.loads(json.dumps(example()))
    change(stored)
    return json.dumps(stored)


DAMAGED = {
    "empty": "",
    "cut short": json.dumps(example())[:300],
    "another file": "<html>404: Not Found</html>",
    "a list": "[]",
    "a number": "7",
    "nested too deeply": "[" * 100_000,
    "not UTF-8": b"\xff\xfe{}",
    "no method": changed(lambda stored: stored.pop("method")),
    "no score": changed(lambda stored: stored.update(per_step=[])),
    "scores of another kind": changed(lambda stored: stored.update(per_step=3)),
    "a word for a mean": changed(lambda stored: stored["per_step"][0].update(mean="high")),
    "a step missing": changed(lambda stored: stored["per_step"].pop(0)),
    "a list for a protocol": changed(lambda stored: stored.update(protocol=[])),
    "no headline": changed(lambda stored: stored["protocol"].update(inner_steps=99)),
    "no provenance": changed(lambda stored: stored.update(provenance=None)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_result_is_named_in_one_line(content, tmp_path):
    path = tmp_path / "one.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="one.json is not a result, or is damaged") as error:
        read_results(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("broken", ["replace", "encoding"])
def test_a_result_is_replaced_whole_or_not_at_all(broken, tmp_path, monkeypatch):
    path = tmp_path / "one.json"
    write_result(path, example())
    before = path.read_bytes()
    if broken == "replace":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError):
            write_result(path, {**example(), "method": "other"})
    else:
        with pytest.raises(TypeError):
            write_result(path, {**example(), "method": torch.zeros(1)})
    assert path.read_bytes() == before
    assert list(read_results(tmp_path)) == ["one"]


# --------------------------------------------------------------------------------------------------
# Several seeds


def of_a_seed(mean, half_width=0.004, method="maml", ways=5, learned=True, device="cpu"):
    steps = [{"step": 0, "mean": 0.2, "half_width": 0.01}, {"step": 1, "mean": mean, "half_width": half_width}]
    protocol = {"ways": ways, "test_shots": 1, "alpha_learned": learned, "inner_steps": 1}
    return {"method": method, "protocol": protocol, "per_step": steps, "provenance": {"device": device}}


def test_runs_are_grouped_by_what_makes_them_comparable():
    results = {
        "omniglot_5way_1shot_maml_seed0": of_a_seed(0.98),
        "omniglot_5way_1shot_maml_seed1": of_a_seed(0.99),
        "omniglot_5way_1shot_maml": of_a_seed(0.987, device="cuda:0"),
        "omniglot_5way_1shot_fomaml": of_a_seed(0.97, method="fomaml"),
        "omniglot_20way_1shot_maml_seed0": of_a_seed(0.9, ways=20),
        "omniglot_20way_1shot_maml_alpha0.4": of_a_seed(0.8, ways=20),  # of a study: no headline
        "sine_5shot_maml": {},
    }
    groups = omniglot_runs(results)
    assert {key: len(runs) for key, runs in groups.items()} == {
        ("maml", True, "cpu", 5, 1): 2,
        ("maml", True, "cuda", 5, 1): 1,
        ("fomaml", True, "cpu", 5, 1): 1,
        ("maml", True, "cpu", 20, 1): 1,
    }


def test_the_mean_over_seeds_and_its_interval():
    """With equal numbers of tasks, the interval is that of all tasks in one sample, but for the spread of the means."""
    assert headline(of_a_seed(0.98))["mean"] == 0.98
    mean, half_width = over_seeds([of_a_seed(0.98), of_a_seed(0.99), of_a_seed(0.985)])
    assert mean == pytest.approx(0.985) and half_width == pytest.approx(0.004 / math.sqrt(3))
    assert over_seeds([of_a_seed(0.98), of_a_seed(None, None)]) is None
