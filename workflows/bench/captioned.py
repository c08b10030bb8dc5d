"""Captioned pictures in webdataset tars, no two the same."""

import io
import tarfile
from pathlib import Path

import numpy as np

SIDE = 64
TAR_DOCUMENTS = 1000


def write_tars(folder: Path, documents: int, seed: int = 0, each: int = TAR_DOCUMENTS) -> None:
    """So many documents in tars of `each`; another seed gives others."""
    for number, start in enumerate(range(0, documents, each)):
        write_tar(folder / f"{number:05d}.tar", min(each, documents - start), (seed, number))


def write_tar(path: Path, documents: int, seed: tuple[int, ...]) -> None:
    """One tar, made anew."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as archive:
        for number in range(documents):
            noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            stream = io.BytesIO()
            noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "PNG")
            caption = f"picture {number} of {seed}".encode()
            for suffix, data in ((".png", stream.getvalue()), (".txt", caption)):
                info = tarfile.TarInfo(f"{number:05d}{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
