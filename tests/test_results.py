"""Results as JSON: the form that the notebooks read, written whole or not at all."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from maml_edu.evaluation import StepScore
from maml_edu.experiments.results import (
    headline,
    omniglot_runs,
    over_seeds,
    provenance,
    read_results,
    result,
    write_result,
)

STORED = sorted((Path(__file__).parents[1] / "notebooks" / "results").glob("*.json"))
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
    assert set(stored["provenance"]) == {"hardware", "device", "versions", "seed", "command", "seconds", "date"}
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
    found = provenance(3, 1.26, "cpu")
    assert found["seed"] == 3 and found["seconds"] == 1.3 and found["device"] == "cpu"
    assert found["versions"]["torch"] == torch.__version__
    assert "thread" in found["hardware"] and found["command"] and len(found["date"]) == len("2025-01-31")


def test_the_command_is_what_one_types_in_the_root(monkeypatch, tmp_path):
    here = Path(__file__).resolve()
    for script, expected in (
        (here.parents[1] / "benchmarks" / "compare.py", "python benchmarks/compare.py --x 'two words'"),
        (here.parents[1] / "maml_edu" / "__main__.py", "python -m maml_edu --x 'two words'"),
        (tmp_path / "elsewhere.py", "python elsewhere.py --x 'two words'"),
    ):
        monkeypatch.setattr("sys.argv", [str(script), "--x", "two words"])
        assert provenance(0, 0.0)["command"] == expected


BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.json"))


@pytest.mark.parametrize("path", [*STORED, *BENCHMARKS], ids=lambda path: path.stem)
def test_no_stored_command_names_a_folder_of_a_machine(path):
    command = json.loads(path.read_text(encoding="utf-8"))["provenance"]["command"]
    assert not any(word.startswith(("/", "~")) or ":\\" in word for word in command.split())


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_results_have_the_form(path):
    assert_form(strict(path.read_text(encoding="utf-8")))


def test_results_of_a_folder(tmp_path):
    for name in ("b", "a"):
        write_result(tmp_path / f"{name}.json", {**example(), "experiment": name})
    (tmp_path / "notes.txt").write_text("no result")
    found = read_results(tmp_path)
    assert list(found) == ["a", "b"] and found["b"]["experiment"] == "b"
    with pytest.raises(FileNotFoundError, match="own folder"):
        read_results(tmp_path / "nowhere")


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
