"""What a class or a cluster does to a command: signals, kill −9 in the middle of a write, a full disk, lost output."""

import errno
import json
import os
import signal
import sys
import warnings

import pytest
import torch
from support.child_processes import Child

from maml_edu import training
from maml_edu.__main__ import main
from maml_edu.engine.checkpoint_files import load_checkpoint
from maml_edu.engine.run_lock import run_lock
from maml_edu.experiments import runner

pytestmark = pytest.mark.slow

FLAGS = "train --dataset sine --init fan-in --shots 5 --tasks 2 --test-tasks 4 --test-steps 1 --learn-alpha".split()
FLAGS += ["--iterations", "120"]
forks = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def train(out, *more):
    return main([*FLAGS, "--out", str(out), *more])


def result(out):
    stored = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return stored["curve"], stored["per_step"], stored["protocol"]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert train(out) == 0
    return out


def save_always(monkeypatch):
    monkeypatch.setattr(runner, "train", lambda *a, **k: training.train(*a, **{**k, "save_every": 0.0}))


@forks
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint_and_resuming_equals_uninterrupted(which, whole, tmp_path):
    """The child waits in its 50th iteration until the signal has come."""

    def with_a_pause():
        step, (arrived, wakeup) = torch.optim.Adam.step, os.pipe()

        def paused(adam):
            paused.calls += 1
            if paused.calls == 50:
                os.set_blocking(wakeup, False)
                signal.set_wakeup_fd(wakeup)
                print("in the middle", flush=True)
                os.read(arrived, 1)
            return step(adam)

        paused.calls = 0
        torch.optim.Adam.step = paused
        return train(tmp_path)

    run = Child(with_a_pause).until("in the middle").kill(which)
    assert run.ended() == 1, run.said
    assert f"{which.name}: finishing this iteration" in run.said and "Traceback" not in run.said
    assert "stopped after 50 of 120 iterations" in run.said and "Continue with --resume" in run.said
    assert names(tmp_path) == ["checkpoint.pt"]
    assert train(tmp_path, "--resume") == 0
    assert result(tmp_path) == result(whole)
    theirs, ours = (load_checkpoint(folder / "final.pt")[0].theta for folder in (whole, tmp_path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # the same bits


@forks
def test_kill_9_in_the_middle_of_a_checkpoint(whole, tmp_path, capsys, monkeypatch):
    def killed():
        written, write = [], os.fsync

        def fsync(file):  # the second checkpoint is cut off: half its bytes, then kill -9
            written.append(file)
            if len(written) == 2:
                os.ftruncate(file, os.fstat(file).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            write(file)

        os.fsync = fsync
        save_always(monkeypatch)
        return train(tmp_path)

    assert Child(killed).ended() == -signal.SIGKILL
    left = names(tmp_path)
    assert left[0] == "checkpoint.pt" and left[1].endswith(".part") and left[2] == "lock"
    assert len(load_checkpoint(tmp_path / "checkpoint.pt")[0].history["query_loss"]) == 6  # the first, whole
    assert train(tmp_path) == 2  # not overwritten by accident
    assert "already holds a run: continue it with --resume" in capsys.readouterr().err
    assert train(tmp_path, "--resume") == 0
    assert result(tmp_path) == result(whole)
    assert names(tmp_path) == ["checkpoint.pt", "final.pt", "result.json"]


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_does_not_stop_the_training(tmp_path, monkeypatch):
    """Space comes back before the end: a warning each time, and nothing else."""
    calls, fsync = [], os.fsync

    def at_first(file):
        calls.append(file)
        full() if len(calls) < 4 else fsync(file)

    monkeypatch.setattr(os, "fsync", at_first)
    save_always(monkeypatch)
    with pytest.warns(UserWarning, match="could not write .*checkpoint.pt .*No space left.*last whole checkpoint is"):
        assert train(tmp_path) == 0
    assert names(tmp_path) == ["checkpoint.pt", "final.pt", "result.json"]


def test_a_disk_that_stays_full_says_how_to_go_on(whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="could not write"):
            assert train(tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and "--resume" in error and "Traceback" not in error
    assert not list(tmp_path.glob("run/*"))
    assert train(tmp_path / "run", "--resume") == 0
    assert result(tmp_path / "run") == result(whole)


@forks
@pytest.mark.parametrize("output", ["a closed pipe", "/dev/full"])
def test_a_run_whose_output_is_lost_is_saved(output, whole, tmp_path):
    if output == "/dev/full" and not os.path.exists(output):
        pytest.skip("no /dev/full")
    if output == "/dev/full":
        to = os.open(output, os.O_WRONLY)
    else:
        reader, to = os.pipe()
        os.close(reader)
    run = Child(lambda: train(tmp_path), output=to)
    os.close(to)
    assert run.ended() == 0 and run.said == ""
    assert names(tmp_path) == ["checkpoint.pt", "final.pt", "result.json"]
    assert result(tmp_path) == result(whole)


def test_two_runs_into_one_folder(tmp_path, capsys):
    with run_lock(tmp_path):
        before = names(tmp_path)
        assert train(tmp_path) == 2
        assert names(tmp_path) == before
    assert f"this process has another run in {tmp_path}; wait until it ends" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert train(tmp_path / "file" / "run") == 2
    assert capsys.readouterr().err.startswith("maml_edu: ")


def test_a_loss_that_is_not_finite_is_one_warning(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.warns(UserWarning, match="the query loss is not finite"):
            assert train(tmp_path, "--alpha", "1e30") == 1
    assert "trained = train(" not in capsys.readouterr().err
