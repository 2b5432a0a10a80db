"""Files that are whole or not there: written beside their place under another name, flushed to the disk, then renamed.

Whoever reads while a file is written, or after a crash or a power cut, finds the old content or the new one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from fusionlab.errors import OutputError


def write_atomically(
    path: str | PathLike[str], content: str | bytes | Callable[[Path], object], *, make_folders: bool = True
) -> Path:
    """Put `content` at `path`, all or nothing; returns the path.

    >>> write_atomically("runs/table.md", "| a |")                                   # doctest: +SKIP
    >>> write_atomically("runs/table.csv", lambda draft: frame.to_csv(draft))        # doctest: +SKIP

    content: a text (UTF-8), bytes, or what writes a file of the name that it is given. make_folders: make those that are
    missing on the way. Raises `OutputError` where that cannot be done; what a writer raises besides `OSError` passes.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder")
        if make_folders:
            target.parent.mkdir(parents=True, exist_ok=True)
        write_draft(draft, content)
        flush_to_disk(draft)
        os.replace(draft, target)
        flush_to_disk(target.parent)
    except OSError as error:
        wanted = "a folder" if make_folders else "an existing folder"
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}", remedy=f"name a file in {wanted} that you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return target


def write_draft(draft: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write the content under its first name."""
    if isinstance(content, str):
        draft.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes):
        draft.write_bytes(content)
    else:
        content(draft)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk; without it a rename may survive alone."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    held = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(held)
    except OSError:
        if not path.is_dir():  # some network file systems flush no folder
            raise
    finally:
        os.close(held)
