"""Sources: one reader a format, all under one protocol, over files wherever they lie."""

from workflows.corpus.sources.coco import CocoReader
from workflows.corpus.sources.folder import FolderReader
from workflows.corpus.sources.huggingface import HuggingfaceReader
from workflows.corpus.sources.jsonl import JsonlReader
from workflows.corpus.sources.llava import LlavaReader
from workflows.corpus.sources.mmc4 import Mmc4Reader
from workflows.corpus.sources.obelics import ObelicsReader
from workflows.corpus.sources.parquet import ParquetReader
from workflows.corpus.sources.protocol import Draft, Picture, Reader, Refused
from workflows.corpus.sources.vqa import VqaReader
from workflows.corpus.sources.webdataset import WebdatasetReader

READERS: dict[str, Reader] = {
    "webdataset": WebdatasetReader(),
    "folder": FolderReader(),
    "jsonl": JsonlReader(),
    "parquet": ParquetReader(),
    "huggingface": HuggingfaceReader(),
    "mmc4": Mmc4Reader(),
    "obelics": ObelicsReader(),
    "llava": LlavaReader(),
    "vqa": VqaReader(),
    "coco": CocoReader(),
}
"""Format, as a config names it -> its reader."""

__all__ = ["READERS", "Draft", "Picture", "Reader", "Refused"]
