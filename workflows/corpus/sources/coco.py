"""COCO captions: lists `images` and `annotations` in one JSON; several captions for each image."""

from collections.abc import Iterator, Mapping
from typing import Any

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.drafting import Plan, drafts, key_of, plan_of
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.images import Images, Pending
from workflows.corpus.sources.join import Join
from workflows.corpus.sources.json_rows import DOCUMENTS, items
from workflows.corpus.sources.protocol import Draft, Picture, Reader, Refused, same_stem
from workflows.corpus.sources.rows import RowError, field_of, fill, text_of

PROVENANCE = {
    "image": "image.file_name",
    "image_id": "image_id",
    "url": "image.coco_url",
    "flickr": "image.flickr_url",
}


class CocoReader(Reader):
    """A document is an image and one caption; the licence is the image's where the template says `{license.name}`."""

    main = DOCUMENTS

    def beside(self, name: str) -> tuple[str, ...]:
        """The tar and the directory of the same stem."""
        return same_stem(name, self.main, ".tar", "/")

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each caption, in the order of the annotations, which are read in a second pass."""
        with Join() as images, Join() as licences, Join() as seen:
            with files.twice() as stream:
                for number, value in items(stream, ["images.item", "licenses.item"]):
                    if isinstance(value, Mapping):
                        (images if number == 0 else licences).put(value.get("id"), value)
            made = _Captioned(source, files.images, images, licences)
            yield from drafts(_captions(files, source, seen), made.plan, files.images)


class _Captioned:
    def __init__(self, source: SourceConfig, places: Images, images: Join, licences: Join) -> None:
        self._source, self._places, self._images, self._licences = source, places, images, licences

    def plan(self, key: str, row: Mapping[str, Any]) -> Plan:
        image = self._images.get(row.get("image_id"))
        if not isinstance(image, Mapping):
            raise RowError("image not listed")
        about = {**row, "image": image, "license": self._licences.get(image.get("license"))}
        if self._source.caption != "{txt}":
            caption = fill(self._source.caption, lambda name: field_of(about, name))
        else:
            caption = text_of(field_of(row, self._source.columns.get("text", "caption")))
        key = key_of(row.get("id"), key)
        picture = self._picture(about, image)
        return plan_of(key, [(picture, "auto"), (caption, "auto")], about, self._source, PROVENANCE)

    def _picture(self, about: Mapping[str, Any], image: Mapping[str, Any]) -> Picture | Pending:
        mapped = self._source.columns.get("image")
        if mapped is not None:
            template = mapped if "{" in mapped else f"{{{mapped}}}"
            return self._places.named(fill(template, lambda name: field_of(about, name), "image missing"))
        return self._places.picture(image.get("file_name") or image.get("coco_url"))


def _captions(files: Files, source: SourceConfig, seen: Join) -> Iterator[tuple[str, Any]]:
    with files.twice() as stream:
        number = -1
        for number, (_, row) in enumerate(items(stream, ["annotations.item"])):
            if source.captions == "first" and isinstance(row, Mapping):
                if seen.get(row.get("image_id")) is not None:
                    continue
                seen.put(row.get("image_id"), True)
            yield f"row-{number}", row
        if number < 0:
            yield "row-0", Refused("", "no list of rows")
