"""progress: what `check` records, and how little can go wrong with the file."""

import errno
import json
import os
import threading
import time

import pytest
from support.toy_exercises import STUBS, TOYS, scaled_step, wrong_sign

from maml_edu.classroom import checks
from maml_edu.classroom import progress_record as progress
from maml_edu.classroom.checks import check
from maml_edu.data import atomic_write as files


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    exercises = dict(TOYS)
    for module in (checks, progress):
        monkeypatch.setattr(module, "registry", lambda: exercises)
    return exercises


@pytest.fixture
def said(capsys):
    """said(answer, number): what `check` prints."""

    def call(answer, number="3.2"):
        capsys.readouterr()
        check(number, answer)
        return capsys.readouterr().out

    return call


@pytest.fixture
def kept(monkeypatch, tmp_path, capsys):
    """The progress file, in a folder of its own. kept.table() is what `progress` prints, without the header."""
    monkeypatch.setenv("MAML_EDU_PROGRESS", str(tmp_path))
    monkeypatch.setattr(progress, "_unsaved", {})

    class Kept:
        path = tmp_path / ".maml_edu_progress.json"

        def holds(self):
            return json.loads(self.path.read_text())

        def table(self):
            capsys.readouterr()
            assert progress.progress() is None
            header, *lines = capsys.readouterr().out.splitlines()
            assert header.split() == ["notebook", "solved", "tried", "in", "all", "open"]
            return [" ".join(line.split()) for line in lines]

    return Kept()


def test_progress_counts_solved_tried_and_open(kept):
    assert kept.table() == ["01 0 0 1 1.1", "03 0 0 1 3.2", f"Nothing is kept yet. Outcomes will go to {kept.path}."]
    check("1.1", 3)
    check("3.2", wrong_sign)
    where = f"Kept in {kept.path}. Delete this file to start afresh."
    assert kept.table() == ["01 1 1 1 none", "03 0 1 1 3.2", where]
    kept.path.unlink()
    assert kept.table()[:2] == ["01 0 0 1 1.1", "03 0 0 1 3.2"]


def test_numbers_are_sorted_as_numbers(kept, toys):
    for number in ("3.10", "10.1", "3.9"):
        toys[number] = toys["1.1"]
    assert [line.split()[0] for line in kept.table()[:3]] == ["01", "03", "10"]
    assert kept.table()[1].endswith("3.2, 3.9, 3.10")


def raises_an_error(theta, alpha):
    return theta["no such name"]


@pytest.mark.parametrize(
    "answer, outcome",
    [(scaled_step, "correct"), (wrong_sign, "not yet"), (3.0, "not yet"), (raises_an_error, "not yet")],
)
def test_outcomes_are_recorded(answer, outcome, kept):
    check("3.2", answer)
    assert kept.holds() == {"3.2": outcome}


@pytest.mark.parametrize("answer", STUBS)
def test_a_stub_records_nothing(answer, kept):
    check("3.2", answer)
    assert not kept.path.exists()


def test_once_correct_stays_correct(kept):
    for answer in (wrong_sign, scaled_step, wrong_sign):
        check("3.2", answer)
    assert kept.holds() == {"3.2": "correct"}


def test_the_file_stands_in_the_working_folder(kept, monkeypatch):
    monkeypatch.delenv("MAML_EDU_PROGRESS")
    monkeypatch.chdir(kept.path.parent)
    check("1.1", 3)
    assert kept.holds() == {"1.1": "correct"} and os.listdir() == [kept.path.name]


def test_a_folder_that_is_not_there_is_made(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("MAML_EDU_PROGRESS", str(tmp_path / "my" / "course"))
    check("1.1", 3)
    assert (tmp_path / "my" / "course" / kept.path.name).exists()


def test_switched_off(kept, monkeypatch):
    monkeypatch.setenv("MAML_EDU_PROGRESS", "")
    monkeypatch.chdir(kept.path.parent)
    check("1.1", 3)
    assert not os.listdir()
    off = "Nothing is kept: the environment variable MAML_EDU_PROGRESS is set to nothing."
    assert kept.table() == ["01 0 0 1 1.1", "03 0 0 1 3.2", off]


DAMAGED = [
    b"",
    b'{"1.1": "corr',
    b"\xff\xfe",
    b"[1, 2]",
    b'{"1.1": {"a": []}}',
    b"[" * 100_000,
    b'{"1.1": "correct"}' + b" " * (1 << 20),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_named_and_written_anew(content, kept, said):
    kept.path.write_bytes(content)
    assert f"{kept.path} is not read: it is" in kept.table()[-1]
    assert said(3, "1.1") == "Exercise 1.1: correct.\n"
    assert kept.holds() == {"1.1": "correct"}


def test_outcomes_of_exercises_that_are_gone_do_not_show(kept):
    kept.path.write_text('{"1.9": "correct", "3.2": "correct"}')
    assert kept.table()[:2] == ["01 0 0 1 1.1", "03 1 1 1 none"]


@pytest.mark.parametrize("trouble", [errno.EACCES, errno.EROFS, errno.ENOSPC, "a file where the folder should be"])
def test_a_folder_that_cannot_be_written_is_named(trouble, kept, said, monkeypatch):
    """Also where tests run as root, who may write into any folder: the error is raised by hand."""
    if isinstance(trouble, int):

        def refuses(*arguments, **options):
            raise OSError(trouble, os.strerror(trouble))

        monkeypatch.setattr(files, "open", refuses, raising=False)
        reason = os.strerror(trouble).lower()
    else:
        kept.path.parent.joinpath("file").touch()
        monkeypatch.setenv("MAML_EDU_PROGRESS", str(kept.path.parent / "file"))
        reason = "exists"
    assert said(3, "1.1") == "Exercise 1.1: correct.\n"
    solved, _, problem, *advice = kept.table()
    assert solved == "01 1 1 1 none"  # remembered in this kernel
    assert "cannot be kept in" in problem and reason in problem and "MAML_EDU_PROGRESS" in " ".join(advice)


def test_what_could_not_be_written_is_written_later(kept, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(files.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))
        check("1.1", 3)
        assert os.listdir(kept.path.parent) == []  # neither a half-written file nor a lock
        assert "no space" in kept.table()[2]
    check("3.2", wrong_sign)
    assert kept.holds() == {"1.1": "correct", "3.2": "not yet"}
    assert kept.table()[-1].startswith("Kept in")


def test_two_writers_at_once_lose_nothing(kept, monkeypatch):
    """Both read slowly: without the lock each would write over what the other has just added."""
    read = progress._read_progress
    monkeypatch.setattr(progress, "_read_progress", lambda path: (read(path), time.sleep(0.005))[0])

    def write(first):
        for n in range(10):
            progress.record(f"{first}.{n}", "correct")

    writers = [threading.Thread(target=write, args=(first,)) for first in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(kept.holds()) == 20
    assert os.listdir(kept.path.parent) == [kept.path.name]


@pytest.mark.parametrize("age", [0, 60])
def test_a_lock_that_was_left_delays_no_check(age, kept):
    lock = kept.path.with_name(kept.path.name + ".lock")
    lock.touch()
    os.utime(lock, (time.time() - age,) * 2)
    start = time.monotonic()
    check("1.1", 3)
    assert time.monotonic() - start < 2 and kept.holds() == {"1.1": "correct"}
    assert lock.exists() == (age == 0)  # a young one is somebody else's
