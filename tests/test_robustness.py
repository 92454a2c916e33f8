"""What a class or a cluster does to a run: Ctrl-C, kill −9 in the middle of a write, a full disk, two runs at once."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from maml_edu.__main__ import main
from maml_edu.engine.checkpoint_files import Lock, load_checkpoint, read_state

FLAGS = "train --dataset sine --init fan-in --shots 5 --tasks 2 --test-tasks 4 --test-steps 1 --learn-alpha".split()
PROGRAM = [sys.executable, "-m", "maml_edu", *FLAGS]


def result(out):
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return found["curve"], found["per_step"], found["protocol"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert main([*FLAGS, "--iterations", "1500", "--out", str(out)]) == 0
    return out


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint_and_resuming_equals_uninterrupted(which, whole, tmp_path, capsys):
    run = subprocess.Popen(
        [*PROGRAM, "--iterations", "1500", "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    read = b""
    while b"tasks/s" not in read:  # it trains
        assert (more := run.stdout.read1()), f"ended before it could be interrupted: {run.communicate()}"
        read += more
    run.send_signal(which)
    out, err = run.communicate()
    assert run.returncode == 1, err
    assert b"no result written. Continue with --resume" in out and b"Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt"]
    done = len(load_checkpoint(tmp_path / "checkpoint.pt")[0].history["query_loss"])
    assert 0 < done < 1500
    assert main([*FLAGS, "--iterations", "1500", "--out", str(tmp_path), "--resume"]) == 0
    assert result(tmp_path) == result(whole)
    theirs, ours = (read_state(folder / "final.pt")["theta"] for folder in (whole, tmp_path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # the same bits


KILLED = """
import os, signal, sys
import maml_edu.__main__ as command_line, maml_edu.experiments.runner as runs, maml_edu.training as training
written, write = [], os.fsync
def fsync(file):  # the second checkpoint is cut off: half its bytes, then kill -9
    written.append(file)
    if len(written) == 2:
        os.ftruncate(file, os.fstat(file).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    write(file)
os.fsync = fsync
train = training.train
runs.train = lambda *a, **k: train(*a, **{**k, "save_every": 0.0})
command_line.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_kill_9_in_the_middle_of_a_checkpoint(whole, tmp_path, capsys):
    command = [sys.executable, "-c", KILLED, *FLAGS, "--iterations", "1500", "--out", str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left[0] == "checkpoint.pt" and left[1].endswith(".part") and left[2] == "lock"
    assert len(load_checkpoint(tmp_path / "checkpoint.pt")[0].history["query_loss"]) == 50  # the first, whole
    assert main([*FLAGS, "--iterations", "1500", "--out", str(tmp_path)]) == 2  # not overwritten by accident
    assert "already holds a run: continue it with --resume" in capsys.readouterr().err
    assert main([*FLAGS, "--iterations", "1500", "--out", str(tmp_path), "--resume"]) == 0
    assert "taking over" in capsys.readouterr().out
    assert result(tmp_path) == result(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "final.pt", "result.json"]


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_does_not_stop_the_training(tmp_path, monkeypatch):
    """Space comes back before the end: a warning each time, and nothing else."""
    calls, fsync = [], os.fsync

    def at_first(file):
        calls.append(file)
        full() if len(calls) < 4 else fsync(file)

    monkeypatch.setattr(os, "fsync", at_first)
    from maml_edu import training

    monkeypatch.setattr(
        "maml_edu.experiments.runner.train", lambda *a, **k: training.train(*a, **{**k, "save_every": 0.0})
    )
    with pytest.warns(UserWarning, match="could not write .*checkpoint.pt .*No space left.*last whole checkpoint is"):
        assert main([*FLAGS, "--iterations", "40", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "final.pt", "result.json"]


def test_a_disk_that_stays_full_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    assert main([*FLAGS, "--iterations", "40", "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="could not write"):
            assert main([*FLAGS, "--iterations", "40", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and "--resume" in error and "Traceback" not in error
    assert not list((tmp_path / "run").glob("*.pt")) and not list((tmp_path / "run").glob("*.part"))
    assert main([*FLAGS, "--iterations", "40", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_two_runs_into_one_folder(tmp_path):
    """Started together: one trains, the other says so and leaves everything alone."""
    runs = [
        subprocess.Popen(
            [*PROGRAM, "--iterations", "1000", "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    ended = [(*run.communicate(), run.returncode) for run in runs]
    assert sorted(code for *_, code in ended) == [0, 2]
    error = next(err for _, err, code in ended if code == 2).decode()
    assert "another run (process" in error or "already holds a run" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "final.pt", "result.json"]


def test_of_many_that_want_a_lock_one_gets_it(tmp_path):
    """As fast as processes can start: no moment in which the lock is there without its owner's name."""
    program = "import sys, time\nfrom pathlib import Path\nfrom maml_edu.engine.checkpoint_files import Lock\n"
    program += "until = float(sys.argv[2])\nwhile time.time() < until: pass\n"
    program += "with Lock(Path(sys.argv[1])): print('mine'); time.sleep(3)"
    at = str(time.time() + 8)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "lock"), at], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    said = [run.communicate() for run in runs]
    assert [b"mine" in out for out, _ in said].count(True) == 1
    assert [b"RuntimeError: another run (process" in err for _, err in said].count(True) == 2
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_machine_is_never_taken_over(tmp_path):
    (tmp_path / "lock").write_text("1\nsome-other-machine")
    with pytest.raises(RuntimeError, match="a run on some-other-machine .*or delete .* if that run is gone"):
        with Lock(tmp_path / "lock"):
            pass
    assert (tmp_path / "lock").exists()


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main([*FLAGS, "--iterations", "5", "--out", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err.startswith("maml_edu: ")
