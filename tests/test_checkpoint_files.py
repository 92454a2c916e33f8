"""Checkpoint files: written whole or not at all, verified when they are read, and unable to run code."""

import functools
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.problems import relative, sines
from support.short_runs import assert_same, run, small

import maml_edu
from maml_edu.engine.checkpoint_files import Trained, load_checkpoint, save_checkpoint
from maml_edu.meta_gradient import maml
from maml_edu.models import mlp
from maml_edu.step_sizes import flat_alpha
from maml_edu.training import train

CHECKPOINTS = Path(maml_edu.__file__).parent / "checkpoints"


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


# --------------------------------------------------------------------------------------------------
# What is stored is what is read back


@pytest.mark.parametrize(
    "options",
    [
        dict(lr=np.logspace(-3, -1, 3)[1], alpha=np.float64(0.01), steps=np.int64(2)),
        dict(lr=np.float32(0.01), alpha=[np.float32(0.1)], iterations=np.int32(5), clip=np.float64(1)),
        dict(alpha=torch.nn.Parameter(torch.tensor(0.05)), learn_alpha=True, multi_step=np.uint8(2), steps=2),
        dict(method=functools.partial(maml, route="finite-difference")),
        dict(about={"seed": np.int64(3), "out": Path("x"), "dtype": torch.float32, "splits": (1, np.array([2, 3]))}),
    ],
    ids=["float64", "float32", "parameter", "partial", "about"],
)
def test_a_run_with_numbers_of_numpy_can_be_read_and_resumed(tmp_path, options):
    options = {"iterations": 5, "checkpoint": tmp_path / "run.pt", **options}
    trained = run(**options)
    loaded, settings = load_checkpoint(tmp_path / "run.pt")
    assert_same(loaded, trained)
    assert all(isinstance(v, (str, float, int, tuple, type(None))) for v in settings.values())
    assert_same(run(resume=True, **options), trained)


@pytest.mark.parametrize("value", [np.float64(0.1), np.bool_(True), np.str_("a"), np.longdouble(1), np.array([1, 2])])
def test_settings_become_plain(tmp_path, value):
    save_checkpoint(tmp_path / "final.pt", Trained({}, 0.1, {}), value={"list": [value]})
    _, settings = load_checkpoint(tmp_path / "final.pt")
    assert settings["value"]["list"][0] == (value.tolist() if value.ndim else value)
    assert "numpy" not in type(settings["value"]["list"][0]).__module__


def test_what_cannot_be_stored_is_refused_before_the_training(tmp_path):
    with pytest.raises(TypeError, match="a set cannot be stored in a checkpoint; give tensors, numbers"):
        run(lambda *_, **__: pytest.fail("trained"), checkpoint=tmp_path / "run.pt", about={"seeds": {1, 2}})


def test_a_part_of_a_large_tensor_does_not_bring_the_rest(tmp_path):
    save_checkpoint(tmp_path / "final.pt", Trained({"w": torch.zeros(10**6)[:2]}, 0.1, {}))
    assert (tmp_path / "final.pt").stat().st_size < 10_000


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trained = run(iterations=3, checkpoint="~/runs/run.pt")
    assert (tmp_path / "runs" / "run.pt").exists()
    assert_same(load_checkpoint("~/runs/run.pt")[0], trained)
    assert_same(run(iterations=3, checkpoint="~/runs/run.pt", resume=True), trained)


# --------------------------------------------------------------------------------------------------
# Damage, and files of other kinds


def truncated(path):
    run(iterations=2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-200])


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert path.stat().st_size < 100_000


def overlapping(path):
    """Two entries for the same bytes: more inside than the file has."""
    save_checkpoint(path, Trained({"w": torch.zeros(10**5)}, 0.1, {}))
    with zipfile.ZipFile(path, "a") as archive:
        big = max(archive.infolist(), key=lambda part: part.file_size)
        archive.filelist.append(big)
        archive._didModify = True


def compressed(path):
    """Smaller inside than outside; still, nobody can know what unfolds."""
    save_checkpoint(path, Trained({"w": torch.zeros(10)}, 0.1, {}))
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = bytes(60_000)
        for name, content in parts.items():
            archive.writestr(name, content)


def deep(path):
    nested = []
    for _ in range(100_000):
        nested = [nested]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


OTHERS = {
    "truncated": truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "a list": lambda path: torch.save([1, 2], path),
    "another dict": lambda path: torch.save({"weights": torch.zeros(2)}, path),
    "numbers for names": lambda path: torch.save({1: torch.zeros(2)}, path),
    "theta a list": lambda path: torch.save({"theta": [torch.zeros(2)], "alpha": 0.1}, path),
    "alpha text": lambda path: torch.save({"theta": {"w": torch.zeros(2)}, "alpha": "large"}, path),
    "settings a list": lambda path: torch.save({"theta": {}, "alpha": 0.1, "settings": [1]}, path),
    "adam a number": lambda path: torch.save({"theta": {}, "alpha": 0.1, "adam": 3}, path),
    "losses text": lambda path: torch.save({"theta": {}, "alpha": 0.1, "query_loss": "low"}, path),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"theta": {}, "alpha": 0.1})),
    "legacy": lambda path: torch.save({"theta": {}, "alpha": 0.1}, path, _use_new_zipfile_serialization=False),
    "a zip bomb": zip_bomb,
    "overlapping parts": overlapping,
    "deeply nested": deep,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo if hasattr(os, "mkfifo") else None,
}


@pytest.mark.parametrize("spoil", OTHERS.values(), ids=OTHERS)
def test_a_file_of_another_kind_is_refused_in_one_line(spoil, tmp_path):
    path = tmp_path / "run.pt"
    spoil(path)
    for read in (lambda: load_checkpoint(path), lambda: run(checkpoint=path, resume=True)):
        with pytest.raises(ValueError, match=r"run\.pt is not a ") as error:
            read()
        assert "\n" not in str(error.value) and "delete" not in str(error.value)


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    compressed(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="its parts are compressed"):
        load_checkpoint(tmp_path / "run.pt")


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "huge.pt", "wb") as file:
        file.truncate(1 << 42)  # sparse: four tebibytes that take no space
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "huge.pt")


def test_random_damage_is_found(tmp_path):
    """Truncations, overwritten stretches, single flipped bits: refused in one line, or without any effect."""
    path, rng = tmp_path / "run.pt", np.random.default_rng(0)
    trained = run(iterations=20, checkpoint=path, learn_alpha=True)
    whole, refused = path.read_bytes(), 0
    for trial in range(150):
        content = bytearray(whole)
        at = int(rng.integers(len(whole)))
        if trial % 3 == 0:
            del content[at:]
        elif trial % 3 == 1:
            content[at] ^= 1 << int(rng.integers(8))
        else:
            content[at : at + 40] = rng.bytes(40)
        path.write_bytes(content)
        try:
            loaded, settings = load_checkpoint(path)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
        else:  # a date, or a byte that only fills up
            assert_same(loaded, trained)
            assert settings["method"] == "maml"
    assert refused > 100


def test_a_flipped_byte_of_a_parameter_is_found(tmp_path):
    path = tmp_path / "final.pt"
    save_checkpoint(path, Trained({"w": torch.arange(100.0)}, 0.1, {}))
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(100.0).numpy().tobytes()) + 42
    content[at] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["theta"]["w"], torch.arange(100.0))  # torch reads it without a word
    with pytest.raises(ValueError, match=r"is damaged \(the checksum of archive/data/0 does not match\); restore"):
        load_checkpoint(path)


def test_states_that_only_look_right_are_refused(tmp_path):
    """Every part of a resumable file replaced by something else of a plausible type, checksums right."""
    path = tmp_path / "run.pt"
    run(iterations=5, checkpoint=path, learn_alpha=True)
    state = torch.load(path)
    others = [
        {"adam": {}},
        {"adam": {**state["adam"], "param_groups": [1, 2]}},
        {"generator": torch.zeros(3)},
        {"query_loss": torch.zeros(7)},
        {"seconds": torch.zeros(3)},
        {"validation": torch.zeros(4)},
        {"alpha": 0.1},
    ]
    for other in others:
        torch.save({**state, **other}, path)
        with pytest.raises(ValueError, match=r"run\.pt doesn't hold a run that can be resumed") as error:
            run(iterations=5, checkpoint=path, learn_alpha=True, resume=True)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_cannot_be_read_is_not_called_damaged(error, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    run(iterations=2, checkpoint=path)

    def refuse(*_):
        raise error

    for where in ("builtins.open", "zipfile.ZipFile.testzip"):  # at once, and in the middle
        with monkeypatch.context() as patched:
            patched.setattr(where, refuse)
            with pytest.raises(type(error), match=rf"run\.pt cannot be read: {error.strerror}$"):
                load_checkpoint(path)


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
    with pytest.raises(ValueError, match=r"holds Python objects \(io.open\)|is not a checkpoint"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("value, name", [(np.float64(0.1), ".*numpy._core.multiarray.scalar"), ({1}, "set")])
def test_what_is_not_read_is_named(tmp_path, value, name):
    torch.save({"theta": {}, "alpha": value}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=rf"old.pt holds Python objects \({name}.*, which are not read because"):
        load_checkpoint(tmp_path / "old.pt")


class Allocation:
    """torch.load would make room for as many bytes as the file says, weights_only or not."""

    def __reduce__(self):
        return bytearray, (10**12,)


def test_a_file_cannot_ask_for_memory(tmp_path):
    torch.save({"theta": {}, "alpha": Allocation()}, tmp_path / "greedy.pt")
    with pytest.raises(ValueError, match=r"holds Python objects \(bytearray\)"):
        load_checkpoint(tmp_path / "greedy.pt")


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("*.pt")), ids=lambda path: path.stem)
def test_shipped_checkpoints_are_what_they_were(path):
    """Written before files were verified, and read as torch reads them."""
    trained, settings = load_checkpoint(path.stem)
    stored = torch.load(path)
    assert relative(trained.theta, stored["theta"]) == 0 and list(trained.theta) == list(stored["theta"])
    assert settings == stored["settings"]
    ours, theirs = flat_alpha(trained.alpha), flat_alpha(stored["alpha"])
    assert [torch.as_tensor(a).tolist() for a in ours] == [torch.as_tensor(a).tolist() for a in theirs]


def test_an_unknown_name_is_answered_with_the_names_that_are_shipped():
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nothing'; shipped with the package: "):
        load_checkpoint("nothing")
