"""Turns the npm package emoji-datasource-google into image-text tars: KEY.png, KEY.txt, KEY.json.

    npm pack emoji-datasource-google@16.0.0
    python examples/emoji/make_webdataset.py emoji-datasource-google-16.0.0.tgz raw/emoji

The same package gives the same bytes. Needs nothing but Python.
"""

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARD = 1000
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}


def rows(package: tarfile.TarFile, tones: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """File name of each picture that the package has, with its label, tags and group."""
    listing = package.extractfile("package/emoji.json")
    assert listing is not None
    for emoji in sorted(json.load(listing), key=lambda e: int(e["sort_order"])):
        label = (emoji["name"] or emoji["short_name"].replace("_", " ").replace("-", " ")).lower()
        about = {
            "label": label,
            "tags": [name.replace("_", " ") for name in emoji["short_names"]],
            "group": emoji["category"],
        }
        if emoji["has_img_google"]:
            yield emoji["image"], about
        for tone, variant in (emoji.get("skin_variations") or {}).items() if tones else ():
            if variant["has_img_google"]:
                said = " and ".join(TONES[code] for code in tone.split("-") if code in TONES)
                yield variant["image"], {**about, "label": f"{label}: {said}"}


def write(samples: list[tuple[str, bytes, dict[str, Any]]], path: Path) -> None:
    """One tar of samples, with no clock or owner in it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, png, about in samples:
            text = json.dumps(about, ensure_ascii=False).encode()
            for suffix, data in (("png", png), ("txt", about["label"].encode()), ("json", text)):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    path.write_bytes(stream.getvalue())


def main() -> int:
    """Reads the package, writes the tars."""
    parser = argparse.ArgumentParser(description="npm package emoji-datasource-google -> webdataset tars")
    parser.add_argument("package", type=Path, help="emoji-datasource-google-*.tgz, as npm pack gives it")
    parser.add_argument("out", type=Path, help="directory for the tars")
    parser.add_argument("--skin-tones", action="store_true", help="the variants by skin tone too")
    arguments = parser.parse_args()
    if not arguments.package.is_file():
        print(f"{arguments.package}: not there; run npm pack emoji-datasource-google@16.0.0", file=sys.stderr)
        return 1
    with tarfile.open(arguments.package) as package:
        wanted = dict(rows(package, arguments.skin_tones))
        pictures: dict[str, bytes] = {}
        for member in package:
            folder, _, name = member.name.rpartition("/")
            stream = (
                package.extractfile(member) if folder == "package/img/google/64" and name in wanted else None
            )
            if stream is not None:
                pictures[name] = stream.read()
    samples = [
        (name.split(".")[0], pictures[name], about) for name, about in wanted.items() if name in pictures
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(samples), SHARD):
        write(samples[start : start + SHARD], arguments.out / f"emoji-{start // SHARD:05d}.tar")
    print(f"{len(samples)} pictures in {-(-len(samples) // SHARD)} tars at {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
