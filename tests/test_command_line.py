"""python -m maml_edu, called in this process: what a run leaves behind, and how it refuses, resumes and locks."""

import errno
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch

from maml_edu import meta_gradient
from maml_edu.__main__ import main
from maml_edu.data import omniglot_files
from maml_edu.data.character_set import Characters
from maml_edu.engine.checkpoint_files import Trained, load_checkpoint, save_checkpoint
from maml_edu.engine.methods import Method
from maml_edu.engine.run_lock import run_lock
from maml_edu.experiments import problems, runner
from maml_edu.experiments.method_registry import METHODS
from maml_edu.experiments.settings import configure

SINE = ["--dataset", "sine", "--preset", "smoke", "--test-tasks", "20", "--test-steps", "2"]
GLYPHS = ["--dataset", "glyphs", "--preset", "smoke", "--test-tasks", "6", "--filters", "4", "--tasks", "2"]
GLYPHS += ["--ways", "3"]


@pytest.fixture(scope="module")
def noise():
    """Characters without any meaning, made in no time."""
    images = torch.randint(0, 256, (81, 20, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Characters(images, [f"character{i:02}" for i in range(81)], [""] * 81, "glyphs")


@pytest.fixture(autouse=True)
def no_drawing(noise, monkeypatch):
    monkeypatch.setattr(problems, "characters", lambda source: noise._replace(source=source))


def train(out, *flags, dataset=SINE):
    return main(["train", *dataset, "--out", str(out), *flags])


def evaluate(out, checkpoint, *flags):
    return main(["evaluate", "--checkpoint", str(checkpoint), "--test-tasks", "20", "--out", str(out), *flags])


def read(out):
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


def files(out):
    return sorted(p.name for p in out.iterdir())


# --------------------------------------------------------------------------------------------------
# A run


@pytest.mark.parametrize("method", ["maml", "fomaml", "reptile", "joint", "oracle"])
def test_sine(method, tmp_path, capsys):
    steps = [] if method == "oracle" else ["--test-steps", "2"]
    assert train(tmp_path, "--method", method, dataset=[*SINE[:-2], *steps]) == 0
    stored = read(tmp_path)
    assert stored["experiment"] == "sine 5-shot" and stored["method"] == method and stored["metric"] == "loss"
    steps = 0 if method == "oracle" else 2
    assert [one["step"] for one in stored["per_step"]] == list(range(steps + 1))
    assert all(one["n"] == 20 for one in stored["per_step"])
    assert stored["protocol"]["inner_steps"] == steps and stored["protocol"]["shots"] == 10
    assert stored["protocol"]["test_shots"] == 5 and stored["protocol"]["iterations"] == 20
    assert len(stored["curve"]["query_loss"]) == 20
    assert files(tmp_path) == ["checkpoint.pt", "final.pt", "result.json"]
    assert f"sine {method} 100%" in (out := capsys.readouterr().out) and "wrote" in out


EVERY_METHOD = [(kind, name) for name, entry in METHODS.items() for kind in entry.build if kind != "navigation"]
some_tasks_are_too_curved = pytest.mark.filterwarnings("ignore:.*have a curvature at or below")  # for iMAML


def problem_of(dataset, **settings):
    return problems.problem_of(configure("train", {"dataset": dataset, **settings}), torch.device("cpu"))


def flags_of(kind, method):
    flags = [*(SINE[:-2] if kind == "sine" else GLYPHS), "--method", method]
    return flags if "test_steps" in METHODS[method].ignores else [*flags, "--test-steps", "2"]


@some_tasks_are_too_curved
@pytest.mark.parametrize("kind, method", EVERY_METHOD)
def test_every_method_can_be_trained_and_its_checkpoint_gives_the_same_scores(kind, method, tmp_path):
    """Whatever is in the checkpoint, the test adapts in the way of the method."""
    flags = flags_of(kind, method)
    assert train(tmp_path / "run", "--iterations", "2", dataset=flags) == 0
    stored = read(tmp_path / "run")
    assert stored["method"] == method and len(stored["curve"]["query_loss"]) == 2
    for name in ("final.pt", "checkpoint.pt"):
        tasks = flags[flags.index("--test-tasks") + 1]
        assert evaluate(tmp_path / name, tmp_path / "run" / name, "--test-tasks", tasks) == 0
        again = read(tmp_path / name)
        assert again["per_step"] == stored["per_step"] and again["method"] == method
        assert again["protocol"] == stored["protocol"]
        assert files(tmp_path / name) == ["result.json"]


OTHERS = [(kind, method) for kind, method in EVERY_METHOD if method not in ("maml", "metasgd", "joint", "oracle")]


@some_tasks_are_too_curved
@pytest.mark.parametrize("kind, method", OTHERS)
def test_every_method_takes_another_first_step_than_maml(kind, method, tmp_path):
    """--method reaches the meta-gradient: other parameters after one iteration, from the same start."""
    theta = {}
    for name in ("maml", method):
        inner = [] if "steps" in METHODS[name].ignores else ["--steps", "3", "--alpha", "0.05"]
        assert train(tmp_path / name, "--iterations", "1", *inner, dataset=flags_of(kind, name)) == 0
        theta[name] = load_checkpoint(tmp_path / name / "final.pt")[0].theta
    same = theta["maml"].keys() == theta[method].keys()
    assert not same or any(not torch.equal(p, theta[method][name]) for name, p in theta["maml"].items())


ADAPTING = [(k, m) for k, m in EVERY_METHOD if m not in ("reptile", "joint", "oracle")]  # those learn without φ


@some_tasks_are_too_curved
@pytest.mark.parametrize("kind, method", ADAPTING)
def test_a_method_adapts_at_test_as_in_training(kind, method):
    dataset = {"sine": "sine", "characters": "glyphs"}[kind]
    problem = problem_of(dataset, method=method, **({} if kind == "sine" else {"ways": 3, "filters": 2}))
    learner, batch = problem.learner, problem.training(2, torch.Generator())
    steps = 0 if "steps" in METHODS[method].ignores else 3
    arguments = learner.loss, learner.model.theta
    in_training = learner.method(*arguments, batch, learner.alpha, steps).phi
    at_test = learner.adapt(*arguments, batch.support_x, batch.support_y, learner.alpha, steps)[-1]
    assert in_training.keys() == at_test.keys()
    assert all(torch.allclose(p, at_test[name], rtol=1e-4, atol=1e-6) for name, p in in_training.items())


def test_metasgd_learns_a_step_size_for_every_parameter(tmp_path):
    assert train(tmp_path, "--method", "metasgd", "--iterations", "1") == 0
    trained, _ = load_checkpoint(tmp_path / "final.pt")
    assert {name: a.shape for name, a in trained.alpha.items()} == {n: p.shape for n, p in trained.theta.items()}
    assert any((a != 0.001).any() for a in trained.alpha.values())


def test_glyphs(tmp_path):
    assert train(tmp_path, "--learn-alpha", dataset=GLYPHS) == 0
    stored = read(tmp_path)
    assert stored["experiment"] == "glyphs 3-way 1-shot" and stored["metric"] == "accuracy"
    assert all(0 <= one["mean"] <= 1 for one in stored["per_step"]) and len(stored["per_step"]) == 4
    protocol = stored["protocol"]
    assert (protocol["split"], protocol["ways"], protocol["statistics"]) == ("finn", 3, "transductive")
    assert protocol["alpha_learned"] and set(protocol["alpha"][0]) >= {"conv1.weight", "head.bias"}


def test_a_seed_decides_everything(tmp_path):
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert train(tmp_path / folder, "--seed", seed) == 0
    a, b, c = (read(tmp_path / folder) for folder in "abc")
    assert a["per_step"] == b["per_step"] != c["per_step"] and a["curve"] == b["curve"]
    # The training tasks too: the first weights, about 0.01, hardly show in the first loss.
    assert abs(a["curve"]["query_loss"][0] - c["curve"]["query_loss"][0]) > 0.05


def test_the_largest_seed_works(tmp_path):
    assert train(tmp_path, "--seed", str(2**63 - 1), "--iterations", "1") == 0
    assert read(tmp_path)["provenance"]["seed"] == 2**63 - 1


def test_flags_override_the_preset(tmp_path):
    flags = "--iterations 3 --alpha 0.02 --shots 4 --test-shots 7 --steps 2 --test-steps 1 --lr 0.01 --schedule cosine"
    assert train(tmp_path, *flags.split()) == 0
    protocol = read(tmp_path)["protocol"]
    assert (protocol["iterations"], protocol["alpha"], protocol["shots"], protocol["test_shots"]) == (3, 0.02, 4, 7)
    assert (protocol["inner_steps_train"], protocol["inner_steps"]) == (2, 1)
    assert protocol["outer"] == "Adam, lr 0.01, cosine"


@pytest.mark.parametrize(
    "method, flags, expected",
    [
        ("adam", "--epsilon 0.5", {"epsilon": 0.5}),
        ("momentum", "--momentum 0.5", {"momentum": 0.5}),
        ("truncated", "--keep 2", {"pulled_back": 2}),
        ("imaml", "--strength 3 --cg-steps 2", {"strength": 3.0, "cg_steps": 2}),
        ("anil", "", {"alpha_on_the_body": 0.0}),
        ("metasgd", "--alpha 0.02", {"alpha_learned": True, "alpha_start": 0.02}),
    ],
)
def test_the_protocol_says_what_the_method_was_given(method, flags, expected, tmp_path):
    assert train(tmp_path, "--method", method, "--iterations", "1", *flags.split()) == 0
    assert expected.items() <= read(tmp_path)["protocol"].items()


def test_precision_reaches_parameters_and_pictures(tmp_path):
    for dataset in (SINE, GLYPHS):
        out = tmp_path / dataset[1]
        assert train(out, "--precision", "float64", dataset=dataset) == 0
        theta = load_checkpoint(out / "final.pt")[0].theta
        assert {p.dtype for p in theta.values()} == {torch.float64}
        assert read(out)["protocol"]["precision"] == "float64"
        assert evaluate(tmp_path / f"{out.name} again", out / "final.pt") == 0  # in the checkpoint's own precision


def test_training_and_test_may_ask_for_different_numbers_of_queries(tmp_path):
    flags = ["--queries", "4", "--multi-step", "10", "--steps", "2", "--clip", "1.0"]
    assert train(tmp_path, *flags, dataset=GLYPHS) == 0
    protocol = read(tmp_path)["protocol"]
    assert (protocol["queries"], protocol["test_queries"]) == (4, 1)
    assert (protocol["multi_step"], protocol["clip"]) == (10, 1.0)
    assert read(tmp_path)["curve"]["validation"][-1][0] == 20
    problem = problem_of("glyphs", ways=3, filters=2, shots=2, queries=4, test_shots=3, test_queries=5)
    for sampler, shots, queries in ((problem.training, 2, 4), (problem.validation, 3, 5), (problem.test, 3, 5)):
        batch = sampler(2, torch.Generator())
        assert batch.support_y.shape == (2, 3 * shots) and batch.query_y.shape == (2, 3 * queries)


def test_compiled_or_not_the_run_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options=None: graph)
    for folder, flags in (("a", []), ("b", ["--compile"])):
        assert train(tmp_path / folder, "--learn-alpha", "--steps", "2", *flags) == 0
    a, b = (read(tmp_path / folder) for folder in "ab")
    assert a["curve"]["query_loss"] == pytest.approx(b["curve"]["query_loss"], abs=2e-4)


def test_the_command_is_kept_as_it_was_typed(tmp_path):
    assert train(tmp_path / "a run", "--iterations", "1") == 0
    command = read(tmp_path / "a run")["provenance"]["command"]
    assert command.startswith("python -m maml_edu train --dataset sine") and command.endswith("a run' --iterations 1")


# --------------------------------------------------------------------------------------------------
# Evaluating


def test_an_evaluation_says_how_the_checkpoint_was_trained_not_what_the_defaults_are(tmp_path):
    assert train(tmp_path / "run", "--lr", "0.02", "--method", "fomaml", "--iterations", "7") == 0
    trained = read(tmp_path / "run")
    assert evaluate(tmp_path / "again", tmp_path / "run" / "final.pt", "--test-shots", "3", "--test-steps", "1") == 0
    stored = read(tmp_path / "again")
    assert stored["method"] == "fomaml" and stored["experiment"] == "sine 3-shot"
    assert stored["protocol"] == {**trained["protocol"], "test_shots": 3, "inner_steps": 1}


@pytest.mark.parametrize("name", ["sine_maml", "sine_oracle", "sine_joint", "omniglot_5way_1shot_anil_fixed"])
def test_a_shipped_checkpoint_needs_no_flags_but_where_to(name, tmp_path):
    assert evaluate(tmp_path, name) == 0
    stored, again = load_checkpoint(name)[1]["protocol"], read(tmp_path)["protocol"]
    assert {key for key in stored if again[key] != stored[key]} <= {"tasks", "resize", "alpha"}  # joint chooses α anew


def test_prototypes_can_be_evaluated_with_other_ways_and_maml_cannot(tmp_path, capsys):
    for method in ("prototypes", "maml"):
        assert train(tmp_path / method, "--method", method, "--iterations", "1", dataset=GLYPHS) == 0
    assert evaluate(tmp_path / "five", tmp_path / "prototypes" / "final.pt", "--ways", "5") == 0
    assert read(tmp_path / "five")["experiment"] == "glyphs 5-way 1-shot"
    capsys.readouterr()
    assert evaluate(tmp_path / "six", tmp_path / "maml" / "final.pt", "--ways", "5") == 2
    assert "is a checkpoint of another model: head.weight is [4, 3] there and [4, 5]" in capsys.readouterr().err
    assert not (tmp_path / "six").exists()


@pytest.mark.parametrize("settings", [{}, {"method": ["maml"], "protocol": {}}, {"method": "maml", "protocol": 3}])
def test_a_checkpoint_that_does_not_say_how_it_was_trained(settings, tmp_path, capsys):
    save_checkpoint(tmp_path / "a.pt", Trained({"w1": torch.zeros(1, 40)}, 0.1, {}), **settings)
    assert evaluate(tmp_path / "out", tmp_path / "a.pt") == 2
    error = capsys.readouterr().err
    assert "doesn't say how it was trained" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_checkpoint_without_parameters_is_one_line(tmp_path, capsys):
    save_checkpoint(tmp_path / "a.pt", Trained({}, 0.1, {}), method="maml", protocol={}, experiment="sine 5-shot")
    assert evaluate(tmp_path / "out", tmp_path / "a.pt") == 2
    assert "is a checkpoint of another model: w1 is missing" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["ways", "filters", "init", "test_shots", "inner_steps"])
def test_a_damaged_protocol_is_one_line(broken, tmp_path, capsys):
    dataset = SINE if broken == "init" else GLYPHS
    assert train(tmp_path / "run", "--iterations", "1", dataset=dataset) == 0
    trained, settings = load_checkpoint(tmp_path / "run" / "final.pt")
    settings["protocol"][broken] = ["x"]
    save_checkpoint(tmp_path / "a.pt", trained, **settings)
    capsys.readouterr()
    assert evaluate(tmp_path / "out", tmp_path / "a.pt") == 2
    error = capsys.readouterr().err
    assert error.startswith("maml_edu: ") and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "train", "navigate"])
def test_nothing_replaces_a_run(command, tmp_path, capsys):
    """Not even in a folder with a lock of its own, or one that holds a result alone."""
    assert train(tmp_path / "run", "--iterations", "1") == 0
    kept = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    flags = {"evaluate": ["--checkpoint", "sine_maml"], "train": ["--dataset", "sine"], "navigate": []}[command]
    for left in ({*kept}, {"result.json"}, {"final.pt"}):
        for name in set(kept) - left:
            (tmp_path / "run" / name).unlink(missing_ok=True)
        assert main([command, *flags, "--out", str(tmp_path / "run"), "--seed", "5"]) == 2
        error = capsys.readouterr().err
        assert "already holds a run" in error and ("--resume" in error) == (command != "evaluate")
        assert files(tmp_path / "run") == sorted(left)
        for name, content in kept.items():
            if name in left:
                assert (tmp_path / "run" / name).read_bytes() == content
            (tmp_path / "run" / name).write_bytes(content)


# --------------------------------------------------------------------------------------------------
# Resuming


class Interrupted:
    """A method that is interrupted at its eighth call."""

    name = "interrupted"

    def __init__(self, method):
        self.method, self.calls = method, 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls == 8:
            raise KeyboardInterrupt
        return self.method(*args)


@pytest.fixture
def stopped_run(tmp_path, capsys):
    """A run of 20 iterations, interrupted after 7."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meta_gradient, "maml", Interrupted(meta_gradient.maml))
        assert train(tmp_path / "run") == 1
    assert "stopped after 7 of 20 iterations; no result written. Continue with --resume" in capsys.readouterr().out
    assert files(tmp_path / "run") == ["checkpoint.pt"]
    return tmp_path / "run"


def test_an_interrupted_run_writes_no_result_and_resumes_to_the_same_one(stopped_run, tmp_path):
    assert train(tmp_path / "uninterrupted") == 0
    assert train(stopped_run, "--resume") == 0
    assert read(stopped_run)["per_step"] == read(tmp_path / "uninterrupted")["per_step"]
    assert read(stopped_run)["curve"] == read(tmp_path / "uninterrupted")["curve"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--iterations 30", "--iterations was 20, and is 30 now"),
        ("--lr 0.5", "--lr was 0.001, and is 0.5 now"),
        ("--method fomaml", "--method was maml, and is fomaml now"),
        ("--seed 3", "--seed was 0, and is 3 now"),
        ("--test-tasks 30", "--test-tasks was 20, and is 30 now"),
        ("--init fan-in", "--init was paper, and is fan-in now"),
        ("--dataset glyphs --test-steps 2", "--dataset was sine, and is glyphs now"),
        ("--precision float64", "--precision was float32, and is float64 now"),
        ("--clip 1", "--clip was None, and is 1.0 now"),
    ],
)
def test_a_run_is_resumed_with_all_its_settings_or_not_at_all(flags, message, stopped_run, capsys):
    before = (stopped_run / "checkpoint.pt").read_bytes()
    assert train(stopped_run, "--resume", *flags.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert files(stopped_run) == ["checkpoint.pt"] and (stopped_run / "checkpoint.pt").read_bytes() == before


def test_where_a_run_happens_may_change(stopped_run, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # two would wait for each other
    assert train(stopped_run, "--resume", "--threads", "2", "--device", "cpu") == 0


def test_what_the_tasks_came_from_is_a_setting(tmp_path, noise, monkeypatch, capsys):
    """Whatever the flag says: a network that learned glyphs is never reported as one that learned Omniglot."""
    omniglot = ["--dataset", "omniglot", *GLYPHS[2:], "--iterations", "3"]
    monkeypatch.setattr(problems, "characters", lambda source: noise)  # glyphs, though Omniglot was asked for
    assert train(tmp_path, dataset=omniglot) == 0
    assert read(tmp_path)["experiment"] == "glyphs 3-way 1-shot"
    monkeypatch.setattr(problems, "characters", lambda source: noise._replace(source="omniglot"))
    assert train(tmp_path, "--resume", dataset=omniglot) == 2
    assert "source was glyphs, and is omniglot now" in capsys.readouterr().err
    assert read(tmp_path)["experiment"] == "glyphs 3-way 1-shot"


def test_resuming_nothing_starts_afresh_and_says_so(tmp_path, capsys):
    assert train(tmp_path, "--resume") == 0
    assert "starting afresh" in capsys.readouterr().out
    assert (tmp_path / "result.json").exists()


def test_a_result_without_a_checkpoint_is_not_resumed(tmp_path, capsys):
    assert evaluate(tmp_path, "sine_maml") == 0
    before = (tmp_path / "result.json").read_bytes()
    assert train(tmp_path, "--resume") == 2
    assert "holds a result and no checkpoint.pt to resume" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_bytes() == before and files(tmp_path) == ["result.json"]


def test_resuming_a_finished_run_only_writes_the_result_again(tmp_path, monkeypatch):
    assert train(tmp_path) == 0
    before = read(tmp_path)
    (tmp_path / "result.json").unlink()

    def maml(*arguments):
        raise AssertionError("a finished run is not trained again")

    monkeypatch.setattr(meta_gradient, "maml", maml)
    assert train(tmp_path, "--resume") == 0
    assert read(tmp_path)["per_step"] == before["per_step"] and read(tmp_path)["curve"] == before["curve"]


# --------------------------------------------------------------------------------------------------
# The lock


@pytest.mark.parametrize("command", ["train", "evaluate", "navigate"])
def test_a_folder_that_another_run_holds_is_left_alone(command, tmp_path, capsys):
    flags = {"evaluate": ["--checkpoint", "sine_maml"], "train": SINE, "navigate": []}[command]
    with run_lock(tmp_path):
        before = files(tmp_path)
        assert main([command, *flags, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "another run" in error and error.count("\n") == 1 and files(tmp_path) == before


def test_the_lock_is_held_during_the_run_and_released_after_an_error(tmp_path, monkeypatch):
    seen = []

    def fails(*_):
        with pytest.raises(RuntimeError, match="another run"), run_lock(tmp_path / "run"):
            pass
        seen.append(True)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(meta_gradient, "maml", Method("maml", fails))
    assert train(tmp_path / "run") == 2
    assert seen and not (tmp_path / "run").exists()  # nothing was written, so nothing is in the way


# --------------------------------------------------------------------------------------------------
# What goes wrong


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_gpu_is_said_so(tmp_path, capsys):
    assert train(tmp_path / "run", "--device", "cuda") == 2
    assert "--device cuda is not available here" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_without_a_network_the_way_to_glyphs_is_named(tmp_path, monkeypatch, capsys):
    def no_network(*_):
        raise omniglot_files.DownloadError("could not be downloaded\nthree ways on")

    monkeypatch.setattr(problems, "characters", no_network)
    assert train(tmp_path / "run", dataset=["--preset", "smoke"]) == 2
    error = capsys.readouterr().err
    assert "--dataset glyphs" in error and "MAML_EDU_DATA" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_is_not_advised_to_go_on(tmp_path, capsys):
    with pytest.warns(UserWarning, match="the query loss is not finite"):
        assert train(tmp_path / "run", "--alpha", "1e20", "--steps", "3") == 1
    out = capsys.readouterr().out
    assert "no result written: try a smaller --lr or --alpha" in out and "--resume" not in out


def test_a_warning_is_one_line_without_code(tmp_path, monkeypatch, capsys):
    def warns(*arguments):
        warnings.warn("two\nlines", stacklevel=1)
        return meta_gradient.fomaml(*arguments)

    def show(message, category, filename, lineno, file=None, line=None):  # Python's own: pytest keeps warnings back
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    monkeypatch.setattr(meta_gradient, "maml", Method("maml", warns))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        assert train(tmp_path, "--iterations", "1") == 0
    assert capsys.readouterr().err == "maml_edu: warning: two lines\n"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_an_interruption_while_scoring_is_one_line(command, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    flags = SINE if command == "train" else ["--checkpoint", "sine_maml"]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_score_and_write", interrupted)
        assert main([command, *flags, "--out", str(tmp_path / "run")]) == 130
    error = capsys.readouterr().err
    assert "interrupted, nothing written" in error and error.count("\n") == 1
    assert ("--resume" in error) == (command == "train") == (tmp_path / "run").exists()
    if command == "train":
        assert files(tmp_path / "run") == ["checkpoint.pt"]
        assert train(tmp_path / "run", "--resume") == 0 and read(tmp_path / "run")["metric"] == "loss"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_full_disk_is_one_line(command, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runner, "write_result", full)
    flags = [*SINE, "--iterations", "1"] if command == "train" else ["--checkpoint", "sine_maml"]
    assert main([command, *flags, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "No space left" in error and "free some space" in error and "[Errno" not in error and error.count("\n") == 1
    assert ("--resume" in error) == (command == "train")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_run_outlives_its_reader(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "maml_edu", "train", *SINE, "--iterations", "1", "--out", str(tmp_path)]
    run = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")
    assert files(tmp_path) == ["checkpoint.pt", "final.pt", "result.json"] and len(read(tmp_path)["per_step"]) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_run_outlives_the_disk_its_output_goes_to(tmp_path, monkeypatch, capsys):
    with open("/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert train(tmp_path) == 0
        output.flush()  # what was left to write went nowhere, and fails no more
    assert not capsys.readouterr().err and (tmp_path / "result.json").exists()


# --------------------------------------------------------------------------------------------------
# The other commands


NAVIGATE = "--iterations 2 --tasks 2 --trajectories 2 --test-tasks 2".split()


@pytest.mark.parametrize("method", ["maml", "fomaml", "joint", "dice", "ratio"])
def test_navigate(method, tmp_path):
    assert main(["navigate", "--method", method, *NAVIGATE, "--out", str(tmp_path)]) == 0
    stored = read(tmp_path)
    assert stored["experiment"] == "2-D navigation" and stored["method"] == method and stored["metric"] == "return"
    assert [one["step"] for one in stored["per_step"]] == [0, 1, 2, 3, 4]
    assert all(len(one["values"]) == 2 and one["mean"] < 0 for one in stored["per_step"])
    assert len(stored["training"]["return_after_adaptation"]) == 2 and stored["training"]["cpu_seconds"] >= 0
    assert stored["protocol"]["inner_steps_train"] == (method != "joint")
    assert files(tmp_path) == ["checkpoint.pt", "final.pt", "result.json"]


def test_navigate_resumes_to_the_same_result(tmp_path, monkeypatch, capsys):
    from maml_edu.electives.policy_gradient import PolicyGradient

    assert main(["navigate", *NAVIGATE, "--out", str(tmp_path / "uninterrupted")]) == 0
    once, call = [], PolicyGradient.__call__

    def interrupted(self, *arguments):
        once.append(True)
        if len(once) == 2:
            raise KeyboardInterrupt
        return call(self, *arguments)

    monkeypatch.setattr(PolicyGradient, "__call__", interrupted)
    assert main(["navigate", *NAVIGATE, "--out", str(tmp_path / "parts")]) == 1
    assert main(["navigate", *NAVIGATE, "--out", str(tmp_path / "parts"), "--resume", "--lr", "0.5"]) == 2
    assert "--lr was 0.003, and is 0.5 now" in capsys.readouterr().err
    assert main(["navigate", *NAVIGATE, "--out", str(tmp_path / "parts"), "--resume"]) == 0
    assert read(tmp_path / "parts")["per_step"] == read(tmp_path / "uninterrupted")["per_step"]
    assert read(tmp_path / "parts")["training"]["cpu_seconds"] is None  # of the first part they are not known
