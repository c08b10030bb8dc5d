"""A model's lineage as lines for a terminal: newest first, what it was made from further in."""

from collections.abc import Iterator, Mapping

from workflows.lineage.chain import ModelLink, RunLink
from workflows.lineage.corpus import CorpusLink
from workflows.tracking import COMMIT
from workflows.training.identity import EXPORTED, LOCK, WEIGHTS

SHORT = 12
"""Digits of a digest that are shown."""


def lines(model: ModelLink, *, files: bool = False, indent: str = "") -> Iterator[str]:
    """The lines of `model` and of all behind it; with `files` every input of every corpus."""
    yield from (f"{indent}{line}" for line in _model(model))
    if model.run:
        yield f"{indent}  run     {_run(model.run)}"
    if model.tags.get(COMMIT):
        yield f"{indent}          {_code(model.tags)}"
    for corpus in model.corpora:
        yield from (f"{indent}  {line}" for line in _corpus(corpus, files))
    if model.parent:
        yield f"{indent}  starts from"
        yield from lines(model.parent, files=files, indent=f"{indent}    ")


def _model(model: ModelLink) -> Iterator[str]:
    if model.gone:
        yield f"model   {model.uri}: gone: {model.gone}"
        return
    tags = model.tags
    what = f"{model.name} version {model.version}" if model.name else model.uri
    aliases = "".join(f" @{alias}" for alias in model.aliases)
    weights = tags.get(EXPORTED) or tags.get(WEIGHTS, "")
    yield f"model   {what}{aliases}, weights sha256 {weights[:SHORT]}"
    words = {
        "objective": "{}",
        "parameters": "{} parameters",
        "steps": "step {}",
        "heldout_loss": "held-out loss {}",
    }
    facts = [w.format(_grouped(tags[f"oneflow.{n}"])) for n, w in words.items() if tags.get(f"oneflow.{n}")]
    yield f"        {', '.join(facts)}"
    yield f"        codec {tags.get('oneflow.codec') or 'none'}, encoder {tags.get('oneflow.encoder') or 'none'}"


def _grouped(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value


def _run(run: RunLink) -> str:
    if not run.name and run.gone:
        return f"{run.id}: gone: {run.gone}"
    attempts = f"{run.attempts} attempt{'s' if run.attempts != 1 else ''}"
    gone = f", {run.gone}" if run.gone else ""
    return f"{run.name} ({run.id}) in {run.experiment}, {run.status}, {attempts}{gone}"


def _code(tags: Mapping[str, str]) -> str:
    lock, config = (tags.get(name, "")[:SHORT] or "unknown" for name in (LOCK, "oneflow.config_digest"))
    return f"commit {_commit(tags[COMMIT])}, lock {lock}, config {config}"


def _commit(commit: str) -> str:
    bare, plus, changes = commit.partition("+")
    return f"{bare[:SHORT]}{plus}{changes}"


def _corpus(corpus: CorpusLink, files: bool) -> Iterator[str]:
    ref = corpus.ref
    digest = ref.manifest_sha256[:SHORT] or "not kept"
    yield f"corpus  {ref.name}@{ref.version} {ref.url}"
    if corpus.manifest is None:
        yield f"        manifest {digest}; gone: {corpus.gone}"
        return
    made = corpus.manifest
    commit = _commit(made.created_by.get("git_commit", "unknown"))
    size = f"{made.totals.samples:,} documents, {made.totals.images:,} images"
    yield f"        manifest {digest}, {size}, built by commit {commit}"
    if files:
        yield from (f"input   {i.source} {i.url} sha256 {i.sha256}" for i in corpus.inputs())
        return
    for source in corpus.sources:
        yield f"source  {source.name}: {source.files:,} file{'s' if source.files != 1 else ''}, {source.bytes:,} bytes"
        yield from (f"input   {i.source} {i.url} sha256 {i.sha256[:SHORT]}" for i in source.first)
        if source.files > len(source.first):
            yield f"        and {source.files - len(source.first):,} more; --files lists them, --out FILE writes them"
