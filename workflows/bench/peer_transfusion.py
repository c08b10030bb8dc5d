"""A training step of ours beside one of transfusion-pytorch, and beside a plain Transformer as the floor.

Equal parameters (to 1%), layers and head width, the same samples, one thread; CPU seconds of corruption,
packing, forward and backward, the optimiser left out on all sides. Both train on the text and the image of every
sample: theirs predicts each token from those before, ours reads the half of the text that its corruption keeps. The
floor is given our kept tokens and has our blocks' sizes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from oneflow_core.packing import Pack
from workflows.bench import peers
from workflows.bench.child import Child
from workflows.bench.meters import cost
from workflows.bench.oneflow_step import Step, oneflow_step, transfusion_step, used_parameters
from workflows.bench.pairs import Sizes, draw
from workflows.bench.plain import Kept, Plain
from workflows.bench.result import Result

SHAPES = {"12 layers": Sizes(), "8 layers": Sizes(layers=8, heads=8, peer_width=312)}
"""32M parameters both, the peer with its defaults for heads. 12 layers, ours of 6 heads and 384 wide, are DiT-S's; 8
are the depth of the package's examples."""
WARM_UP = 2
"""Steps before those that are timed: the first ones wait for memory."""
REPORTED: Mapping[str, Callable[[Step], Step]] = {"ar_fm": transfusion_step}
"""Further objectives of ours, each made of the OneFlow step; timed in turn with it and told under `reported`,
as the ratio to the peer."""

Peer = Callable[[int], Mapping[str, Any]]
"""Takes a step on the batch of a seed; tells its seconds, parameters, vocabulary and version."""


def run(runs: int, device: str = "cpu") -> Result:
    """`ratio` to the peer and `floor_ratio` to the floor at 12 layers; `shapes` has both shapes.

    Raises:
        OneFlowError: the peer's packages cannot be had.
    """
    place = peers.install()
    found = {}
    for name, sizes in SHAPES.items():
        arguments = {"sizes": asdict(sizes), "device": device}
        with Child("workflows.bench.transfusion:step", arguments, [place]) as child:
            found[name] = measure(runs, sizes, device, _asking(child))
    first = next(iter(found.values()))
    return replace(first, extra={**first.extra, "shapes": {n: _in_short(each) for n, each in found.items()}})


def measure(runs: int, sizes: Sizes, device: str, peer: Peer) -> Result:
    """One comparison; every run is one step of each side on samples of its own, after two to warm up."""
    theirs = peer(0)
    ours = oneflow_step(sizes, theirs["parameters"], device)
    floor = Plain(ours.model.config, longest=sizes.text + sizes.side**2 + 2).to(device)
    others = {name: make(ours) for name, make in REPORTED.items()}
    steps, kept = [], []
    with _one_thread():
        for seed in range(WARM_UP + runs):
            pairs = draw(sizes, seed)
            seconds, pack = ours.take(pairs, seed)
            taken = {"ours": seconds, "peer": peer(seed)["seconds"], "floor": _floor(floor, pack, device)}
            steps.append(taken | {name: step.take(pairs, seed)[0] for name, step in others.items()})
            kept.append(pack.tokens / sizes.batch)
    seconds_of = {name: [step[name] for step in steps[WARM_UP:]] for name in steps[0]}
    middle = {name: float(np.median(values)) for name, values in seconds_of.items()}
    dims = ours.model.config
    extra = {
        "floor_ratio": float(np.median(np.divide(seconds_of["ours"], seconds_of["floor"]))),
        "floor": middle["floor"],
        "reported": {name: middle[name] / middle["peer"] for name in others},
        "parameters": {
            "ours": used_parameters(ours.model),
            "ours_with_unused_adapter": sum(p.numel() for p in ours.model.parameters()),
            "peer": theirs["parameters"],
            "floor": sum(p.numel() for p in floor.parameters()),
        },
        "vocabularies": {"ours": dims.vocab_size, "peer": theirs["vocabulary"]},
        "widths": {"ours": dims.width, "ours_ffn": dims.ffn, "peer": sizes.peer_width},
        "tokens": {"ours": float(np.mean(kept[WARM_UP:])), "clean": sizes.text + sizes.side**2},
        "sizes": asdict(sizes),
        "peer_version": theirs["version"],
        "device": device,
    }
    others_seconds = {name: values for name, values in seconds_of.items() if name not in ("ours", "peer")}
    unit = "CPU-s a step" if device == "cpu" else "s a step"
    packages = ("torch", "numpy")
    return Result(
        "peer-transfusion", unit, seconds_of["ours"], seconds_of["peer"], packages, extra, others_seconds
    )


def _in_short(found: Result) -> dict[str, float]:
    """What one shape's comparison found, beside the other's."""
    told = found.to_json()
    middle = {name: told[name] for name in ("ratio", "floor_ratio", "ours", "peer", "floor")}
    counts = {f"parameters_{side}": told["parameters"][side] for side in ("ours", "peer", "floor")}
    return middle | counts | {f"width_{side}": told["widths"][side] for side in ("ours", "peer")}


def _asking(child: Child) -> Peer:
    return lambda seed: child.ask(seed=seed)


def _floor(floor: Plain, pack: Pack, device: str) -> float:
    """Seconds of the floor's forward and backward on the tokens that a pack of ours keeps."""
    kept = Kept.of(pack)
    floor.zero_grad()
    with cost(device) as spent:
        floor(kept).backward()
    return spent.seconds


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
