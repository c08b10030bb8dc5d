"""Frames: the sizes that images are brought to before they are encoded, one square or buckets of several aspects."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from workflows.corpus.encode_config import BucketsConfig, EncodeConfig

Size = tuple[int, int]
"""Width and height in pixels."""
PIXEL_BYTES = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """The sizes of a config, the squarest first, and the word for them in paths: `64px`, `64px-b16-a2-bf16`."""

    name: str
    sizes: tuple[Size, ...]

    @classmethod
    def of(cls, config: EncodeConfig) -> "Frame":
        """What `config` asks for; the word also tells in what the encoders compute, so that nothing mixes."""
        size, wanted = config.image_size, config.buckets
        sizes = ((size, size),) if wanted is None else buckets(size, wanted)
        aspects = "" if wanted is None else f"-b{wanted.step}-a{wanted.max_aspect:g}"
        short = {"float32": "", "bfloat16": "-bf16", "float16": "-fp16"}[config.dtype]
        return cls(f"{size}px{aspects}{short}", sizes)

    def nearest(self, width: int, height: int) -> int:
        """Number of the size whose proportion is nearest to that of an image of these sides."""
        return _nearest(self.sizes, width, height) if len(self.sizes) > 1 else 0


def buckets(size: int, config: BucketsConfig) -> tuple[Size, ...]:
    """For each shorter side the longest that keeps within `size` squared pixels, lying and standing."""
    found: list[Size] = []
    for short in range(size, 0, -config.step):
        longer = size * size // short // config.step * config.step
        if longer > config.max_aspect * short:
            break
        found += dict.fromkeys([(longer, short), (short, longer)])
    return tuple(found)


@lru_cache(maxsize=1 << 16)
def _nearest(sizes: tuple[Size, ...], width: int, height: int) -> int:
    def distance(size: Size) -> Fraction:
        ratio = Fraction(width * size[1], height * size[0])
        return max(ratio, 1 / ratio)

    return min(range(len(sizes)), key=lambda number: distance(sizes[number]))
