"""Checkpoints by transformers' classes: safetensors alone, no code of the checkpoint, no weight missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from oneflow_core.encoders.identity import EncoderError


def model_kind(source: str, **where: str) -> str:
    """The `model_type` of the config at `source`, a directory or a hub name."""
    import transformers

    return str(transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **where).model_type)


def read_model(auto: Any, source: str, **options: Any) -> Any:
    """The model at `source` by `auto`, one of transformers' classes.

    Raises:
        EncoderError: weights lack; transformers would draw them at random, and only warn.
    """
    model, told = auto.from_pretrained(
        source, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
    )
    if missing := sorted({*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])}):
        raise EncoderError(
            f"{source!r} lacks weights or has them in other shapes: {missing[0]} and {len(missing) - 1} more; "
            "fetch the checkpoint anew"
        )
    return model


def read_image_processor(source: str) -> Any:
    """What makes a model's inputs of pictures, with PIL."""
    import transformers

    return transformers.AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)


@contextmanager
def loading(what: str, source: str, mend: str) -> Iterator[None]:
    """A block that loads `what` from `source`.

    Raises:
        EncoderError: whatever the libraries raise, as "no WHAT could be loaded from SOURCE: WHY; MEND".
    """
    try:
        yield
    except EncoderError:
        raise
    except (ImportError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EncoderError(f"no {what} could be loaded from {source}: {why}; {mend}") from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers from reporting the tower that is left out on purpose, and on its own default ids."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
