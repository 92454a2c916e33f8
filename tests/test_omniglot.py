"""Omniglot: what is read, and what is refused.

The faults are played through on two tiny archives (four characters in all), made here and put in place of
the real ones.
"""

import importlib
import io
import os
import shutil
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_omniglot import (
    TINY,
    cut_short,
    drawings,
    empty,
    expected_images,
    files_of,
    garbage,
    png,
    replace_drawing,
    write_zip,
)

# Not `import maml_edu.data.omniglot_files as data`: that would find the function if a package re-exported it.
data = importlib.import_module("maml_edu.data.omniglot_files")
from maml_edu.data.omniglot_files import DataError, DownloadError, omniglot  # noqa: E402

pytest_plugins = ["support.omniglot_fixtures"]

needs_data = pytest.mark.skipif(
    not os.environ.get("MAML_EDU_DATA"),
    reason="MAML_EDU_DATA is not set: it names the folder with the real Omniglot archives",
)


# ---- The real data


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Omniglot, built from the archives, and the cache folder it was left in."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAML_EDU_CACHE", str(cache))
        yield omniglot()


@needs_data
def test_all_characters_are_there(real):
    assert real.images.shape == (1623, 20, 28, 28) and real.images.dtype == torch.uint8
    assert real.source == "omniglot"
    assert sum(name.startswith("background/") for name in real.names) == 964
    assert sum(name.startswith("evaluation/") for name in real.names) == 659
    assert len(set(real.names)) == 1623 and real.names == sorted(real.names)
    assert len(set(real.alphabets)) == 50
    assert all(alphabet == name.split("/")[1] for name, alphabet in zip(real.names, real.alphabets, strict=True))


@needs_data
def test_a_drawing_is_its_file_resized_with_lanczos_on_grey_levels(real):
    path = Path(os.environ["MAML_EDU_DATA"]) / "images_background.zip"
    if not path.exists():
        pytest.skip("MAML_EDU_DATA holds unpacked folders, and this test looks into the zip file")
    with zipfile.ZipFile(path) as archive:
        files = sorted(name for name in archive.namelist() if "/Greek/character03/" in name and name.endswith("png"))
        file = Image.open(io.BytesIO(archive.read(files[4])))
    assert file.mode == "1"
    ink = Image.fromarray(255 - np.asarray(file.convert("L")))
    ours = real.images[real.names.index("background/Greek/character03"), 4].numpy()
    assert np.array_equal(ours, np.asarray(ink.resize((28, 28), Image.Resampling.LANCZOS)))
    black_and_white = 255 - np.asarray(file.resize((28, 28), Image.Resampling.LANCZOS).convert("L"))
    assert set(np.unique(black_and_white)) <= {0, 255}, "Pillow now resizes mode 1 properly: simplify _shrink"
    assert len(np.unique(ours)) > 20


@needs_data
def test_ink_is_high_and_paper_is_zero(real):
    images = real.images[::10]
    assert 0.05 < images.float().mean() / 255 < 0.15
    assert (images[..., 0, 0] == 0).float().mean() > 0.95
    assert (images.flatten(2).amax(-1) > 100).float().mean() > 0.99
    assert len(images.unique()) == 256


@needs_data
def test_the_second_call_is_fast_and_says_nothing(real, capfd):
    seconds = []  # of processor time: others may be busy on this machine
    for _ in range(3):
        start = time.process_time()
        again = omniglot()
        seconds.append(time.process_time() - start)
    assert torch.equal(again.images, real.images) and again[1:] == real[1:]
    unpacked = not (Path(os.environ["MAML_EDU_DATA"]) / "images_background.zip").exists()
    assert min(seconds) < (1.0 if unpacked else 0.3)
    assert capfd.readouterr() == ("", "")


# ---- Tiny archives in place of the real ones


def test_reads_what_the_archives_hold(root, no_download, capfd):
    characters = omniglot(root)
    assert torch.equal(characters.images, expected_images())
    assert characters.names == [
        "background/Greek/character01",
        "background/Greek/character02",
        "background/N_Ko/character01",
        "evaluation/ULOG/character01",
    ]
    assert characters.alphabets == ["Greek", "Greek", "N_Ko", "ULOG"]
    assert capfd.readouterr() == ("", "")


def test_take(root):
    characters = omniglot(root)
    some = characters.take([3, 0])
    assert some.names == ["evaluation/ULOG/character01", "background/Greek/character01"]
    assert some.alphabets == ["ULOG", "Greek"] and some.source == "omniglot"
    assert torch.equal(some.images, characters.images[[3, 0]])


@pytest.mark.parametrize("layout", ["unpacked", "unpacked in omniglot-py", "zipped in omniglot-py", "half and half"])
def test_every_layout_gives_the_same(root, tmp_path, layout, no_download):
    other = tmp_path / "other"
    inside = other / "omniglot-py" if "omniglot-py" in layout else other
    inside.mkdir(parents=True)
    for name in TINY:
        if layout.startswith("zipped") or (layout == "half and half" and name == "images_background"):
            shutil.copy(root / f"{name}.zip", inside)
        else:
            zipfile.ZipFile(root / f"{name}.zip").extractall(inside)
    characters = omniglot(other)
    assert torch.equal(characters.images, expected_images())
    assert characters.names == omniglot(root).names


def test_the_container_does_not_matter(root):
    files = files_of("images_background")
    junk = {
        "__MACOSX/images_background/Greek/character01/._0001_01.png": b"junk",
        "images_background/README": b"hi",
    }
    backwards = dict(reversed(files.items()))
    write_zip(root / "images_background.zip", backwards | junk, compression=zipfile.ZIP_DEFLATED)
    assert torch.equal(omniglot(root).images, expected_images())


def test_root_may_come_from_the_environment(root, monkeypatch, tmp_path, no_download):
    monkeypatch.setenv("MAML_EDU_DATA", str(root))
    assert omniglot().names == omniglot(root).names
    with pytest.raises(DataError, match="does not exist"):
        omniglot(tmp_path / "elsewhere")  # an argument is not overruled by the environment


@pytest.mark.parametrize("given_by", ["argument", "environment"])
@pytest.mark.parametrize("folder, fault", [("nowhere", "does not exist"), ("empty", "lacks images_background and")])
def test_an_unusable_folder_is_an_error_and_never_a_download(
    root, tmp_path, monkeypatch, no_download, given_by, folder, fault
):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("MAML_EDU_DATA", str(tmp_path / folder) if given_by == "environment" else "")
    with pytest.raises(DataError, match=fault) as error:
        omniglot(tmp_path / folder if given_by == "argument" else None)
    for part in (folder, "images_background and images_evaluation", "MAML_EDU_DATA"):
        assert part in str(error.value)
    assert not isinstance(error.value, DownloadError)


def test_a_file_in_place_of_the_folder(root):
    with pytest.raises(DataError, match="is a file, not a folder"):
        omniglot(root / "images_background.zip")


def test_one_missing_archive(root, no_download):
    (root / "images_evaluation.zip").unlink()
    with pytest.raises(DataError, match="lacks images_evaluation. Expected"):
        omniglot(root)


def garbled_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(100)
    path.write_bytes(content)


def broken_png(path):
    replace_drawing(path, list(files_of(path.stem).values())[7][:60])


def no_png(path):
    replace_drawing(path, b"no picture")


def other_size(path):
    replace_drawing(path, png(np.zeros((28, 28), bool)))


DAMAGE = [cut_short, empty, garbage, garbled_in_the_middle, broken_png, no_png, other_size]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_archive_is_named(root, damage):
    damage(root / "images_background.zip")
    with pytest.raises(DataError, match="damaged") as error:
        omniglot(root)
    assert str(root / "images_background.zip") in str(error.value)
    assert data.URL + "images_background.zip" in str(error.value)
    if "png" in damage.__name__ or damage is other_size:
        assert list(files_of("images_background"))[7] in str(error.value)


def bomb(path):
    """Sixteen kilobytes that unfold into sixteen megabytes."""
    files = files_of(path.stem)
    files[list(files)[7]] = bytes(1 << 24)
    write_zip(path, files, compression=zipfile.ZIP_DEFLATED)


def bomb_that_says_it_is_small(path):
    bomb(path)
    content = path.read_bytes()
    path.write_bytes(content.replace((1 << 24).to_bytes(4, "little"), (500).to_bytes(4, "little")))


def bomb_in_a_picture(path):
    """Four million pixels in a few kilobytes."""
    replace_drawing(path, png(np.zeros((2000, 2000), bool)))


@pytest.mark.parametrize("damage", [bomb, bomb_that_says_it_is_small, bomb_in_a_picture], ids=lambda d: d.__name__)
def test_what_unfolds_is_refused_before_it_does(root, damage):
    damage(root / "images_background.zip")
    tracemalloc.start()
    with pytest.raises(DataError, match="damaged at images_background/.* Replace it with the official"):
        omniglot(root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("inside", [False, True], ids=["as archive", "as drawing"])
def test_a_pipe_is_refused(root, inside):
    """Opening one would wait for a writer."""
    (root / "images_background.zip").unlink()
    if inside:
        write_zip(root / "images_background.zip", files_of("images_background"))
        zipfile.ZipFile(root / "images_background.zip").extractall(root)
        (root / "images_background.zip").unlink()
        pipe = root / "images_background/Greek/character01/0001_01.png"
        pipe.unlink()
    else:
        pipe = root / "images_background.zip"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="59 drawings" if inside else "is neither a file nor a folder"):
        omniglot(root)


@pytest.mark.parametrize("where", ["archive", "member", "folder", "drawing"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_cannot_be_read_is_not_called_damaged(root, monkeypatch, where, error):
    def refuse(*_, **__):
        raise error

    def walk(*_, onerror):
        onerror(error)

    if where in ("folder", "drawing"):
        zipfile.ZipFile(root / "images_background.zip").extractall(root)
        (root / "images_background.zip").unlink()
    target = {"archive": "zipfile.ZipFile", "member": "zipfile.ZipFile.open", "drawing": "builtins.open"}
    monkeypatch.setattr(target.get(where, "os.walk"), walk if where == "folder" else refuse)
    with pytest.raises(DataError, match=f"cannot be read at .*{error.strerror}") as message:
        omniglot(root)
    assert "Replace" not in str(message.value) and "damaged" not in str(message.value)


def test_a_damaged_file_in_an_unpacked_folder_is_named(root, tmp_path):
    for name in TINY:
        zipfile.ZipFile(root / f"{name}.zip").extractall(tmp_path / "unpacked")
    file = tmp_path / "unpacked" / "images_evaluation/ULOG/character01/0001_05.png"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match="damaged at images_evaluation/ULOG/character01/0001_05.png"):
        omniglot(tmp_path / "unpacked")


@pytest.mark.parametrize("drawing", [0, 39, 40, 59])
def test_one_changed_pixel_is_found(root, drawing):
    ink = drawings("images_background")
    path = list(ink)[drawing]
    ink[path][104, 104] ^= True
    write_zip(root / "images_background.zip", {path: png(i) for path, i in ink.items()})
    with pytest.raises(DataError, match="not those of images_background"):
        omniglot(root)


def test_swapped_archives_are_found(root):
    (root / "images_evaluation.zip").write_bytes((root / "images_background.zip").read_bytes())
    with pytest.raises(DataError, match="expected 1 characters"):
        omniglot(root)


@pytest.mark.parametrize("missing, found", [("N_Ko", "40 drawings of 2 characters from 1 alphabets"), ("_07", "57 dr")])
def test_missing_drawings_are_counted(root, missing, found):
    files = {path: content for path, content in files_of("images_background").items() if missing not in path}
    write_zip(root / "images_background.zip", files)
    with pytest.raises(DataError, match=found):
        omniglot(root)


@pytest.mark.parametrize("files", [{}, {"README": b"hello"}, {"a.png": png(np.zeros((105, 105), bool))}])
def test_an_archive_of_something_else(root, files):
    write_zip(root / "images_background.zip", files)
    with pytest.raises(DataError, match="expected 3 characters with 20 drawings each"):
        omniglot(root)
