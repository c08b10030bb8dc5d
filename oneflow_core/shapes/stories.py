"""Stories: two to four pictures, in which each text says what changes; and a checker of whether pictures follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from oneflow_core.shapes.checker import read
from oneflow_core.shapes.grammar import caption, noun_phrase, parse, place_phrase
from oneflow_core.shapes.lexicon import COLOUR_OF
from oneflow_core.shapes.phrases import Mention, parse_phrase, parse_place, words_of
from oneflow_core.shapes.scene import COLOURS, COUNT_WEIGHTS, GRID, MAX_OBJECTS, Scene, sample_object
from oneflow_core.shapes.split import Split, sample_in_split, split_of

Action = Literal["add", "remove", "recolour", "move"]
ACTIONS: tuple[Action, ...] = get_args(Action)
MAX_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Change:
    """What one text asks for: which object, and for `recolour` and `move` what it becomes."""

    action: Action
    which: Mention
    becomes: Mention = Mention()


@dataclass(frozen=True, slots=True)
class Story:
    """Texts and scenes in turn: `texts[i]` is said before `scenes[i]` is shown."""

    texts: tuple[str, ...]
    scenes: tuple[Scene, ...]


def sample_story(
    rng: np.random.Generator,
    split: Split = "train",
    n_images: int | None = None,
    weights: Sequence[float] = COUNT_WEIGHTS,
) -> Story:
    """A story of `n_images` (2 to 4 by default), every scene of it in `split`; `weights` as in `sample_scene`."""
    wanted = int(rng.integers(2, MAX_IMAGES + 1)) if n_images is None else n_images
    while True:
        scene = sample_in_split(rng, split, weights=weights)
        texts, scenes = [caption(scene, rng)], [scene]
        for _ in range(20 * wanted):
            step = _sample_change(scenes[-1], rng) if len(scenes) < wanted else None
            if step is not None and split_of(step[1]) == split:
                texts.append(describe_change(step[0], rng))
                scenes.append(step[1])
        if len(scenes) == wanted:
            return Story(tuple(texts), tuple(scenes))


def describe_change(change: Change, rng: np.random.Generator) -> str:
    """A sentence that asks for the change; `parse_change` gives it back."""
    the = noun_phrase(change.which, rng, article="the")
    match change.action:
        case "add":
            text = f"Add {noun_phrase(change.which, rng)} {place_phrase(change.which, rng)}"
        case "remove":
            text = f"{_pick(rng, 'Remove', 'Take away')} {the}"
        case "recolour":
            text = f"{_pick(rng, 'Make', 'Paint')} {the} {change.becomes.colour}"
        case "move":
            place = place_phrase(change.becomes, rng).split(" ", 1)[1]
            text = f"Move {the} to {place}"
    return f"{text}."


def parse_change(text: str) -> Change | None:
    """The change that a text asks for, or None for a text that asks for none; case and punctuation do not matter."""
    words = " ".join(words_of(text))
    for pattern, build in _PATTERNS:
        found = re.fullmatch(pattern, words)
        if found and (change := build(*found.groups())) is not None:
            return change
    return None


def allows(change: Change, before: Scene, after: Scene) -> bool:
    """Whether `after` is `before` with just this change; what the text leaves unsaid is free."""
    gone = [o for o in before if o not in after.objects]
    new = [o for o in after if o not in before.objects]
    if change.action == "add":
        return not gone and len(new) == 1 and change.which.agrees(new[0])
    if len([o for o in before if change.which.agrees(o)]) != 1 or len(gone) != 1:
        return False
    if not change.which.agrees(gone[0]):
        return False
    if change.action == "remove":
        return not new
    kept = ("shape", "size", "row", "col") if change.action == "recolour" else ("shape", "size", "colour")
    same = len(new) == 1 and all(getattr(new[0], k) == getattr(gone[0], k) for k in kept)
    return same and change.becomes.agrees(new[0])


def follows(texts: Sequence[str], images: Sequence[NDArray[np.uint8]]) -> list[bool]:
    """For each picture whether it is what its text asks for, given the picture before it.

    `texts[i]` precedes `images[i]`; the first is a caption, the others are changes. A picture that reads as
    no scene is wrong, and so is the one after it. A text without a picture, or the reverse, counts as wrong.
    """
    return follows_scenes(texts, [read(image) for image in images])


def follows_scenes(texts: Sequence[str], scenes: Sequence[Scene | None]) -> list[bool]:
    """`follows` for pictures that were read already; None is a picture that was rejected."""
    right = []
    for index in range(max(len(texts), len(scenes))):
        if index >= len(texts) or index >= len(scenes):
            right.append(False)
        elif index == 0:
            right.append(_shows(texts[0], scenes[0]))
        else:
            change, before, after = parse_change(texts[index]), scenes[index - 1], scenes[index]
            right.append(bool(change and before and after and allows(change, before, after)))
    return right


def _shows(text: str, scene: Scene | None) -> bool:
    mentions = parse(text)
    if mentions is None or scene is None or len(mentions) != len(scene):
        return False
    orders = permutations(scene.objects)
    return any(all(m.agrees(o) for m, o in zip(mentions, order, strict=True)) for order in orders)


def _sample_change(scene: Scene, rng: np.random.Generator) -> tuple[Change, Scene] | None:
    action = ACTIONS[int(rng.integers(len(ACTIONS)))]
    if action == "add":
        return _sample_addition(scene, rng)
    thing = scene.objects[int(rng.integers(len(scene)))]
    which = Mention(thing.shape, thing.colour)
    if sum(which.agrees(other) for other in scene) > 1:
        return None
    others = [o for o in scene if o != thing]
    if action == "remove":
        return (Change("remove", which), Scene(others)) if others else None
    if action == "recolour":
        colours = [c for c in COLOURS if c != thing.colour]
        colour = colours[int(rng.integers(len(colours)))]
        after = Scene([*others, replace(thing, colour=colour)])
        return Change("recolour", which, Mention(colour=colour)), after
    row, col = _free_cell(scene, rng)
    return Change("move", which, Mention(row=row, col=col)), Scene(
        [*others, replace(thing, row=row, col=col)]
    )


def _sample_addition(scene: Scene, rng: np.random.Generator) -> tuple[Change, Scene] | None:
    if len(scene) == MAX_OBJECTS:
        return None
    thing = sample_object(rng, _free_cell(scene, rng))
    size = thing.size if rng.random() < 0.5 else None
    which = Mention(thing.shape, thing.colour, size, thing.row, thing.col)
    return Change("add", which), Scene([*scene, thing])


def _free_cell(scene: Scene, rng: np.random.Generator) -> tuple[int, int]:
    taken = {o.cell for o in scene}
    free = [cell for i in range(GRID * GRID) if (cell := divmod(i, GRID)) not in taken]
    return free[int(rng.integers(len(free)))]


def _pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]


def _read_which(action: Action) -> Callable[[str], Change | None]:
    def build(phrase: str) -> Change | None:
        which = parse_phrase(phrase.split())
        return Change(action, which) if which else None

    return build


def _read_recolour(phrase: str, colour: str) -> Change | None:
    which = parse_phrase(phrase.split())
    return Change("recolour", which, Mention(colour=COLOUR_OF[colour])) if which else None


def _read_move(phrase: str, place: str) -> Change | None:
    which, cell = parse_phrase(phrase.split()), parse_place(["to", *place.split()])
    return Change("move", which, Mention(row=cell[0], col=cell[1])) if which and cell else None


_PATTERNS: tuple[tuple[str, Callable[..., Change | None]], ...] = (
    (r"add (.+)", _read_which("add")),
    (r"(?:remove|take away) (.+)", _read_which("remove")),
    (rf"(?:make|paint) (.+) ({'|'.join(COLOUR_OF)})", _read_recolour),
    (r"move (.+?) to (.+)", _read_move),
)
