"""Checkpoint files: written whole or not at all, refused where they do not fit, and unable to run code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from support.problems import relative, sines
from support.short_runs import assert_same, run, small

from maml_edu.engine.checkpoint_files import Trained, load_checkpoint, save_checkpoint
from maml_edu.models import mlp
from maml_edu.training import train


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt(), SystemExit(1)])
def test_a_checkpoint_half_written_leaves_the_old_one(error, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    before = run(iterations=5, checkpoint=path)
    whole, save = path.read_bytes(), torch.save

    def half(state, file):
        save(state, file)
        file.truncate(file.tell() // 2)
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(type(error)):
        save_checkpoint(path, before._replace(theta={}))
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    assert_same(load_checkpoint(path)[0], before)


def test_a_checkpoint_is_replaced_in_one_move(tmp_path, monkeypatch):
    """Not copied over the old one: a copy could be cut short."""
    path, moves, replace = tmp_path / "run.pt", [], os.replace
    before = run(iterations=5, checkpoint=path)
    old = path.read_bytes()

    def watched(source, target):
        moves.append((Path(target).read_bytes() == old, load_checkpoint(source)[0]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    save_checkpoint(path, before._replace(alpha=0.5))
    ((untouched_until_then, moved),) = moves
    assert untouched_until_then and moved.alpha == load_checkpoint(path)[0].alpha == 0.5


def test_save_and_load(tmp_path):
    theta = small()[0].theta
    alpha = [{n: torch.tensor(0.1) for n in theta}, 0.2]
    saved = Trained(theta, alpha, {})
    save_checkpoint(tmp_path / "deep" / "final.pt", saved, method="maml", protocol={"ways": 5, "names": ["a"]})
    trained, settings = load_checkpoint(tmp_path / "deep" / "final.pt", small()[0])
    assert settings == {"method": "maml", "protocol": {"ways": 5, "names": ["a"]}}
    assert relative(trained.theta, theta) == 0 and trained.history == {}
    assert trained.alpha[1] == 0.2 and list(trained.alpha[0]) == list(theta)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    run(iterations=2, checkpoint=path)
    other = small(width=9)
    with pytest.raises(ValueError, match=r"checkpoint of another model: w1 is \[1, 8\] there and \[1, 9\] here"):
        train(*other, sines, iterations=2, tasks=2, progress=None, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="checkpoint of another model"):
        load_checkpoint(path, other[0])
    deeper = mlp((1, 8, 8, 1))
    with pytest.raises(ValueError, match=r"another model: w2 is \[8, 1\] there and \[8, 8\] here"):
        load_checkpoint(path, deeper)


@pytest.mark.parametrize("changed", [{"iterations": 6}, {"lr": 0.5}, {"steps": 2}, {"schedule": "cosine"}])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changed):
    run(iterations=5, checkpoint=tmp_path / "run.pt")
    ((name, value),) = changed.items()
    with pytest.raises(ValueError, match=f"is of a run with {name}=.*, and {name}={value} is asked for now"):
        run(**{"iterations": 5, **changed}, checkpoint=tmp_path / "run.pt", resume=True)


def test_final_parameters_are_no_run_to_resume(tmp_path):
    save_checkpoint(tmp_path / "final.pt", run(iterations=2))
    with pytest.raises(ValueError, match="holds final parameters only"):
        run(checkpoint=tmp_path / "final.pt", resume=True)


def truncated(path):
    run(iterations=2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not a checkpoint"),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"weights": torch.zeros(2)}, path),
    ],
    ids=["truncated", "empty", "text", "a list", "another dict"],
)
def test_a_corrupt_checkpoint_is_refused(spoil, tmp_path):
    path = tmp_path / "run.pt"
    spoil(path)
    with pytest.raises(ValueError, match=r"run\.pt is not a (readable )?checkpoint"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match=r"run\.pt is not a (readable )?checkpoint"):
        run(checkpoint=path, resume=True)


class Code:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, 2))])
def test_a_checkpoint_cannot_run_code(write, tmp_path):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    write({"theta": {}, "alpha": Code(trace)}, path)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert not trace.exists()


def test_an_unknown_name_is_answered_with_the_names_that_are_shipped():
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nothing'; shipped with the package: "):
        load_checkpoint("nothing")
