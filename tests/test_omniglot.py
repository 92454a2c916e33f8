"""Omniglot: what is read, what is refused, and what happens when disk or network fail.

The faults are played through on two tiny archives (four characters in all), made here and put in place of
the real ones.
"""

import hashlib
import importlib
import io
import os
import shutil
import socket
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from PIL import Image

# Not `import maml_edu.omniglot as data`: that would find the function if a package re-exported it.
data = importlib.import_module("maml_edu.omniglot")
from maml_edu.omniglot import DataError, DownloadError, omniglot  # noqa: E402

needs_data = pytest.mark.skipif(
    not os.environ.get("MAML_EDU_DATA"),
    reason="MAML_EDU_DATA is not set: it names the folder with the real Omniglot archives",
)
TINY = {
    "images_background": ["Greek/character01", "Greek/character02", "N_Ko/character01"],
    "images_evaluation": ["ULOG/character01"],
}


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


def png(ink):
    buffer = io.BytesIO()
    Image.fromarray(~ink).save(buffer, format="PNG")
    return buffer.getvalue()


def drawings(name):
    """Path in the archive -> bool [105, 105] for every drawing of a tiny archive."""
    rng = np.random.default_rng(len(name))
    paths = [f"{name}/{c}/{i:04d}_{d:02d}.png" for i, c in enumerate(TINY[name], 1) for d in range(1, 21)]
    return {path: rng.random((105, 105)) < 0.1 for path in paths}


def write_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def files_of(name):
    return {path: png(ink) for path, ink in drawings(name).items()}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with two tiny archives, taken for the real ones; an empty cache; MAML_EDU_DATA not set."""
    folder = tmp_path / "data"
    folder.mkdir()
    archives = []
    for name, characters in TINY.items():
        write_zip(folder / f"{name}.zip", files_of(name))
        ink = np.stack([ink for _, ink in sorted(drawings(name).items())])
        pixels = hashlib.sha256(np.packbits(ink).tobytes()).hexdigest()  # all at once, unlike the module
        md5 = hashlib.md5((folder / f"{name}.zip").read_bytes()).hexdigest()
        archives.append(data.Archive(name, len(characters), md5, pixels))
    monkeypatch.setattr(data, "ARCHIVES", tuple(archives))
    monkeypatch.setenv("MAML_EDU_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAML_EDU_DATA", raising=False)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def no_download(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("tried to download")

    monkeypatch.setattr(pooch, "retrieve", fail)


def serve(monkeypatch, content):
    """Let downloads bring `content(file name)`; returns a list of what was asked for, and how."""
    asked = []

    class Downloader:
        def __init__(self, **options):
            self.options = options

        def __call__(self, url, output_file, pooch):
            asked.append((url, self.options))
            Path(output_file).write_bytes(content(url.rsplit("/", 1)[-1]))

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)
    return asked


def expected_images():
    ink = np.concatenate([np.stack([i for _, i in sorted(drawings(name).items())]) for name in TINY])
    small = [Image.fromarray(255 * i.astype(np.uint8)).resize((28, 28), Image.Resampling.LANCZOS) for i in ink]
    return torch.from_numpy(np.stack(small)).view(4, 20, 28, 28)


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


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"<html>404: Not Found</html>")


def garbled_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(100)
    path.write_bytes(content)


def replace_drawing(path, content):
    files = files_of(path.stem)
    files[list(files)[7]] = content
    write_zip(path, files)


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


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_cache_does_not_outlive_its_files(root, tmp_path, unpacked):
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
    with pytest.raises(DataError, match="pixels are not those"):
        omniglot(root)
    shutil.rmtree(root)
    with pytest.raises(DataError, match="does not exist"):
        omniglot(root)


def flip_one_pixel(path):
    content = torch.load(path, weights_only=True)
    content["images"][2, 3, 4, 5] += 1
    torch.save(content, path)


def rename_a_character(path):
    content = torch.load(path, weights_only=True)
    content["names"][0] = "evaluation/Greek/character01"
    torch.save(content, path)


def something_else(path):
    torch.save({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    "damage",
    [cut_short, empty, garbage, flip_one_pixel, rename_a_character, something_else],
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


@pytest.mark.parametrize("step", ["torch.save", "os.replace"])
def test_a_full_disk_leaves_no_half_file(root, tmp_path, monkeypatch, step):
    def full(content, path):
        if step == "torch.save":
            Path(path).write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch if step == "torch.save" else os, step.split(".")[1], full)
    with pytest.warns(UserWarning, match="No space left on device"):
        characters = omniglot(root)
    assert torch.equal(characters.images, expected_images())
    assert list((tmp_path / "cache").iterdir()) == []


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
