"""Episodes: every pixel and label accounted for, every draw without replacement, every split apart."""

import os
import socket
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maml_edu.data.drawn_glyphs import glyphs
from maml_edu.data.episodes import LAKE_VALIDATION, EpisodeIndices, Episodes, characters, split
from maml_edu.data.omniglot_files import Characters, DataError, DownloadError, omniglot
from maml_edu.tasks import check_batch

needs_data = pytest.mark.skipif(
    not os.environ.get("MAML_EDU_DATA"),
    reason="MAML_EDU_DATA is not set: it names the folder with the real Omniglot archives",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count=12):
    """Characters whose drawings are noise, so that any two differ, and from every rotation of each other."""
    images = torch.randint(0, 256, (count, 20, 28, 28), generator=seeded(9), dtype=torch.uint8)
    return Characters(images, [f"{i:04d}" for i in range(count)], [""] * count, "glyphs")


def blank(names, alphabets):
    """Characters with names but hardly any pixels; the number in the pixel says which it is."""
    images = torch.arange(len(names)).view(-1, 1, 1, 1).expand(-1, 20, 1, 1)
    return Characters(images, list(names), list(alphabets), "omniglot")


# ---- What a batch looks like


@pytest.mark.parametrize("tasks, ways, shots, queries", [(1, 1, 1, 1), (3, 5, 1, 15), (4, 12, 5, 2), (2, 3, 10, 10)])
def test_shapes_dtypes_and_labels(tasks, ways, shots, queries):
    batch = Episodes(noise(), ways, shots, queries).sample(tasks, seeded())
    assert batch.support_x.shape == (tasks, ways * shots, 1, 28, 28)
    assert batch.query_x.shape == (tasks, ways * queries, 1, 28, 28)
    assert batch.support_x.dtype == batch.query_x.dtype == torch.float32
    for y, each in ((batch.support_y, shots), (batch.query_y, queries)):
        assert y.dtype == torch.int64
        assert y.tolist() == tasks * [[way for way in range(ways) for _ in range(each)]]
    check_batch(batch)


@pytest.mark.parametrize("rotations", [True, False])
def test_every_pixel_comes_from_the_right_drawing_turned_the_right_way(rotations):
    source = noise()
    episodes = Episodes(source, ways=4, shots=2, queries=3, rotations=rotations)
    indices = episodes.indices(6, seeded())
    batch = episodes.build(indices)
    for drawings, x in ((indices.support, batch.support_x), (indices.query, batch.query_x)):
        for t in range(6):
            for way in range(4):
                for i, drawing in enumerate(drawings[t, way]):
                    image = source.images[indices.classes[t, way], drawing]
                    image = torch.rot90(image, int(indices.turns[t, way]), (0, 1))
                    assert torch.equal(x[t, way * drawings.shape[2] + i, 0], image / 255)


def test_grey_levels_reach_from_zero_to_one():
    batch = Episodes(noise(), 5, 5, 15).sample(4, seeded())
    assert batch.support_x.min() == 0 and batch.support_x.max() == 1
    assert len(batch.query_x.unique()) == 256


def own(images):
    return Characters(images, [f"class {i}" for i in range(len(images))], [""] * len(images), "own")


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("size, rotations", [((9, 9), True), ((9, 9), False), ((6, 10), False)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_pictures_of_your_own(channels, size, rotations, dtype):
    """Any size, grey or colour; bytes are scaled, floating-point numbers are not."""
    images = torch.randint(0, 256, (6, 4, *channels, *size), generator=seeded())
    images = images.to(dtype) if dtype == torch.uint8 else images.to(dtype) / 255
    episodes = Episodes(own(images), 3, 1, 2, rotations=rotations)
    batch = episodes.sample(5, seeded())
    assert batch.support_x.shape == (5, 3, *(channels or (1,)), *size) and batch.support_x.dtype == torch.float32
    drawn = episodes.indices(5, seeded())
    picture = images[drawn.classes[4, 2], drawn.query[4, 2, 1]].rot90(int(drawn.turns[4, 2]), (-2, -1))
    expected = picture.float() / 255 if dtype == torch.uint8 else picture.float()
    assert torch.equal(batch.query_x[4, 5], expected if channels else expected[None])


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(6, 4, 9), "expected [classes, pictures, H, W]"),
        (torch.zeros(6, 4, 1, 1, 9, 9), "expected [classes, pictures, H, W]"),
        (torch.zeros(6, 4, 9, 9, dtype=torch.int64), "torch.int64; expected torch.uint8"),
        (torch.full((6, 4, 9, 9), float("nan")), "NaN or infinity"),
        (torch.zeros(6, 4, 6, 10), "6 × 10 don't fit when they're turned by 90°: set rotations=False"),
    ],
)
def test_pictures_that_are_refused(images, message):
    with pytest.raises(ValueError) as refused:
        Episodes(own(images), 3, 1, 1)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_sample_builds_what_indices_draws():
    episodes = Episodes(noise(), 5, 2, 3)
    sampled, built = episodes.sample(7, seeded(1)), episodes.build(episodes.indices(7, seeded(1)))
    assert all(torch.equal(a, b) for a, b in zip(sampled, built, strict=True))


def test_the_tensors_are_the_callers_own():
    episodes = Episodes(noise(), 5, 1, 1)
    batch = episodes.sample(3, seeded())
    for tensor in batch:
        before = tensor[1:].clone()
        tensor[0] = 7
        assert torch.equal(tensor[1:], before)
    assert torch.equal(episodes.sample(3, seeded()).query_x[1:], batch.query_x[1:])


# ---- How episodes are drawn


def test_classes_and_drawings_are_drawn_without_replacement():
    classes, support, query, _ = Episodes(noise(), ways=12, shots=8, queries=12).indices(50, seeded())
    assert torch.equal(classes.sort(dim=1).values, torch.arange(12).expand(50, -1))
    drawn = torch.cat([support, query], dim=2).sort(dim=2).values
    assert torch.equal(drawn, torch.arange(20).expand(50, 12, -1))


def test_everything_is_drawn_equally_often():
    classes, support, query, turns = Episodes(noise(), ways=5, shots=1, queries=2).indices(12000, seeded())
    for draws, values in ((classes, 12), (support, 20), (query, 20), (turns, 4)):
        for way in range(5):  # in every position, so that a label says nothing about the character
            share = torch.bincount(draws[:, way].flatten(), minlength=values) / draws[:, way].numel() * values
            assert len(share) == values and (share - 1).abs().max() < 0.2


def test_tasks_differ_and_so_do_the_turns_within_a_task():
    classes, _, _, turns = Episodes(noise(100), 5, 1, 1).indices(200, seeded())
    assert len(classes.unique(dim=0)) == 200
    assert (turns != turns[:, :1]).any(dim=1).float().mean() > 0.9
    assert (Episodes(noise(), 5, 1, 1, rotations=False).indices(200, seeded()).turns == 0).all()


def test_the_generator_decides():
    episodes = Episodes(noise(), 5, 1, 3)
    first, again, other = (episodes.indices(10, seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    one = seeded(1)
    assert torch.equal(episodes.indices(10, one).classes, first.classes)
    assert not torch.equal(episodes.indices(10, one).classes, first.classes), "a generator moves on"


def test_without_a_generator_torch_decides():
    episodes = Episodes(noise(), 5, 1, 3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = episodes.indices(10)
        assert not torch.equal(episodes.indices(10).classes, first.classes)
        torch.manual_seed(3)
        assert torch.equal(episodes.indices(10).classes, first.classes)


class Count(TorchDispatchMode):
    """Counts the operations torch is asked for."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.operations.append(str(operation))
        return operation(*args, **(kwargs or {}))


def test_no_loop_over_tasks_and_no_wait_for_the_device():
    episodes = Episodes(noise(), 5, 1, 15)
    counts = []
    for tasks in (2, 64):
        with Count() as count:
            episodes.sample(tasks, seeded())
        counts.append(count.operations)
    assert counts[0] == counts[1] and len(counts[0]) < 60
    assert not any("_local_scalar_dense" in operation or "nonzero" in operation for operation in counts[0])


@needs_gpu
def test_on_a_gpu_the_same_episodes_and_no_synchronisation():
    on_cpu, on_gpu = (Episodes(noise(), 5, 1, 15, device=device) for device in ("cpu", "cuda"))
    expected, batch = on_cpu.sample(8, seeded()), on_gpu.sample(8, seeded())
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, batch, strict=True))
    generators = seeded(), torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for generator in generators:
            assert all(tensor.is_cuda for tensor in on_gpu.sample(8, generator))
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- Leaky episodes, made on purpose


def build(episodes, indices):
    """The batch and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return episodes.build(indices), [str(warning.message) for warning in caught]


def test_honest_indices_build_without_a_warning():
    episodes = Episodes(noise(), 5, 5, 15)
    assert build(episodes, episodes.indices(40, seeded()))[1] == []


def test_query_equal_to_support_is_built_and_pointed_out():
    episodes = Episodes(noise(), 5, 1, 15)
    indices = episodes.indices(4, seeded())
    batch, (message,) = build(episodes, indices._replace(query=indices.support))
    assert "20 of 20 query drawings" in message and "4 of 4 tasks" in message
    assert torch.equal(batch.support_x, batch.query_x) and torch.equal(batch.support_y, batch.query_y)


def test_a_single_shared_drawing_is_found():
    episodes = Episodes(noise(), 5, 2, 3)
    indices = episodes.indices(4, seeded())
    indices.query[2, 3, 1] = indices.support[2, 3, 0]
    _, (message,) = build(episodes, indices)
    assert "1 of 60 query drawings" in message and "1 of 4 tasks" in message


def test_the_same_number_in_another_class_or_task_is_another_drawing():
    classes = torch.tensor([[0, 1], [2, 3]])
    support, query = torch.tensor([[[0], [1]], [[1], [0]]]), torch.tensor([[[1], [0]], [[0], [1]]])
    indices = EpisodeIndices(classes, support, query, torch.zeros(2, 2, dtype=torch.int64))
    assert build(Episodes(noise(), 2, 1, 1), indices)[1] == []


def test_a_class_that_is_there_twice_leaks_too():
    classes, support, query = torch.tensor([[4, 4]]), torch.tensor([[[0], [1]]]), torch.tensor([[[1], [2]]])
    indices = EpisodeIndices(classes, support, query, torch.zeros(1, 2, dtype=torch.int64))
    assert "1 of 2 query drawings" in build(Episodes(noise(), 2, 1, 1), indices)[1][0]


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"support": torch.zeros(2, 5, dtype=torch.int64)}, "indices.support has shape"),
        ({"query": torch.zeros(2, 4, 3, dtype=torch.int64)}, "indices.query has shape"),
        ({"query": torch.zeros(2, 5, 0, dtype=torch.int64)}, "indices.query has shape"),
        ({"turns": torch.zeros(3, 5, dtype=torch.int64)}, "indices.turns has shape"),
        ({"classes": torch.zeros(5, dtype=torch.int64)}, "indices.classes has shape"),
        ({"classes": torch.full((2, 5), 12)}, "reaches from 12 to 12; expected 0 to 11"),
        ({"support": torch.full((2, 5, 1), -1)}, "reaches from -1 to -1; expected 0 to 19"),
        ({"query": torch.full((2, 5, 1), 20)}, "expected 0 to 19"),
        ({"turns": torch.ones(2, 5, dtype=torch.int64)}, "expected 0 to 0, as rotations are off"),
    ],
)
def test_impossible_indices(change, fault):
    episodes = Episodes(noise(), 5, 1, 3, rotations=False)
    with pytest.raises(ValueError, match=fault):
        episodes.build(episodes.indices(2, seeded())._replace(**change))


# ---- Impossible wishes


@pytest.mark.parametrize(
    "wish, fault",
    [
        ({"ways": 13}, "13 ways need 13 different characters, and there are only 12"),
        ({"shots": 6, "queries": 15}, r"6 \+ 15 = 21 different drawings, and a character has only 20"),
        ({"ways": 0}, "ways must be a positive whole number, not 0"),
        ({"shots": -1}, "shots must be"),
        ({"queries": 0}, "queries must be"),
        ({"queries": 1.5}, "queries must be"),
        ({"ways": True}, "ways must be"),
        ({"device": "abacus"}, "cannot use device 'abacus'"),
    ],
)
def test_impossible_episodes(wish, fault):
    with pytest.raises(ValueError, match=fault):
        Episodes(noise(), **({"ways": 5, "shots": 1, "queries": 1} | wish))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_gpu():
    with pytest.raises(ValueError, match="cannot use device 'cuda'"):
        Episodes(noise(), 5, 1, 1, device="cuda")


@pytest.mark.parametrize("tasks", [0, -1, 2.0, None])
def test_impossible_numbers_of_tasks(tasks):
    with pytest.raises(ValueError, match="tasks must be a positive whole number"):
        Episodes(noise(), 5, 1, 1).sample(tasks)


# ---- Splits


def names_of(parts):
    return [set(part.names) for part in parts]


@pytest.mark.parametrize("count, sizes", [(1623, (1100, 100, 423)), (400, (271, 25, 104)), (20, (14, 1, 5))])
def test_finn_sizes_and_nothing_shared(count, sizes):
    names = [f"{i:04d}" for i in range(count)]
    parts = split(blank(names, names), "finn")
    assert tuple(len(part.names) for part in parts) == sizes
    assert set.union(*names_of(parts)) == set(names) and sum(map(len, names_of(parts))) == count
    for part in parts:
        assert [f"{int(image[0, 0, 0]):04d}" for image in part.images] == part.names == part.alphabets


def test_finn_depends_on_names_only():
    names = [f"{i:04d}" for i in range(200)]
    straight = split(blank(names, names))
    with torch.random.fork_rng():
        torch.manual_seed(17)
        backwards = split(blank(names[::-1], names[::-1]))
    assert [part.names for part in straight] == [part.names for part in backwards]
    assert straight[0].names != names[:136], "shuffled"
    # Pinned: another machine, or a later version, must not move characters between training and test.
    assert straight[0].names[:5] == ["0044", "0057", "0157", "0064", "0019"]
    assert straight[2].names[-1] == "0059"


@needs_data
def test_the_splits_of_the_real_data():
    everything = omniglot()
    finn, lake = split(everything, "finn"), split(everything, "lake")
    assert [len(part.names) for part in finn] == [1100, 100, 423]
    assert [len(part.names) for part in lake] == [815, 149, 659]
    assert finn[0].names[:2] == ["evaluation/Kannada/character05", "background/Bengali/character21"]
    for parts in (finn, lake):
        assert set.union(*names_of(parts)) == set(everything.names) and sum(map(len, names_of(parts))) == 1623
    alphabets = [set(part.alphabets) for part in lake]
    assert [len(part) for part in alphabets] == [25, 5, 20]
    assert alphabets[1] == set(LAKE_VALIDATION)
    assert not alphabets[0] & alphabets[1] and not (alphabets[0] | alphabets[1]) & alphabets[2]
    assert all(name.startswith("evaluation/") for name in lake[2].names)
    assert all(name.startswith("background/") for name in lake[0].names + lake[1].names)


def test_impossible_splits():
    with pytest.raises(ValueError, match=r"\(glyphs\) have none; use split\(characters, \"finn\"\)"):
        split(glyphs(20), "lake")
    with pytest.raises(ValueError, match='must be "finn" or "lake", not \'vinyals\''):
        split(noise(), "vinyals")
    with pytest.raises(ValueError, match="3 characters are too few .* it leaves 2 / 0 / 1 for training"):
        split(noise(3), "finn")
    with pytest.raises(ValueError, match="2 / 0 / 0"):
        split(blank(["background/Hebrew/1", "background/Hebrew/2"], ["Hebrew", "Hebrew"]), "lake")


# ---- Where characters come from


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("MAML_EDU_DATA", raising=False)
    monkeypatch.setenv("MAML_EDU_CACHE", str(tmp_path / "cache"))


def test_offline_auto_gives_glyphs_and_says_so(offline):
    with pytest.warns(UserWarning, match="NOT OMNIGLOT.*synthetic glyphs") as caught:
        stand_in = characters()
    assert stand_in.source == "glyphs" and len(caught) == 1
    assert "MAML_EDU_DATA" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_offline_omniglot_is_an_error(offline):
    with pytest.raises(DownloadError):
        characters("omniglot")


def test_an_unusable_folder_is_never_replaced_by_glyphs(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("MAML_EDU_DATA", str(tmp_path))
    with pytest.raises(DataError, match="lacks images_background"):
        characters("auto")


def test_damaged_archives_are_never_replaced_by_glyphs(offline, tmp_path):
    (tmp_path / "cache").mkdir()
    for name in ("images_background", "images_evaluation"):
        (tmp_path / "cache" / f"{name}.zip").write_bytes(b"half a downl")
    with pytest.raises(DataError, match="damaged"):
        characters("auto")


def test_glyphs_on_request_without_a_warning(offline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert characters("glyphs").source == "glyphs"


def test_unknown_source():
    with pytest.raises(ValueError, match='"auto", "omniglot" or "glyphs", not \'mnist\''):
        characters("mnist")


@needs_data
def test_auto_takes_the_real_data_where_there_is_some():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert characters().source == "omniglot"
