"""The table of several methods: trained alike, scored on the same episodes, looked at on tasks of other kinds."""

import json

import pytest
import torch

from maml_edu.__main__ import main
from maml_edu.data.character_set import Characters
from maml_edu.electives.neural_processes import neural_process
from maml_edu.engine.checkpoint_files import Trained, load_checkpoint
from maml_edu.experiments import comparison, problems
from maml_edu.experiments.method_registry import COMPARED
from maml_edu.experiments.settings import configure

pytestmark = pytest.mark.slow

SMALL = "--dataset glyphs --filters 2 --tasks 2 --iterations 2 --test-tasks 4".split()


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    """Characters without any meaning, made in no time."""
    images = torch.randint(0, 256, (324, 20, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    characters = Characters(images, [f"character{i:03}" for i in range(324)], [""] * 324, "glyphs")
    for module in (problems, comparison):
        monkeypatch.setattr(module, "characters", lambda source: characters)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(comparison, "studies", lambda config, trained: {"tasks": 0})


def compare(out, *flags):
    return main(["compare", *SMALL, "--out", str(out), *flags])


def read(path):
    return json.loads((path / "result.json").read_text(encoding="utf-8"))


def test_every_method_has_a_row_and_a_folder(tmp_path, quick, capsys):
    assert compare(tmp_path) == 0
    out = capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(COMPARED)
    for method in COMPARED:
        stored = read(tmp_path / method)
        steps = method not in ("prototypes", "process")
        assert stored["method"] == method and stored["experiment"] == "glyphs 5-way 1-shot"
        assert [s["step"] for s in stored["per_step"]] == list(range(steps + 1))
        assert stored["protocol"]["iterations"] == 2 and stored["protocol"]["outer"] == "Adam, lr 0.005, cosine"
        assert stored["protocol"]["alpha_learned"] == steps and (stored["protocol"]["alpha"] is not None) == steps
        assert {"one_query", "training_cpu_seconds", "parameters", "validation_studies", "curve"} <= set(stored)
        assert stored["provenance"]["command"].startswith("python -m maml_edu compare --dataset glyphs")
        assert any(line.startswith(method) and "±" in line for line in out.splitlines())
    assert set(read(tmp_path / "protomaml")["protocol"]["alpha"][0]) >= {"head.weight", "head.bias"}  # of φ, not of θ


def test_a_table_is_never_overwritten_and_resumes_where_it_stopped(tmp_path, quick, monkeypatch, capsys):
    flags = ["--methods", "prototypes", "maml"]
    fit, trained = comparison.fit, []

    def stops_at_the_second(config, *rest):
        trained.append(config.method)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(config, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "fit", stops_at_the_second)
        assert compare(tmp_path, *flags) == 130
    assert "give the command again with --resume: the training so far is kept" in capsys.readouterr().err
    before = read(tmp_path / "prototypes")
    assert compare(tmp_path, *flags) == 2
    assert "already holds a run: continue it with --resume" in capsys.readouterr().err
    assert compare(tmp_path, *flags, "--resume", "--lr", "0.1") == 2
    assert "--lr was 0.005, and is 0.1 now" in capsys.readouterr().err
    assert compare(tmp_path, "--methods", "maml", "prototypes") == 2
    assert not (tmp_path / "maml").exists()  # refused before the first of them is trained
    assert compare(tmp_path, *flags, "--resume") == 0
    assert "starting afresh" in capsys.readouterr().out  # of maml nothing had been saved
    assert read(tmp_path / "prototypes")["per_step"] == before["per_step"] and read(tmp_path / "maml")["curve"]


def test_a_single_runs_folder_is_no_place_for_a_table(tmp_path, quick, capsys):
    (tmp_path / "result.json").write_text("{}")
    assert compare(tmp_path) == 2
    assert "already holds a run: name another --out" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_damaged_row_is_named(tmp_path, quick, capsys):
    assert compare(tmp_path, "--methods", "prototypes") == 0
    stored = read(tmp_path / "prototypes")
    del stored["per_step"][0]["mean"]
    (tmp_path / "prototypes" / "result.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="prototypes/result.json is not a result, or is damaged"):
        comparison.read_result(tmp_path / "prototypes" / "result.json")


@pytest.mark.parametrize("method", ["protomaml", "process"])
def test_studies_look_at_every_kind_of_task(method):
    config = configure("compare", {"method": method, "dataset": "glyphs", "filters": 2, "test_tasks": 2})
    theta = comparison.learner_of(config).model.theta
    studies = comparison.studies(config, Trained(theta, 0.1, {}))
    assert set(studies["shots"]) == {"1", "5", "10"} and all(len(s) == 11 for s in studies["shots"].values())
    assert (studies["ways"]["20"] is None) == (method == "process") and studies["ways"]["5"] is not None
    assert studies["alpha_without_trained_steps"] == (0.1 if method == "process" else None)


def test_the_shipped_processes_say_how_many_points_they_saw():
    for name, points in (("sine_process", "1 to 10"), ("sine_process_ten", 10)):
        assert load_checkpoint(name, neural_process().model)[1]["protocol"]["shots"] == points
