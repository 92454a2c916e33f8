"""Two tiny archives (four characters in all) in place of the real Omniglot, a server for them, and damage to them."""

import importlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pooch
import torch
from PIL import Image

# Not `import maml_edu.data.omniglot_files as data`: that would find the function if a package re-exported it.
data = importlib.import_module("maml_edu.data.omniglot_files")

TINY = {
    "images_background": ["Greek/character01", "Greek/character02", "N_Ko/character01"],
    "images_evaluation": ["ULOG/character01"],
}


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


# ---- Damage


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"<html>404: Not Found</html>")


def replace_drawing(path, content):
    files = files_of(path.stem)
    files[list(files)[7]] = content
    write_zip(path, files)
