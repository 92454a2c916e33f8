"""progress: what `check` records, and how little can go wrong with the files."""

import errno
import os
from pathlib import Path

import pytest
from support.toy_exercises import STUBS, TOYS, scaled_step, wrong_sign

from maml_edu.classroom import checks, progress_record
from maml_edu.classroom.checks import check


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    exercises = dict(TOYS)
    for module in (checks, progress_record):
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
    """The progress folder, in a folder of its own. kept.table() is what `progress` prints, without the header."""
    monkeypatch.setenv("MAML_EDU_PROGRESS", str(tmp_path))
    monkeypatch.setattr(progress_record, "_unsaved", set())

    class Kept:
        path = tmp_path / ".maml_edu_progress"

        def files(self):
            return sorted(os.listdir(self.path)) if self.path.exists() else []

        def table(self):
            capsys.readouterr()
            assert progress_record.progress() is None
            header, *lines = capsys.readouterr().out.splitlines()
            assert header.split() == ["notebook", "solved", "tried", "total", "open"]
            return [" ".join(line.split()) for line in lines]

    return Kept()


def test_progress_counts_solved_tried_and_open(kept):
    assert kept.table() == ["01 0 0 1 1.1", "03 0 0 1 3.2", f"Nothing is kept yet. Outcomes will go to {kept.path}."]
    check("1.1", 3)
    check("3.2", wrong_sign)
    where = f"Kept in {kept.path}. Delete this folder to start afresh."
    assert kept.table() == ["01 1 1 1 none", "03 0 1 1 3.2", where]
    for name in kept.files():
        (kept.path / name).unlink()
    kept.path.rmdir()
    assert kept.table()[:2] == ["01 0 0 1 1.1", "03 0 0 1 3.2"]


def test_numbers_are_sorted_as_numbers(kept, toys):
    for number in ("3.10", "10.1", "3.9"):
        toys[number] = toys["1.1"]
    assert [line.split()[0] for line in kept.table()[:3]] == ["01", "03", "10"]
    assert kept.table()[1].endswith("3.2, 3.9, 3.10")


def raises_an_error(theta, alpha):
    return theta["no such name"]


@pytest.mark.parametrize(
    "answer, file",
    [(scaled_step, "3.2.correct"), (wrong_sign, "3.2.tried"), (3.0, "3.2.tried"), (raises_an_error, "3.2.tried")],
)
def test_an_outcome_is_one_empty_file(answer, file, kept):
    check("3.2", answer)
    check("3.2", answer)
    assert kept.files() == [file] and not (kept.path / file).read_bytes()


@pytest.mark.parametrize("answer", STUBS)
def test_a_stub_records_nothing(answer, kept):
    check("3.2", answer)
    assert not kept.path.exists()


def test_once_correct_stays_correct(kept):
    for answer in (wrong_sign, scaled_step, wrong_sign):
        check("3.2", answer)
    assert kept.table()[1] == "03 1 1 1 none"


def test_the_folder_stands_in_the_working_folder(kept, monkeypatch):
    monkeypatch.delenv("MAML_EDU_PROGRESS")
    monkeypatch.chdir(kept.path.parent)
    check("1.1", 3)
    assert kept.files() == ["1.1.correct"] and os.listdir() == [kept.path.name]


def test_folders_that_are_not_there_are_made(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MAML_EDU_PROGRESS", "~/my/course")
    check("1.1", 3)
    assert (tmp_path / "my" / "course" / kept.path.name / "1.1.correct").exists()


def test_switched_off(kept, monkeypatch):
    monkeypatch.setenv("MAML_EDU_PROGRESS", "")
    monkeypatch.chdir(kept.path.parent)
    check("1.1", 3)
    assert not os.listdir()
    off = "Nothing is saved, because MAML_EDU_PROGRESS is empty."
    assert kept.table() == ["01 0 0 1 1.1", "03 0 0 1 3.2", off]


def test_other_files_and_exercises_that_are_gone_do_not_show(kept):
    kept.path.mkdir()
    for name in ("1.9.correct", ".DS_Store", "3.2.correct", "1.1"):
        (kept.path / name).write_text("anything")
    assert kept.table()[:2] == ["01 0 0 1 1.1", "03 1 1 1 none"]


def refuse(number):
    def refuses(path, *arguments, **options):
        raise OSError(number, os.strerror(number), str(path))

    return refuses


@pytest.mark.parametrize("trouble", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("operation", ["mkdir", "touch"])
def test_a_folder_that_cannot_be_written_is_named(trouble, operation, kept, said, monkeypatch):
    """Also where tests run as root, who may write into any folder: the error is raised by hand."""
    monkeypatch.setattr(Path, operation, refuse(trouble))
    assert said(3, "1.1") == "Exercise 1.1: correct.\n"
    solved, _, problem, *advice = kept.table()
    assert solved == "01 1 1 1 none"  # remembered in this kernel
    assert problem.startswith(f"Your progress can't be kept: {kept.path}")
    assert os.strerror(trouble).lower() in problem and "MAML_EDU_PROGRESS" in " ".join(advice)


def test_a_file_in_the_place_of_the_folder_is_named_and_left(kept, said):
    kept.path.write_text("mine")
    assert kept.table()[-1] == f"Your progress can't be read: {kept.path}: not a directory."
    assert said(3, "1.1") == "Exercise 1.1: correct.\n"
    assert kept.table()[0] == "01 1 1 1 none" and "can't be kept" in kept.table()[2]
    assert kept.path.read_text() == "mine"


def test_a_working_folder_that_is_gone_disturbs_no_check(kept, said, monkeypatch, tmp_path):
    monkeypatch.delenv("MAML_EDU_PROGRESS")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert said(3, "1.1") == "Exercise 1.1: correct.\n"
    assert "can't be kept" in kept.table()[2]


def test_what_could_not_be_written_is_written_later(kept, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(Path, "touch", refuse(errno.ENOSPC))
        check("1.1", 3)
        assert kept.files() == [] and "no space" in kept.table()[2]
    check("3.2", wrong_sign)
    assert kept.files() == ["1.1.correct", "3.2.tried"] and kept.table()[-1].startswith("Kept in")


def test_two_kernels_that_take_turns_lose_nothing(kept, monkeypatch):
    for number in ("1.1", "3.2", "1.1", "3.2"):
        monkeypatch.setattr(progress_record, "_unsaved", set())  # another kernel
        check(number, 3)
    assert kept.files() == ["1.1.correct", "3.2.tried"]
