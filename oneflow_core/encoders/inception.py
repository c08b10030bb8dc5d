"""The Inception network of FID (Szegedy et al. 2016, as Heusel et al. 2017 take it), up to its 2048 pooled features.

It differs from the network of other libraries: averages leave out the padding, and the last block takes a maximum
where the paper takes an average. Parameters bear the names of the file that pytorch-fid and torch-fidelity publish,
pt_inception-2015-12-05-6726825d.pth. Weights come by path; nothing is fetched and nothing is unpickled.

Shapes: N images, C channels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oneflow_core.encoders.identity import EncoderError

DIM = 2048
SIDE = 299
"""Pixels of a side of what the network sees."""
OFFICIAL = "6726825d"
"""First digits of the SHA-256 of the weights of FID, which the published file bears in its name."""

Layer = tuple[str, int, tuple[int, int], int, tuple[int, int]]
"""Name, channels out, kernel, stride, padding."""


def layer(name: str, out: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: bool = True) -> Layer:
    """A convolution; `pad` keeps the frame (at stride 1)."""
    k = (kernel, kernel) if isinstance(kernel, int) else kernel
    return name, out, k, stride, (k[0] // 2, k[1] // 2) if pad else (0, 0)


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, width: int, spec: Layer) -> None:
        super().__init__()
        _, out, kernel, stride, padding = spec
        self.conv = nn.Conv2d(width, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)
        self.width = out

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_NCHW)))


class _Mixed(nn.Module):
    """Branches side by side, whose outputs are laid one behind the other; "avg" and "max" are poolings."""

    def __init__(self, width: int, branches: Sequence[Sequence[Layer | str]]) -> None:
        super().__init__()
        self.paths: list[tuple[str, ...]] = []
        self.width = 0
        for branch in branches:
            held, names = width, []
            for step in branch:
                if isinstance(step, str):
                    names.append(step)
                    continue
                if step[0] not in self._modules:
                    self.add_module(step[0], _Conv(held, step))
                names.append(step[0])
                held = step[1]
            self.paths.append(tuple(names))
            self.width += held

    def forward(self, x_NCHW: Tensor) -> Tensor:
        done: dict[tuple[str, ...], Tensor] = {(): x_NCHW}
        for path in self.paths:
            for end in range(1, len(path) + 1):
                if path[:end] not in done:
                    done[path[:end]] = self._step(path[end - 1], done[path[: end - 1]])
        return torch.cat([done[path] for path in self.paths], 1)

    def _step(self, name: str, x_NCHW: Tensor) -> Tensor:
        if name == "avg":
            return F.avg_pool2d(x_NCHW, 3, stride=1, padding=1, count_include_pad=False)
        if name == "max":
            return F.max_pool2d(x_NCHW, 3, stride=1, padding=1)
        if name == "shrink":
            return F.max_pool2d(x_NCHW, 3, stride=2)
        found: Tensor = self._modules[name](x_NCHW)  # type: ignore[misc]
        return found


def _block_a(pool: int) -> list[list[Layer | str]]:
    return [
        [layer("branch1x1", 64)],
        [layer("branch5x5_1", 48), layer("branch5x5_2", 64, 5)],
        [layer("branch3x3dbl_1", 64), layer("branch3x3dbl_2", 96, 3), layer("branch3x3dbl_3", 96, 3)],
        ["avg", layer("branch_pool", pool)],
    ]


def _block_b() -> list[list[Layer | str]]:
    double = [layer("branch3x3dbl_1", 64), layer("branch3x3dbl_2", 96, 3)]
    return [
        [layer("branch3x3", 384, 3, 2, pad=False)],
        [*double, layer("branch3x3dbl_3", 96, 3, 2, pad=False)],
        ["shrink"],
    ]


def _block_c(inner: int) -> list[list[Layer | str]]:
    wide, tall = (1, 7), (7, 1)
    double: list[Layer | str] = [
        layer(f"branch7x7dbl_{n}", inner, kernel) for n, kernel in enumerate(((1, 1), tall, wide, tall), 1)
    ]
    return [
        [layer("branch1x1", 192)],
        [
            layer("branch7x7_1", inner),
            layer("branch7x7_2", inner, wide),
            layer("branch7x7_3", 192, tall),
        ],
        [*double, layer("branch7x7dbl_5", 192, wide)],
        ["avg", layer("branch_pool", 192)],
    ]


def _block_d() -> list[list[Layer | str]]:
    seven = [
        layer("branch7x7x3_1", 192),
        layer("branch7x7x3_2", 192, (1, 7)),
        layer("branch7x7x3_3", 192, (7, 1)),
    ]
    return [
        [layer("branch3x3_1", 192), layer("branch3x3_2", 320, 3, 2, pad=False)],
        [*seven, layer("branch7x7x3_4", 192, 3, 2, pad=False)],
        ["shrink"],
    ]


def _block_e(pooling: str) -> list[list[Layer | str]]:
    one = layer("branch3x3_1", 384)
    two = [layer("branch3x3dbl_1", 448), layer("branch3x3dbl_2", 384, 3)]
    return [
        [layer("branch1x1", 320)],
        [one, layer("branch3x3_2a", 384, (1, 3))],
        [one, layer("branch3x3_2b", 384, (3, 1))],
        [*two, layer("branch3x3dbl_3a", 384, (1, 3))],
        [*two, layer("branch3x3dbl_3b", 384, (3, 1))],
        [pooling, layer("branch_pool", 192)],
    ]


STEM = (
    layer("Conv2d_1a_3x3", 32, 3, 2, pad=False),
    layer("Conv2d_2a_3x3", 32, 3, pad=False),
    layer("Conv2d_2b_3x3", 64, 3),
    "shrink",
    layer("Conv2d_3b_1x1", 80, pad=False),
    layer("Conv2d_4a_3x3", 192, 3, pad=False),
    "shrink",
)
MIXED = {
    **{"Mixed_5b": _block_a(32), "Mixed_5c": _block_a(64), "Mixed_5d": _block_a(64), "Mixed_6a": _block_b()},
    **{"Mixed_6b": _block_c(128), "Mixed_6c": _block_c(160), "Mixed_6d": _block_c(160)},
    **{"Mixed_6e": _block_c(192), "Mixed_7a": _block_d()},
    **{"Mixed_7b": _block_e("avg"), "Mixed_7c": _block_e("max")},
}


class FidInception(nn.Module):
    """Pictures in [-1, 1], [N, 3, 299, 299], to features [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        for name, module in _modules():
            self.order.append(name)
            self.add_module(name, module)

    @classmethod
    def from_file(cls, path: str | Path) -> tuple[FidInception, str]:
        """The network with the weights of a file, and the SHA-256 of the file in hex.

        Raises:
            EncoderError: no such file, or one that holds other weights.
        """
        try:
            data = Path(path).read_bytes()
            held = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise EncoderError(
                f"no weights of Inception could be read from {str(path)!r}: {why}; give "
                "pt_inception-2015-12-05-6726825d.pth, as pytorch-fid publishes it"
            ) from error
        network = cls()
        network.load(held)
        return network.eval().requires_grad_(False), hashlib.sha256(data).hexdigest()

    def load(self, held: Mapping[str, Tensor]) -> None:
        """Takes weights by name; the classifier, and the counters of batches, are not needed.

        Raises:
            EncoderError: one is missing, is of another shape, or belongs to another network.
        """
        if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()):
            raise EncoderError("the file holds no weights by name; give the state dict of pytorch-fid")
        needless = re.compile(r"fc\.|.*num_batches_tracked$")
        kept = {name: value for name, value in held.items() if not needless.match(name)}
        wanted = {n: v.shape for n, v in self.state_dict().items() if not needless.match(n)}
        wrong = sorted(kept.keys() ^ wanted.keys()) or [n for n, s in wanted.items() if kept[n].shape != s]
        if wrong:
            raise EncoderError(
                f"weights of another network: {wrong[0]} and {len(wrong) - 1} more are missing, needless or of "
                "another shape; give pt_inception-2015-12-05-6726825d.pth"
            )
        self.load_state_dict(kept, strict=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features [N, 2048] of pictures in [-1, 1]."""
        for name in self.order:
            x_NCHW = self._modules[name](x_NCHW)  # type: ignore[misc]
        return x_NCHW.mean((2, 3))


def _modules() -> Iterator[tuple[str, nn.Module]]:
    width, pools = 3, 0
    for spec in STEM:
        if isinstance(spec, str):
            pools += 1
            yield f"maxpool{pools}", nn.MaxPool2d(3, stride=2)
            continue
        conv = _Conv(width, spec)
        width = conv.width
        yield spec[0], conv
    for name, branches in MIXED.items():
        mixed = _Mixed(width, branches)
        width = mixed.width
        yield name, mixed
