"""n-way k-shot episodes: characters become tasks.

An episode picks n characters and k drawings of each to learn from, and asks about other drawings of the same
characters. Which character is called 0, 1, 2 … is drawn afresh for every episode, so a label means nothing
until the support set has been seen.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from maml_edu.data.character_set import Characters
from maml_edu.data.drawn_glyphs import glyphs
from maml_edu.data.omniglot_files import DownloadError, omniglot
from maml_edu.tasks import TaskBatch

# Lake et al. hold out alphabets but name none for validation. These five background alphabets are our
# choice: 149 characters, from scripts unlike each other.
LAKE_VALIDATION = ("Bengali", "Early_Aramaic", "Greek", "Korean", "Tagalog")


def characters(source: str = "auto") -> Characters:
    """Omniglot, or what stands in for it.

    source  "omniglot": the real thing, or an error; "glyphs": synthetic characters; "auto": Omniglot wherever
            it can be had, else glyphs, with a warning that says so.
    With MAML_EDU_DATA set, "auto" never falls back: if that folder is unusable, DataError says why.
    """
    if source not in ("auto", "omniglot", "glyphs"):
        raise ValueError(f'source must be "auto", "omniglot" or "glyphs", not {source!r}')
    if source == "glyphs":
        return glyphs()
    try:
        return omniglot()
    except DownloadError as error:
        if source == "omniglot":
            raise
        warnings.warn(
            "NOT OMNIGLOT: the data set is not here and could not be downloaded, so these are synthetic "
            f"glyphs. Accuracies on glyphs cannot be compared with published ones.\n{error}",
            stacklevel=2,
        )
        return glyphs()


def split(characters: Characters, how: str = "finn") -> tuple[Characters, Characters, Characters]:
    """Training, validation and test characters, with no character in two of them.

    how  "finn": all characters shuffled, 1100 / 100 / 423 (Finn, Abbeel, Levine 2017, and their code); any
         other number is divided in proportion. Test characters come from alphabets seen in training.
         "lake": whole alphabets held out (Lake et al. 2015): 25 background alphabets to train, the other 5 to
         validate (LAKE_VALIDATION), the 20 evaluation alphabets to test. Harder.
    The split is the same on every machine and for every training seed.
    Raises ValueError if `how` is unknown, if "lake" finds no alphabets, or if a part would be empty.
    """
    names = characters.names
    if how == "finn":
        # A seed of its own, and names in sorted order first: neither the training seed nor a file system
        # decides who is in the test set.
        shuffle = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
        in_order = sorted(range(len(names)), key=names.__getitem__)
        shuffled = [in_order[i] for i in shuffle]
        train, validation = (round(len(names) * part / 1623) for part in (1100, 100))
        parts = shuffled[:train], shuffled[train : train + validation], shuffled[train + validation :]
    elif how == "lake":
        if not all(characters.alphabets):
            raise ValueError(
                f'the "lake" split holds out whole alphabets, and these characters ({characters.source}) '
                'have none; use split(characters, "finn")'
            )
        parts = [], [], []
        for i, (name, alphabet) in enumerate(zip(names, characters.alphabets, strict=True)):
            parts[2 if name.startswith("evaluation/") else 1 if alphabet in LAKE_VALIDATION else 0].append(i)
    else:
        raise ValueError(f'how must be "finn" or "lake", not {how!r}')
    if not all(parts):
        raise ValueError(
            f'{len(names)} characters are too few for the "{how}" split: it leaves '
            f"{' / '.join(str(len(part)) for part in parts)} for training / validation / test"
        )
    return characters.take(parts[0]), characters.take(parts[1]), characters.take(parts[2])


class EpisodeIndices(NamedTuple):
    """Which drawings make up T episodes: everything about a batch except its pixels."""

    classes: Tensor  # int64 [T, ways]: the character behind each label
    support: Tensor  # int64 [T, ways, shots]: which of its drawings
    query: Tensor  # int64 [T, ways, queries]
    turns: Tensor  # int64 [T, ways]: quarter turns anticlockwise


class Episodes:
    """A sampler of n-way k-shot tasks: `Episodes(train, ways=5, shots=1, queries=15).sample(tasks=32)`.

    ways       classes in a task
    shots      support drawings per class
    queries    query drawings per class
    rotations  turn every class by 0°, 90°, 180° or 270°, drawn per class and task, the same for its support
               and query drawings (Finn et al. 2017, also at test); for square pictures
    device     where the images are kept and the batches come out
    Raises ValueError if a task wants more classes or drawings than there are, for pictures that aren't as
    `Characters` describes them or can't be turned, or if the device is not there.
    """

    def __init__(
        self,
        characters: Characters,
        ways: int,
        shots: int,
        queries: int,
        rotations: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            _check_positive(name, value)
        _check_pictures(characters.images, rotations)
        count, drawings = characters.images.shape[:2]
        if ways > count:
            raise ValueError(f"{ways} ways need {ways} different characters, and there are only {count}")
        if shots + queries > drawings:
            raise ValueError(
                f"shots + queries = {shots} + {queries} = {shots + queries} different drawings, and a "
                f"character has only {drawings}"
            )
        self.characters = characters
        self.ways, self.shots, self.queries, self.rotations = ways, shots, queries, rotations
        # Every rotation is prepared once, [4 or 1, C, 20, …, 28, 28], so that a batch is a single gather.
        turned = [characters.images.rot90(turn, (-2, -1)) for turn in range(4 if rotations else 1)]
        try:
            self.images = torch.stack(turned).to(device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: this torch was built without CUDA
            raise ValueError(f"cannot use device {str(device)!r}: {error}") from error

    def sample(self, tasks: int, generator: torch.Generator | None = None) -> TaskBatch:
        """T = `tasks` episodes, drawn at random.

        support_x float32 [T, ways·shots, 1, 28, 28], support_y int64 [T, ways·shots]; uint8 pictures are scaled to
        [0, 1], so ink = 1, and floating-point ones keep their scale; colour is [T, ways·shots, channels, H, W];
        query_x and query_y the same with ways·queries examples. The examples of a class stand together.
        """
        return self._gather(self.indices(tasks, generator))

    def indices(self, tasks: int, generator: torch.Generator | None = None) -> EpisodeIndices:
        """Draw T = `tasks` episodes: within each, the classes differ, and so do all drawings of a class.

        The numbers are drawn on the generator's device (without a generator: from torch's own on the CPU), so
        a CPU generator gives the same episodes whatever device the images are on.
        """
        _check_positive("tasks", tasks)
        turns, count, drawings = self.images.shape[:3]
        where = "cpu" if generator is None else generator.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(tasks, *shape, generator=generator, device=where)

        # Where the largest of many random numbers stand: a draw without replacement, for all tasks at once.
        classes = uniform(count).topk(self.ways).indices
        drawn = uniform(self.ways, drawings).topk(self.shots + self.queries).indices
        turned = (turns * uniform(self.ways)).long()
        return EpisodeIndices(classes, drawn[..., : self.shots], drawn[..., self.shots :], turned)

    def build(self, indices: EpisodeIndices) -> TaskBatch:
        """The batch that `indices` describe, whether they come from `indices()` or were made by hand.

        Warns if a drawing is in both the support and the query set of a task: allowed, but such a query says
        nothing about drawings not seen before. Raises ValueError for shapes or numbers that cannot be.
        """
        self._check_indices(indices)
        support, query = (
            (indices.classes[..., None] * self.images.shape[2] + drawings).flatten(1)  # a number per drawing
            for drawings in (indices.support, indices.query)
        )
        shared = (support[:, :, None] == query[:, None, :]).any(dim=1)  # [T, ways·queries]
        if shared.any():
            warnings.warn(
                f"{int(shared.sum())} of {shared.numel()} query drawings are in the support set of their own "
                f"task (in {int(shared.any(dim=1).sum())} of {len(shared)} tasks): accuracy on them is "
                "memory, not generalisation.",
                stacklevel=2,
            )
        return self._gather(indices)

    def _check_indices(self, indices: EpisodeIndices) -> None:
        turns, count, drawings = self.images.shape[:3]
        head = list(indices.classes.shape)  # [T, ways]
        for name, limit in (("classes", count), ("support", drawings), ("query", drawings), ("turns", turns)):
            index = getattr(indices, name)
            expected_dim = 3 if name in ("support", "query") else 2
            if index.dim() != expected_dim or list(index.shape[:2]) != head[:2] or index.numel() == 0:
                raise ValueError(
                    f"indices.{name} has shape {list(index.shape)}, indices.classes {head}; expected classes "
                    "and turns [T, ways], support and query [T, ways, drawings], with the same T and ways"
                )
            if index.min() < 0 or index.max() >= limit:
                raise ValueError(
                    f"indices.{name} reaches from {int(index.min())} to {int(index.max())}; expected 0 to "
                    f"{limit - 1}" + (", as rotations are off" if name == "turns" and turns == 1 else "")
                )

    def _gather(self, indices: EpisodeIndices) -> TaskBatch:
        # non_blocking: the CPU does not wait for the indices to arrive on a GPU, nor for any answer from it.
        classes, support, query, turns = (index.to(self.images.device, non_blocking=True) for index in indices)
        return TaskBatch(*self._examples(classes, support, turns), *self._examples(classes, query, turns))

    def _examples(self, classes: Tensor, drawings: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """x float32 [T, ways·k, 1, 28, 28] and y int64 [T, ways·k], from drawings [T, ways, k]."""
        T, ways, k = drawings.shape
        x = self.images[turns[..., None], classes[..., None], drawings].flatten(1, 2)  # [T, ways·k, …, 28, 28]
        y = torch.arange(ways, device=x.device).repeat_interleave(k).repeat(T, 1)
        x = x.unsqueeze(2) if x.dim() == 4 else x  # grey: one channel
        return (x.float() / 255 if x.dtype == torch.uint8 else x.float()), y


def _check_pictures(images: Tensor, rotations: bool) -> None:
    if images.dim() not in (4, 5):
        raise ValueError(
            f"images have shape {list(images.shape)}; expected [classes, pictures, H, W], "
            "or [classes, pictures, channels, H, W]"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; expected torch.uint8, from 0 to 255, or floating-point numbers")
    if not images.isfinite().all():
        raise ValueError("images contain NaN or infinity; repair them before they become episodes")
    height, width = images.shape[-2:]
    if rotations and height != width:
        raise ValueError(f"pictures of {height} × {width} don't fit when they're turned by 90°: set rotations=False")


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
