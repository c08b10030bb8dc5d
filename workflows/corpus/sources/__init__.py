"""Sources: one reader a format, all under one protocol, over local copies of their files."""

from workflows.corpus.sources import folder, jsonl, webdataset
from workflows.corpus.sources.protocol import Draft, Picture, Reader, Refused

READERS: dict[str, Reader] = {
    "webdataset": webdataset.WebdatasetReader(),
    "jsonl": jsonl.JsonlReader(),
    "folder": folder.FolderReader(),
}
"""Format, as a config names it -> its reader."""

__all__ = ["READERS", "Draft", "Picture", "Reader", "Refused"]
