"""python -m maml_edu, called in this process: what a run leaves behind, and how it refuses, resumes and locks."""

import json
import os
import subprocess
import sys

import pytest
import torch

from maml_edu.__main__ import main
from maml_edu.engine.methods import name_of
from maml_edu.experiments import runner as runs
from maml_edu.training import load_checkpoint

SINE = ["--dataset", "sine", "--preset", "smoke", "--test-tasks", "20", "--test-steps", "2"]
GLYPHS = ["--dataset", "glyphs", "--preset", "smoke", "--test-tasks", "6", "--filters", "4", "--tasks", "2"]


def train(out, *flags, dataset=SINE):
    return main(["train", *dataset, "--out", str(out), *flags])


def read(out):
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------
# A run


@pytest.mark.parametrize("method", ["maml", "fomaml", "reptile", "joint", "oracle"])
def test_sine(method, tmp_path, capsys):
    assert train(tmp_path, "--method", method) == 0
    found = read(tmp_path)
    assert found["experiment"] == "sine 5-shot" and found["method"] == method and found["metric"] == "loss"
    steps = 0 if method == "oracle" else 2
    assert [one["step"] for one in found["per_step"]] == list(range(steps + 1))
    assert all(one["n"] == 20 for one in found["per_step"])
    assert found["protocol"]["inner_steps"] == steps and found["protocol"]["shots"] == 10
    assert found["protocol"]["test_shots"] == 5 and found["protocol"]["iterations"] == 20
    assert len(found["curve"]["query_loss"]) == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "final.pt", "result.json"]
    assert f"sine {method} 100%" in (out := capsys.readouterr().out) and "wrote" in out


def test_glyphs(tmp_path):
    assert train(tmp_path, "--ways", "3", "--learn-alpha", dataset=GLYPHS) == 0
    found = read(tmp_path)
    assert found["experiment"] == "glyphs 3-way 1-shot" and found["metric"] == "accuracy"
    assert all(0 <= one["mean"] <= 1 for one in found["per_step"]) and len(found["per_step"]) == 4
    protocol = found["protocol"]
    assert (protocol["split"], protocol["ways"], protocol["statistics"]) == ("finn", 3, "transductive")
    assert protocol["alpha_learned"] and set(protocol["alpha"][0]) >= {"conv1.weight", "head.bias"}


def test_a_seed_decides_everything(tmp_path):
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert train(tmp_path / folder, "--seed", seed) == 0
    a, b, c = (read(tmp_path / folder) for folder in "abc")
    assert a["per_step"] == b["per_step"] != c["per_step"] and a["curve"] == b["curve"]
    # The training tasks too: the first weights, about 0.01, hardly show in the first loss.
    assert abs(a["curve"]["query_loss"][0] - c["curve"]["query_loss"][0]) > 0.05


def test_flags_override_the_preset(tmp_path):
    flags = "--iterations 3 --alpha 0.02 --shots 4 --test-shots 7 --steps 2 --test-steps 1 --lr 0.01 --schedule cosine"
    assert train(tmp_path, *flags.split()) == 0
    protocol = read(tmp_path)["protocol"]
    assert (protocol["iterations"], protocol["alpha"], protocol["shots"], protocol["test_shots"]) == (3, 0.02, 4, 7)
    assert (protocol["inner_steps_train"], protocol["inner_steps"]) == (2, 1)
    assert protocol["outer"] == "Adam, lr 0.01, cosine"


def test_precision_reaches_parameters_and_pictures(tmp_path):
    for dataset in (SINE, [*GLYPHS, "--ways", "3"]):
        out = tmp_path / dataset[1]
        assert train(out, "--precision", "float64", dataset=dataset) == 0
        theta = load_checkpoint(out / "final.pt")[0].theta
        assert {p.dtype for p in theta.values()} == {torch.float64}
        assert read(out)["protocol"]["precision"] == "float64"


def test_training_and_test_may_ask_for_different_numbers_of_queries(tmp_path):
    flags = ["--ways", "3", "--queries", "4", "--multi-step", "10", "--steps", "2", "--clip", "1.0"]
    assert train(tmp_path, *flags, dataset=GLYPHS) == 0
    protocol = read(tmp_path)["protocol"]
    assert (protocol["queries"], protocol["test_queries"]) == (4, 1)
    assert (protocol["multi_step"], protocol["clip"]) == (10, 1.0)
    assert read(tmp_path)["curve"]["validation"][-1][0] == 20


def test_compiled_or_not_the_run_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options=None: graph)
    for folder, flags in (("a", []), ("b", ["--compile"])):
        assert train(tmp_path / folder, "--learn-alpha", "--steps", "2", *flags) == 0
    a, b = (read(tmp_path / folder) for folder in "ab")
    assert a["curve"]["query_loss"] == pytest.approx(b["curve"]["query_loss"], abs=2e-4)


def test_evaluating_the_checkpoint_gives_the_same_scores(tmp_path):
    """The test tasks are fixed by the seed, apart from training."""
    assert train(tmp_path / "run") == 0
    for name in ("checkpoint.pt", "final.pt"):
        checkpoint = str(tmp_path / "run" / name)
        assert main(["evaluate", *SINE, "--checkpoint", checkpoint, "--out", str(tmp_path / name)]) == 0
        assert read(tmp_path / name)["per_step"] == read(tmp_path / "run")["per_step"]


def test_an_evaluation_says_how_the_checkpoint_was_trained_not_what_the_defaults_are(tmp_path):
    assert train(tmp_path / "run", "--lr", "0.02", "--method", "fomaml", "--iterations", "7") == 0
    trained = read(tmp_path / "run")
    for name in ("final.pt", "checkpoint.pt"):
        checkpoint = str(tmp_path / "run" / name)
        assert main(["evaluate", *SINE, "--checkpoint", checkpoint, "--out", str(tmp_path / name)]) == 0
        found = read(tmp_path / name)
        assert found["method"] == "fomaml" and found["protocol"]["iterations"] == 7
        assert found["protocol"].items() <= trained["protocol"].items()
    assert read(tmp_path / "final.pt")["protocol"] == trained["protocol"]


# --------------------------------------------------------------------------------------------------
# Resuming


class Interrupted:
    """A method that is interrupted at its eighth call."""

    def __init__(self, method):
        self.method, self.calls, self.name = method, 0, name_of(method)

    def __call__(self, *args):
        self.calls += 1
        if self.calls == 8:
            raise KeyboardInterrupt
        return self.method(*args)


def test_an_interrupted_run_writes_no_result_and_resumes_to_the_same_one(tmp_path, monkeypatch, capsys):
    assert train(tmp_path / "whole") == 0
    monkeypatch.setitem(runs.METHODS, "maml", Interrupted(runs.METHODS["maml"]))
    assert train(tmp_path / "parts") == 1
    assert "stopped after 7 of 20 iterations; no result written. Continue with --resume" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["checkpoint.pt"]
    assert train(tmp_path / "parts", "--resume") == 0
    assert read(tmp_path / "parts")["per_step"] == read(tmp_path / "whole")["per_step"]
    assert read(tmp_path / "parts")["curve"] == read(tmp_path / "whole")["curve"]


def test_resuming_nothing_starts_afresh_and_says_so(tmp_path, capsys):
    assert train(tmp_path, "--resume") == 0
    assert "starting afresh" in capsys.readouterr().out
    assert (tmp_path / "result.json").exists()


def test_resuming_a_finished_run_only_writes_the_result_again(tmp_path, monkeypatch):
    assert train(tmp_path) == 0
    before = read(tmp_path)
    (tmp_path / "result.json").unlink()

    def maml(*arguments):
        raise AssertionError("a finished run is not trained again")

    monkeypatch.setitem(runs.METHODS, "maml", maml)
    assert train(tmp_path, "--resume") == 0
    assert read(tmp_path)["per_step"] == before["per_step"] and read(tmp_path)["curve"] == before["curve"]


# --------------------------------------------------------------------------------------------------
# The lock


def finished_process():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("text", [lambda: str(finished_process()), lambda: "", lambda: "no number"])
def test_a_stale_lock_is_taken_over(text, tmp_path, capsys):
    (tmp_path / "lock").write_text(text())
    assert train(tmp_path) == 0
    assert "taking over" in capsys.readouterr().out
    assert (tmp_path / "result.json").exists() and not (tmp_path / "lock").exists()


def test_a_live_lock_is_respected(tmp_path, capsys):
    (tmp_path / "lock").write_text(str(os.getpid()))
    assert train(tmp_path) == 2
    assert f"another run (process {os.getpid()}) writes into" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["lock"] and (tmp_path / "lock").read_text() == str(os.getpid())


def test_the_lock_is_held_during_the_run_and_released_after_an_error(tmp_path, monkeypatch):
    seen = []

    def fails(*_):
        seen.append((tmp_path / "lock").read_text())
        raise RuntimeError("out of memory")

    monkeypatch.setitem(runs.METHODS, "maml", fails)
    assert train(tmp_path) == 2
    assert seen[0].split()[0] == str(os.getpid()) and not (tmp_path / "lock").exists()


# --------------------------------------------------------------------------------------------------
# Refusals: one line on stderr, exit code 2, nothing written


@pytest.mark.parametrize(
    "dataset, flags, message",
    [
        (GLYPHS, ["--ways", "300"], "300 ways need 300 different characters"),
        (GLYPHS, ["--ways", "30"], "30 ways need 30 different characters"),  # enough to train on, not to validate on
        (GLYPHS, ["--shots", "15", "--queries", "6"], "different drawings"),
        (GLYPHS, ["--method", "oracle"], "it exists for --dataset sine only"),
        (GLYPHS, ["--split", "lake"], "holds out whole alphabets"),
        (SINE, ["--device", "toaster"], "device 'toaster' is not available here"),
        (SINE, ["--iterations", "0"], "iterations=0"),
        (SINE, ["--shots", "0"], "at least 1"),
        (SINE, ["--precision", "tf32", "--device", "cpu"], "--precision tf32 needs a CUDA device"),
        (SINE, ["--method", "joint", "--multi-step", "5"], "joint has no loss after every inner step"),
        (SINE, ["--clip", "-1"], "clip=-1.0"),
        (SINE, ["--steps", "-1"], "steps=-1"),
        (SINE, ["--method", "reptile", "--learn-alpha"], "one α"),
    ],
)
def test_impossible_settings_are_one_line_and_exit_code_2(dataset, flags, message, tmp_path, capsys):
    assert train(tmp_path / "out", *flags, dataset=dataset) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("maml_edu: ") and "Traceback" not in error
    assert not (tmp_path / "out" / "result.json").exists() and not (tmp_path / "out" / "lock").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_gpu_is_said_so(tmp_path, capsys):
    assert train(tmp_path, "--device", "cuda") == 2
    assert "device 'cuda' is not available here" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, capsys):
    assert train(tmp_path) == 0
    before = (tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "result.json").read_bytes()
    assert train(tmp_path, "--seed", "5") == 2
    assert "already holds a run: continue it with --resume" in capsys.readouterr().err
    assert ((tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "result.json").read_bytes()) == before


def test_resuming_other_settings_is_refused(tmp_path, capsys):
    assert train(tmp_path) == 0
    assert train(tmp_path, "--resume", "--iterations", "30") == 2
    assert "is of a run with iterations=20, and iterations=30 is asked for now" in capsys.readouterr().err
    assert train(tmp_path, "--resume", "--method", "oracle") == 2
    assert "checkpoint of another model" in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint", ["nothing", "nothing.pt"])
def test_evaluating_a_checkpoint_that_is_not_there(checkpoint, tmp_path, capsys):
    assert main(["evaluate", *SINE, "--checkpoint", checkpoint, "--out", str(tmp_path)]) == 2
    assert f"no checkpoint '{checkpoint}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["train"],
        ["evaluate", "--out", "somewhere"],
        ["train", "--out", "somewhere", "--method", "adam"],
        ["train", "--out", "somewhere", "--ways", "five"],
        ["train", "--out", "somewhere", "--dataset", "imagenet"],
    ],
)
def test_wrong_usage_is_explained(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2 and "usage: python -m maml_edu" in capsys.readouterr().err


def test_an_unknown_preset_in_the_environment_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MAML_EDU_PRESET", "enormous")
    assert main(["train", "--dataset", "sine", "--out", str(tmp_path)]) == 2
    assert "MAML_EDU_PRESET='enormous' is no preset; choose smoke, quick or full" in capsys.readouterr().err


def test_an_interruption_while_scoring_is_one_line_and_resumes(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_score_and_write", interrupted)
        assert train(tmp_path) == 130
    err = capsys.readouterr().err
    assert "no result written" in err and "--resume" in err and "Traceback" not in err
    assert not (tmp_path / "result.json").exists()
    assert train(tmp_path, "--resume") == 0 and read(tmp_path)["metric"] == "loss"


def test_flags_are_not_abbreviated(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path, "--iter", "5")
    assert "--iter" in capsys.readouterr().err


def test_impossible_settings_leave_no_folder(tmp_path):
    assert train(tmp_path / "run", "--tasks", "0") == 2
    assert not (tmp_path / "run").exists()
