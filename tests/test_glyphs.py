"""Glyphs: the same for a seed, plausible as characters, not too easy and not too hard."""

import time

import pytest
import torch
from torch import nn

from maml_edu.data.drawn_glyphs import _bezier, glyphs
from maml_edu.data.episodes import Episodes, split


@pytest.fixture(scope="module")
def some():
    return glyphs()


def nearest_neighbour_accuracy(characters, features):
    """5-way 1-shot by nearest neighbour, characters upright, in per cent over 1000 tasks."""
    episodes = Episodes(characters, ways=5, shots=1, queries=1, rotations=False)
    batch = episodes.sample(1000, torch.Generator().manual_seed(1))
    support, query = (features(x.flatten(0, 1)).view(1000, 5, -1) for x in (batch.support_x, batch.query_x))
    return 100 * (torch.cdist(query, support).argmin(-1) == batch.query_y).float().mean().item()


def test_they_look_like_omniglot_to_a_program(some):
    assert some.images.shape == (400, 20, 28, 28) and some.images.dtype == torch.uint8
    assert some.names[0] == "glyph/0001" and some.names[-1] == "glyph/0400" and some.names == sorted(set(some.names))
    assert some.alphabets == [""] * 400
    assert some.source == "glyphs"


def test_ink_is_high_there_is_enough_of_it_and_it_is_anti_aliased(some):
    assert some.images.min() == 0 and some.images.max() == 255
    share = some.images.float().mean(dim=(-1, -2)) / 255  # [400, 20]
    assert 0.05 < share.mean() < 0.15, "Omniglot has 8 per cent"
    assert share.min() > 0.002, "an empty drawing"
    assert share.max() < 0.5
    grey = ((some.images > 0) & (some.images < 255)).float().mean()
    assert grey > 0.05


def test_drawings_and_characters_differ(some):
    assert len(some.images.flatten(0, 1).flatten(1).unique(dim=0)) == 8000
    images = some.images.float().flatten(2)
    same = (images[:, 0] - images[:, 1]).norm(dim=-1).mean()
    other = (images[:, 0] - images.roll(1, 0)[:, 1]).norm(dim=-1).mean()
    assert other > 1.1 * same


def test_the_default_set_is_made_in_a_moment_and_always_the_same(some):
    start = time.process_time()
    again = glyphs.__wrapped__()  # not the one in memory
    assert time.process_time() - start < 4
    assert torch.equal(again.images, some.images)


def test_the_seed_decides():
    assert torch.equal(glyphs.__wrapped__(30, seed=3).images, glyphs.__wrapped__(30, seed=3).images)
    assert not torch.equal(glyphs(30, seed=3).images, glyphs(30, seed=4).images)


def test_a_global_seed_is_neither_used_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    glyphs.__wrapped__(10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_any_number_of_classes(classes):
    characters = glyphs(classes=classes, seed=1)
    assert len(characters.images) == len(characters.names) == len(characters.alphabets) == classes


@pytest.mark.parametrize("classes", [0, -3, 2.5, "many", None])
def test_impossible_numbers_of_classes(classes):
    with pytest.raises(ValueError, match="positive whole number"):
        glyphs(classes=classes)


def test_a_curve_starts_and_ends_at_its_outer_control_points():
    points = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    curve = _bezier(points)
    torch.testing.assert_close(curve[:, 0], points[:, 0])
    torch.testing.assert_close(curve[:, -1], points[:, 3])
    straight = _bezier(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]))
    torch.testing.assert_close(straight[:, 1], 2 * straight[:, 0])


def test_pixels_alone_tell_glyphs_apart_sometimes(some):
    for characters in (some, glyphs(100, seed=1)):
        assert 50 < nearest_neighbour_accuracy(characters, lambda x: x.flatten(1)) < 70


def test_learning_helps(some):
    """A small embedding, trained for seconds on other characters, beats raw pixels by far."""
    train, _, test = split(some, "finn")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = []
        for inputs in (1, 32, 32):
            layers += [nn.Conv2d(inputs, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Flatten())
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    episodes, generator = Episodes(train, 20, 1, 2, rotations=False), torch.Generator().manual_seed(0)
    for _ in range(100):
        support_x, _, query_x, query_y = (tensor[0] for tensor in episodes.sample(1, generator))
        loss = nn.functional.cross_entropy(-(torch.cdist(net(query_x), net(support_x)) ** 2) / 4, query_y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()
    with torch.no_grad():
        learned = nearest_neighbour_accuracy(test, net)
    assert learned > nearest_neighbour_accuracy(test, lambda x: x.flatten(1)) + 15
