"""Find a model's folder: a local one, a whole snapshot of the hub's cache, or a fresh download.

A snapshot in the cache counts only when it is whole (configuration, tokenizer, every shard that the index of the
weights names); an interrupted download is taken up again, or the missing file is named. Whether the hub can be reached is
asked before (`hub_address`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fusionlab.errors import MissingFileError, ModelError
from fusionlab.hub_address import why_unreachable

if TYPE_CHECKING:
    from fusionlab.models import ModelSource

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# any one of these makes a tokenizer: fast, SentencePiece, byte-level BPE, WordPiece, or one without a vocabulary
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def find_model(source: ModelSource, *, files: Iterable[str] = ("config.json",)) -> Path:
    """The local folder of a model: a path, a whole snapshot in the hub's cache, or a fresh download.

    files: configurations that tell a model, any one of them; with `adapter_config.json` a PEFT adapter will do.
    Fails at once when the hub cannot be reached. Raises `ModelError` (no such model, or one that lacks a file),
    `MissingFileError` (not or only partly cached, and no network).
    """
    from huggingface_hub.errors import HfHubHTTPError

    kinds = tuple(files)
    folder = Path(source.id).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in kinds):
            raise ModelError(f"{folder} holds no {' or '.join(kinds)}", remedy="pass a saved model's folder")
        refuse_incomplete(folder, kinds, source.id)
        return folder
    if source.id.startswith((".", "/", "~")):
        raise ModelError(f"no folder {folder}", remedy="pass an existing folder or a hub id such as owner/name")
    cached = cached_snapshot(source)
    missing = None if cached is None else missing_file(cached, kinds)
    if cached is not None and missing is None:
        return cached
    if why_unreachable() is not None:
        state = (
            "is not in the local cache"
            if cached is None
            else f"is only partly in the local cache, {cached} lacks {missing},"
        )
        raise MissingFileError(
            f"model {source.id!r} {state} and the hub cannot be reached",
            remedy="connect to the network, pass a local folder, or use the team 'embedded'",
        )
    # what the hub's HTTP client raises by itself, where a proxy refuses for one, is the other base of this class
    faults: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError)
    try:
        folder = fetch_snapshot(source)
    except faults as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"model {source.id!r} cannot be fetched: {lines[0]}",
            remedy="check the id, the revision, and `hf auth login` for gated models",
        ) from error
    refuse_incomplete(folder, kinds, source.id)
    return folder


def cached_snapshot(source: ModelSource) -> Path | None:
    """The snapshot folder in the hub's cache, whole or not; None where there is none. No network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source.id, revision=source.revision, local_files_only=True, allow_patterns=_WANTED))
    except IncompleteSnapshotError as error:  # of what the hub lists; whether we need it, `missing_file` says
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"{source.id!r} is neither a folder nor a hub id", remedy="known: embedded") from error


def fetch_snapshot(source: ModelSource) -> Path:
    """Download what the cache lacks of a model, and return its snapshot folder."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=_WANTED))


# -- complete ------------------------------------------------------------------------------------


def refuse_incomplete(folder: Path, kinds: tuple[str, ...], model_id: str) -> None:
    """Raise `ModelError` that names the first file which `folder` lacks (an adapter's weights: see `read_adapter`)."""
    missing = missing_file(folder, kinds)
    if missing and missing != ADAPTER_WEIGHTS:
        raise ModelError(
            f"model {model_id!r} lacks {missing} in {folder}",
            remedy="pass a whole checkpoint with safetensors weights (pickled weights are never loaded)",
        )


def missing_file(folder: Path, kinds: tuple[str, ...] = ("config.json",)) -> str | None:
    """The first file that a model's folder lacks, or None where it is whole. A dangling link counts as missing.

    kinds: as `files` of `find_model`.
    """
    if ADAPTER_CONFIG in kinds and (folder / ADAPTER_CONFIG).is_file():
        return None if (folder / ADAPTER_WEIGHTS).is_file() else ADAPTER_WEIGHTS
    if not any((folder / name).is_file() for name in kinds):
        return " or ".join(kinds)
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        needed = shards_of(folder / INDEX)
    else:
        needed = [WEIGHTS]
    for name in needed:
        if not (folder / name).is_file():
            return name
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return "tokenizer.json"
    return None


def shards_of(index: Path) -> list[str]:
    """The weight files that an index names, in order. Raises `ModelError` where it is no index."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of weight files: {error}", remedy="delete it and fetch it again") from error


# -- reachable -----------------------------------------------------------------------------------


def revision_of(folder: Path) -> str:
    """The commit of a hub snapshot folder, or 'local' for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else "local"
