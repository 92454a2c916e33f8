"""Nothing is lost when a training is interrupted: by Ctrl-C, a crash, or output that fails."""

import errno
import os
import signal
import sys

import pytest
import torch
from support.problems import relative, sines
from support.short_runs import assert_same, run

from maml_edu.baselines import joint
from maml_edu.engine.checkpoint_files import load_checkpoint
from maml_edu.engine.interruption import Interruption
from maml_edu.meta_gradient import maml


class At:
    """Calls through until the given call, which raises instead."""

    def __init__(self, call, error, function):
        self.left, self.error, self.function = call, error, function

    def __call__(self, *args, **kwargs):
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.function(*args, **kwargs)


SETTINGS = {
    "maml": dict(method=maml, steps=2, alpha=0.05),
    "learned step sizes, cosine": dict(method=maml, steps=2, alpha=0.05, learn_alpha=True, schedule="cosine"),
    "joint": dict(method=joint, schedule="cosine"),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("where", ["sampler", "watch", "step of Adam"])
def test_interrupted_and_resumed_equals_uninterrupted(settings, where, tmp_path, capsys, monkeypatch):
    """Wherever in an iteration Ctrl-C arrives. What was drawn in the iteration that was lost is drawn again."""
    options = {**settings, "checkpoint": tmp_path / "run.pt"}
    if where == "sampler":
        partial = run(At(12, KeyboardInterrupt, sines), **options)
    elif where == "watch":
        partial = run(watch=At(12, KeyboardInterrupt, lambda *_: None), watch_every=1, **options)
    else:
        with monkeypatch.context() as patched:
            step = At(12, KeyboardInterrupt, torch.optim.Adam.step)
            patched.setattr(torch.optim.Adam, "step", lambda adam: step(adam))
            partial = run(**options)
    assert "interrupted after 12 of 30 iterations" in capsys.readouterr().out
    assert_same(load_checkpoint(tmp_path / "run.pt")[0], partial)
    assert len(partial.history["query_loss"]) == 12
    assert_same(run(seed=99, resume=True, **options), run(**settings))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_crash_loses_only_what_came_after_the_last_checkpoint(settings, tmp_path):
    options = {**settings, "checkpoint": tmp_path / "run.pt", "save_every": 0.0}
    with pytest.raises(OSError, match="power cut"):
        run(At(17, OSError("power cut"), sines), **options)
    assert len(load_checkpoint(tmp_path / "run.pt")[0].history["query_loss"]) == 17
    assert_same(run(seed=99, resume=True, **options), run(**settings))


def test_an_interruption_does_not_shift_the_validation(tmp_path):
    """Losses are looked at every 5 iterations, so validation is due at 15, 25, 40, …: also if Ctrl-C comes after 13."""
    options = dict(iterations=100, validate=lambda so_far: so_far.theta["w1"].sum().item(), validate_every=12)

    whole = run(**options).history["validation"]
    parted = run(interrupted(signal.SIGINT), checkpoint=tmp_path / "run.pt", **options).history
    assert len(parted["query_loss"]) == 13 and "validation" not in parted
    assert torch.equal(run(checkpoint=tmp_path / "run.pt", resume=True, **options).history["validation"], whole)
    assert whole[:3, 0].tolist() == [15, 25, 40] and whole[-1, 0] == 100


def test_a_resumed_run_knows_how_long_it_took(tmp_path):
    path = tmp_path / "run.pt"
    assert run(At(12, KeyboardInterrupt, sines), checkpoint=path).history["seconds"] > 0
    state = torch.load(path)
    torch.save({**state, "seconds": torch.tensor(1000.0, dtype=torch.float64)}, path)
    assert run(checkpoint=path, resume=True).history["seconds"] > 1000


def test_interrupted_without_a_checkpoint_returns_what_was_learned(capsys):
    partial = run(At(12, KeyboardInterrupt, sines))
    assert relative(partial.theta, run(iterations=12).theta) == 0
    assert "resume from" not in capsys.readouterr().out


def test_resuming_a_finished_run_returns_it(tmp_path):
    finished = run(checkpoint=tmp_path / "run.pt")
    assert_same(run(At(0, AssertionError, sines), checkpoint=tmp_path / "run.pt", resume=True), finished)


def test_resuming_without_a_checkpoint_starts_afresh_and_says_so(tmp_path, capsys):
    trained = run(checkpoint=tmp_path / "new" / "run.pt", resume=True)
    assert "starting afresh" in capsys.readouterr().out
    assert_same(trained, run())
    assert (tmp_path / "new" / "run.pt").exists()


# --------------------------------------------------------------------------------------------------
# Ctrl-C, and output that fails


def interrupted(which, times=1, at=12):
    """sines, and signals in the middle of the 13th iteration."""

    def sampler(tasks, generator):
        sampler.calls += 1
        if sampler.calls == at + 1:
            for _ in range(times):
                signal.raise_signal(which)
        return sines(tasks, generator)

    sampler.calls = 0
    return sampler


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_answered_at_once_and_ends_the_iteration(which, tmp_path, capsys):
    said = []

    def method(*arguments):
        if len(said) == 12:
            signal.raise_signal(which)
        said.append(capsys.readouterr().out)  # still within the iteration
        return maml(*arguments)

    partial = run(method=method, checkpoint=tmp_path / "run.pt")
    assert said[12].count("\n") == 2 and f"{which.name}: finishing this iteration; " in said[12]
    assert ("press Ctrl-C again" in said[12]) == (which == signal.SIGINT)
    assert len(partial.history["query_loss"]) == 13
    assert f"interrupted after 13 of 30 iterations; resume from {tmp_path}/run.pt" in capsys.readouterr().out
    assert_same(load_checkpoint(tmp_path / "run.pt")[0], partial)


def test_the_second_one_does_not_wait_for_the_iteration(tmp_path, capsys):
    partial = run(interrupted(signal.SIGINT, 2), checkpoint=tmp_path / "run.pt")
    assert "interrupted after 12 of 30 iterations" in capsys.readouterr().out
    assert_same(load_checkpoint(tmp_path / "run.pt")[0], partial)
    assert_same(run(checkpoint=tmp_path / "run.pt", resume=True), run())


def test_nothing_comes_between_a_step_and_its_count(tmp_path, monkeypatch):
    """Ctrl-C, twice, right after Adam has moved θ: the iteration is whole, and resuming equals uninterrupted."""
    step = torch.optim.Adam.step

    def interrupted_step(adam):
        step(adam)
        interrupted_step.calls += 1
        if interrupted_step.calls == 13:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    interrupted_step.calls = 0
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", interrupted_step)
        partial = run(checkpoint=tmp_path / "run.pt")
    assert len(partial.history["query_loss"]) == 13
    assert_same(run(checkpoint=tmp_path / "run.pt", resume=True), run())


def test_a_third_signal_stops_nothing():
    with Interruption(quiet=True):
        with pytest.raises(KeyboardInterrupt):
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_signal_and_its_echo_are_one():
    """As a rank of torchrun gets them: from the terminal, and once more from torchrun."""
    with Interruption(quiet=True, echoed=True) as interruption:
        for which in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(which)
        assert interruption.asked == signal.SIGINT
        interruption._since -= 1  # a second later
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_saving_at_the_end_cannot_be_interrupted(times, tmp_path, monkeypatch):
    """Any number of Ctrl-C while the last checkpoint is written, after any number before."""
    fsync, saved = os.fsync, []

    def impatient(file):
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        fsync(file)
        saved.append(file)

    monkeypatch.setattr(os, "fsync", impatient)
    partial = run(interrupted(signal.SIGINT, times), checkpoint=tmp_path / "run.pt")
    assert len(partial.history["query_loss"]) == {0: 30, 1: 13, 2: 12}[times] and len(saved) == 1
    assert_same(load_checkpoint(tmp_path / "run.pt")[0], partial)


def test_afterwards_signals_mean_what_they_did(request):
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, earlier))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(interrupted(signal.SIGINT, 2))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_answer_in_the_middle_of_a_print(monkeypatch, capfd):
    """Python's streams refuse to be entered twice, as by the handler of a signal."""

    def print_again(*_, **__):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    monkeypatch.setattr("builtins.print", print_again)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    run(interrupted(signal.SIGINT))
    assert "SIGINT: finishing this iteration" in capfd.readouterr().out


class Broken:
    """A stdout whose reader is gone, or whose disk is full."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    flush = write


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.ENOSPC, "No space"), ValueError("closed file"), None],
)
def test_output_that_fails_stops_nothing(error, tmp_path, monkeypatch):
    expected = run()
    monkeypatch.setattr(sys, "stdout", Broken(error) if error else None)
    options = dict(progress="sines", checkpoint=tmp_path / "run.pt", resume=True)
    partial = run(interrupted(signal.SIGINT), **options)
    assert len(partial.history["query_loss"]) == 13
    assert_same(run(**options), expected)
