"""MMC4: a line a document, its sentences in `text_list`, its images put beside the sentences that they match."""

from collections.abc import Iterator, Mapping
from typing import Any

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.drafting import Plan, Segments, drafts, plan_of
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.images import Images
from workflows.corpus.sources.json_rows import DOCUMENTS, LINES, json_rows
from workflows.corpus.sources.protocol import Draft, Reader, Refused, same_stem
from workflows.corpus.sources.rows import RowError, text_of

PROVENANCE = {"url": "url", "image_urls": "image_urls", "similarities": "similarities"}


class Mmc4Reader(Reader):
    """Sentences that no image parts are joined into one text. An image is found by its name, else by its URL."""

    main = (*LINES, *DOCUMENTS)

    def beside(self, name: str) -> tuple[str, ...]:
        """The tar and the directory of the same stem."""
        return same_stem(name, self.main, ".tar", "/")

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each line."""

        def make(key: str, row: Mapping[str, Any]) -> Plan:
            sentences = row.get("text_list")
            if not isinstance(sentences, list):
                raise RowError("columns missing")
            sentences = [text_of(sentence) for sentence in sentences]
            infos = _matched(row.get("image_info", row.get("images")), len(sentences))
            about = {
                **row,
                "image_urls": [i["raw_url"] for i in infos if isinstance(i.get("raw_url"), str)],
                "similarities": [
                    round(i["matched_sim"], 4) for i in infos if isinstance(i.get("matched_sim"), float)
                ],
            }
            return plan_of(key, _segments(sentences, infos, files.images, source), about, source, PROVENANCE)

        return drafts(json_rows(files), make, files.images)


def _matched(infos: Any, count: int) -> list[Mapping[str, Any]]:
    """What is said of the images, in the order of their sentences and then of their own."""
    if infos is None:
        return []
    if not isinstance(infos, list) or not all(isinstance(info, Mapping) for info in infos):
        raise RowError("image info malformed")
    for info in infos:
        index = info.get("matched_text_index")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise RowError("image matches no sentence")
    return sorted(infos, key=lambda info: int(info["matched_text_index"]))


def _segments(
    sentences: list[str], infos: list[Mapping[str, Any]], images: Images, source: SourceConfig
) -> Segments:
    segments: Segments = []
    held: list[str] = []

    def settle() -> None:
        if any(text.strip() for text in held):
            segments.append((" ".join(text.strip() for text in held if text.strip()), "auto"))
        held.clear()

    for index, sentence in enumerate(sentences):
        here = [info for info in infos if info["matched_text_index"] == index]
        if source.placement == "after":
            held.append(sentence)
        if here:
            settle()
            segments += [(_picture(info, images, source), "auto") for info in here]
        if source.placement == "before":
            held.append(sentence)
    settle()
    if not segments:
        raise RowError("text empty")
    return segments


def _picture(info: Mapping[str, Any], images: Images, source: SourceConfig) -> Any:
    if isinstance(info.get("image_base64"), str):
        return images.named(f"data:image;base64,{info['image_base64']}")
    names = [info.get(source.columns.get("image", "image_name")), info.get("raw_url")]
    named = [name for name in names if isinstance(name, str) and name]
    if not named:
        raise RowError("image name not a string")
    # The web is asked only where no name says that the image was kept.
    return images.named(named[0])
