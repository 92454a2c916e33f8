"""Files that are written as a whole or not at all, and what a killed writer leaves."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.child_processes import Child

from maml_edu.data.atomic_write import write_atomically

forks = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def writer(path, content, stopped_by):
    """A child that stops in the middle of writing."""

    def write():
        def stop(file):
            print("written", flush=True)
            os.kill(os.getpid(), stopped_by) if stopped_by else signal.pause()

        os.fsync = stop
        write_atomically(path, content)
        return 0

    return Child(write)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_text_bytes_and_folders(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a" / "b" / "text", "α\n")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "α\n".encode()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_atomically("~/bytes", b"\x00\xff")
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff" and names(tmp_path) == ["a", "bytes"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, step, error):
    write_atomically(tmp_path / "file", "old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


@forks
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "file [1].*"  # no pattern
    write_atomically(path, "old")
    assert writer(path, "new", signal.SIGKILL).ended() == -signal.SIGKILL
    assert path.read_text() == "old" and len(names(tmp_path)) == 2
    write_atomically(tmp_path / "another", "")
    assert len(names(tmp_path)) == 3
    write_atomically(path, "newer")
    assert path.read_text() == "newer" and names(tmp_path) == ["another", path.name]


@forks
def test_a_writer_at_work_is_not_disturbed(tmp_path):
    path = tmp_path / "file"
    other = writer(path, "other", None).until("written")
    write_atomically(path, "ours")
    assert path.read_text() == "ours" and len(names(tmp_path)) == 2
    other.kill(signal.SIGKILL).ended()
    write_atomically(path, "again")
    assert names(tmp_path) == ["file"]


@forks
def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Nobody can know who is at work: everything is written, and nothing of others removed."""
    import fcntl

    writer(tmp_path / "file", "other", signal.SIGKILL).ended()
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    write_atomically(tmp_path / "file", "ours")
    assert (tmp_path / "file").read_text() == "ours" and len(names(tmp_path)) == 2


def test_many_writers_at_once(tmp_path):
    """A reader sees one content or another, whole; nobody fails."""
    path, contents = tmp_path / "file", [f"{i}" * 10_000 for i in range(10)]
    write_atomically(path, contents[0])

    def write_or_read(turn):
        if turn % 3:
            write_atomically(path, contents[turn % 10])
        assert path.read_text() in contents

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_or_read, range(300)))
    assert names(tmp_path) == ["file"]
