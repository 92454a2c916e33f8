"""Omniglot: what is downloaded and kept, and what happens when disk or network fail."""

import importlib
import os
import shutil
import signal
import sys
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.child_processes import Child
from support.tiny_omniglot import (
    TINY,
    cut_short,
    empty,
    expected_images,
    files_of,
    garbage,
    png,
    replace_drawing,
    serve,
    write_zip,
)

# Not `import maml_edu.data.omniglot_files as data`: that would find the function if a package re-exported it.
data = importlib.import_module("maml_edu.data.omniglot_files")
from maml_edu.data.omniglot_files import DataError, DownloadError, omniglot  # noqa: E402

pytest_plugins = ["support.omniglot_fixtures"]

# ---- Downloads


def test_download_then_work_offline(root, tmp_path, monkeypatch, request):
    asked = serve(monkeypatch, lambda file: (root / file).read_bytes())
    assert torch.equal(omniglot().images, expected_images())
    assert [url for url, _ in asked] == [data.URL + f"{name}.zip" for name in TINY]
    for _, options in asked:
        connect, _ = options["timeout"]
        assert connect <= 5, "no network must be noticed soon"
        assert options["progressbar"]
    for name in TINY:
        (tmp_path / "cache" / f"{name}.zip").unlink()  # the small images are enough from now on
    request.getfixturevalue("no_download")
    assert torch.equal(omniglot().images, expected_images())
    assert torch.equal(omniglot(download=False).images, expected_images())


def test_no_network_says_what_to_do(root, tmp_path, no_network):
    start = time.perf_counter()
    with pytest.raises(DownloadError) as error:
        omniglot()
    assert time.perf_counter() - start < 5
    for part in ("MAML_EDU_DATA", str(tmp_path / "cache"), "images_evaluation.zip", 'characters("glyphs")'):
        assert part in str(error.value)


def test_a_download_of_something_else_is_refused_and_not_kept(root, tmp_path, monkeypatch):
    serve(monkeypatch, lambda file: b"<html>please log in to this network</html>")
    with pytest.raises(DownloadError, match="hash"):
        omniglot()
    assert list((tmp_path / "cache").iterdir()) == []


def test_only_the_missing_archive_is_downloaded(root, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    shutil.copy(root / "images_background.zip", tmp_path / "cache")
    asked = serve(monkeypatch, lambda file: (root / file).read_bytes())
    omniglot()
    assert [url for url, _ in asked] == [data.URL + "images_evaluation.zip"]


def test_archives_put_into_the_cache_folder_by_hand(root, tmp_path, no_download):
    (tmp_path / "cache").mkdir()
    for name in TINY:  # other container bytes than the official ones, the same pixels
        write_zip(tmp_path / "cache" / f"{name}.zip", files_of(name), compression=zipfile.ZIP_DEFLATED)
    assert torch.equal(omniglot().images, expected_images())


def test_download_false_does_not_download(root, no_download):
    with pytest.raises(DataError, match="does not exist"):
        omniglot(download=False)


def test_nowhere_to_download_to(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAML_EDU_CACHE", str(tmp_path / "file" / "cache"))
    serve(monkeypatch, lambda file: (root / file).read_bytes())
    with pytest.raises(DownloadError, match="could not be downloaded"):
        omniglot()


# ---- The cache


def cached(tmp_path):
    (file,) = (tmp_path / "cache").iterdir()  # exactly one, and no draft left behind
    return file


def test_the_second_call_reads_no_archive(root, tmp_path, monkeypatch):
    first = omniglot(root)
    cached(tmp_path)
    monkeypatch.setattr(data, "read_archive", lambda *_: pytest.fail("read an archive again"))
    second = omniglot(root)
    assert torch.equal(first.images, second.images) and first[1:] == second[1:]


def test_archives_of_one_content_share_a_cache(root, tmp_path, no_download):
    """The images were verified pixel by pixel; where they came from does not matter."""
    first = omniglot(root)
    (tmp_path / "unpacked").mkdir()
    for name in TINY:
        zipfile.ZipFile(root / f"{name}.zip").extractall(tmp_path / "unpacked")
    second = omniglot(tmp_path / "unpacked")
    assert torch.equal(first.images, second.images) and first[1:] == second[1:]
    cached(tmp_path)


@pytest.mark.parametrize("unpacked", [False, True])
def test_archives_are_read_again_when_asked(root, tmp_path, unpacked):
    if unpacked:
        for name in TINY:
            zipfile.ZipFile(root / f"{name}.zip").extractall(root)
            (root / f"{name}.zip").unlink()
    omniglot(root)
    if unpacked:
        file = root / "images_background/Greek/character01/0001_01.png"
        file.write_bytes(png(np.zeros((105, 105), bool)))
    else:
        replace_drawing(root / "images_background.zip", png(np.zeros((105, 105), bool)))
    assert torch.equal(omniglot(root).images, expected_images())  # the verified images of before
    with pytest.raises(DataError, match="pixels are not those"):
        omniglot(root, verify=True)
    shutil.rmtree(root)
    with pytest.raises(DataError, match="does not exist"):
        omniglot(root)


def flip_one_pixel(path):
    content = bytearray(path.read_bytes())
    content[content.index(expected_images().numpy().tobytes()) + 5000] ^= 1
    path.write_bytes(content)


def something_else(path):
    torch.save({"weights": torch.zeros(3)}, path)


def text_for_images(path):
    torch.save({"images": "none", "names": [], "alphabets": []}, path)


@pytest.mark.parametrize(
    "damage",
    [cut_short, empty, garbage, flip_one_pixel, something_else, text_for_images],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_cache_is_rebuilt_with_a_note(root, tmp_path, damage):
    first = omniglot(root)
    damage(cached(tmp_path))
    with pytest.warns(UserWarning, match="making them afresh"):
        again = omniglot(root)
    assert torch.equal(first.images, again.images) and first[1:] == again[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        omniglot(root)
    cached(tmp_path)


def test_a_cache_folder_that_cannot_be_written(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAML_EDU_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="set MAML_EDU_CACHE to a folder you can write to"):
        characters = omniglot(root)
    assert torch.equal(characters.images, expected_images())


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_no_half_file(root, tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.warns(UserWarning, match="No space left on device"):
        characters = omniglot(root)
    assert torch.equal(characters.images, expected_images())
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_killed_writer_leaves_nothing_for_ever(root, tmp_path, monkeypatch):
    def die(_):
        os.kill(os.getpid(), signal.SIGKILL)

    def killed():
        os.fsync = die
        omniglot(root)
        return 0

    assert Child(killed).ended() == -signal.SIGKILL
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert torch.equal(omniglot(root).images, expected_images())
    assert cached(tmp_path).suffix == ".pt"


def test_a_cache_that_cannot_be_read_is_left_alone(root, tmp_path, monkeypatch):
    """Nor is it called damaged; the archives are read instead."""
    omniglot(root)
    content = cached(tmp_path).read_bytes()
    monkeypatch.setattr(data, "read_tensors", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied")))
    monkeypatch.setattr(data, "write_tensors", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.warns(UserWarning, match="cannot be used .*denied|Could not write"):
        assert torch.equal(omniglot(root).images, expected_images())
    assert cached(tmp_path).read_bytes() == content


def test_many_at_once_do_not_disturb_each_other(root, tmp_path):
    characters = omniglot(root)
    path = cached(tmp_path)

    def write_or_read(turn):
        if turn % 2:
            data._save(path, characters)
            return characters
        return data._load(path)

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("error")  # a half-written file would be noticed, and warned about
        results = list(pool.map(write_or_read, range(200)))
    assert all(torch.equal(result.images, characters.images) for result in results)
    cached(tmp_path)
