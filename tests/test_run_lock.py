"""The lock of a run's folder: one holder, gone with its process, and never a wait."""

import errno
import gc
import os
import platform
import signal
import sys
import threading

import filelock
import pytest
from support.child_processes import Child

from maml_edu.engine.run_lock import run_lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


@pytest.fixture(params=["the system's locks", "no locks in this file system"])
def soft(request, monkeypatch):
    """Every test runs on a file system with and on one without locks; True on the latter."""
    if request.param.startswith("no"):
        import fcntl

        def unsupported(*_):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", unsupported)
        monkeypatch.setattr(os, "link", unsupported)  # where the one is missing, the other usually is
        return True
    return False


def holding(folder, forever=True, at_a_signal=False):
    """A child that holds the folder until it is killed; at_a_signal: that tries to once it gets SIGUSR1."""

    def hold():
        if at_a_signal:
            signal.sigwait([signal.SIGUSR1])
        with run_lock(folder):
            print("mine", flush=True)
            if forever:
                signal.pause()
        return 0

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # also in the child
    child = Child(hold)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return child


def test_one_run_holds_a_folder(soft, tmp_path):
    child = holding(tmp_path).until("mine")
    wanted = (
        rf"another run \(process {child.pid} on {platform.node()}\) holds {tmp_path}/lock; wait until it ends, or name"
    )
    with pytest.raises(RuntimeError, match=wanted) as error:
        with run_lock(tmp_path):
            pass
    assert "\n" not in str(error.value) and ("delete this file if that run is gone" in str(error.value)) == soft
    with run_lock(tmp_path.parent):  # another folder
        pass
    child.kill(signal.SIGKILL).ended()


def test_a_run_that_ends_leaves_nothing(soft, tmp_path):
    assert holding(tmp_path, forever=False).until("mine").ended() == 0
    assert not list(tmp_path.iterdir())
    with run_lock(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    with pytest.raises(ZeroDivisionError):
        with run_lock(tmp_path):
            1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_a_killed_run_does_not_block_the_next(soft, tmp_path):
    holding(tmp_path).until("mine").kill(signal.SIGKILL).ended()
    assert (tmp_path / "lock").exists()
    with run_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_nor_does_it_where_two_names_cannot_be_exchanged(tmp_path, monkeypatch):
    """The library takes over a dead process's file by an exchange that many network drives lack."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "")))
    monkeypatch.setattr(filelock.SoftFileLock, "_try_break_stale_lock", lambda lock: None)
    holding(tmp_path).until("mine").kill(signal.SIGKILL).ended()
    with run_lock(tmp_path):
        pass


def test_a_lock_with_our_own_process_id_is_from_before_a_restart(soft, tmp_path):
    """A restarted container often has the process ids it had, in a name space of its own."""
    for host in (platform.node(), f"{platform.node()}?pidns-f00000a1"):
        (tmp_path / "lock").write_text(f"{os.getpid()}\n{host}\n1\n")
        with run_lock(tmp_path):
            pass
        assert not list(tmp_path.iterdir())


def test_a_lock_of_another_machine_is_not_taken_over(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "")))
    (tmp_path / "lock").write_text(f"{os.getpid()}\nsome-other-machine\n")
    with pytest.raises(
        RuntimeError, match=rf"process {os.getpid()} on some-other-machine\) holds .*/lock; .*delete this"
    ):
        with run_lock(tmp_path):
            pass
    assert (tmp_path / "lock").read_text().startswith(str(os.getpid()))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00\x80" * 100, b"12", b"-1\nhost\n", b"9" * 400 + b"\nhost\n", bytes(9)]
)
def test_random_bytes_in_a_lock(soft, tmp_path, content):
    """With the system's locks nobody holds it. Without them nobody can know: refused in one line, at once."""
    (tmp_path / "lock").write_bytes(content)
    if not soft:
        with run_lock(tmp_path):
            pass
        return
    with pytest.raises(RuntimeError, match="holds .*/lock; wait until it ends, .*or delete this file") as error:
        with run_lock(tmp_path):
            pass
    assert str(error.value).isprintable()


def test_the_lock_is_kept_while_it_is_held(soft, tmp_path):
    """The library lets go of a lock that is collected."""
    child = holding(tmp_path, at_a_signal=True)
    with run_lock(tmp_path):
        gc.collect()
        assert child.kill(signal.SIGUSR1).ended() == 70 and f"process {os.getpid()} on" in child.said


def test_two_runs_of_one_process(soft, tmp_path):
    errors = []

    def second():
        try:
            with run_lock(tmp_path / "."):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    with run_lock(tmp_path):
        second()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(errors) == 2 and all("this process has another run in" in error for error in errors)
    second()
    assert len(errors) == 2


def test_of_many_that_want_a_lock_one_gets_it(soft, tmp_path):
    children = [holding(tmp_path, at_a_signal=True) for _ in range(4)]
    for child in children:
        child.kill(signal.SIGUSR1)
    holders = [child for child in children if "mine" in child.until("\n").said]
    assert len(holders) == 1
    holders[0].kill(signal.SIGKILL)
    assert sorted(child.ended() for child in children) == [-signal.SIGKILL, 70, 70, 70]


def test_a_folder_that_cannot_be_written(soft, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        with run_lock(tmp_path / "nowhere"):
            pass
