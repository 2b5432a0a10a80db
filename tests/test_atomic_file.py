"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionlab import atomic_file
from fusionlab.atomic_file import write_atomically
from fusionlab.errors import OutputError


@pytest.mark.parametrize(
    "content",
    ["Åse\n", "Åse\n".encode(), lambda draft: draft.write_text("Åse\n", encoding="utf-8")],
    ids=["text", "bytes", "writer"],
)
def test_every_kind_of_content_arrives_and_replaces_what_was_there(
    content: str | bytes | Callable[[Path], object], tmp_path: Path
) -> None:
    """One function for cards, tables and Parquet; folders on the way are made."""
    path = tmp_path / "new" / "folder" / "file.txt"
    for _ in range(2):
        assert write_atomically(str(path), content) == path
        assert path.read_bytes() == "Åse\n".encode()
        path.write_text("earlier")
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_fails_half_way_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    """A full disk is an OutputError; what else a writer raises is its own fault and passes."""
    path = tmp_path / "file"
    path.write_text("old")

    def fail(draft: Path, error: Exception) -> None:
        draft.write_text("half")
        raise error

    with pytest.raises(OutputError, match=f"cannot write {path}: No space left on device; name a file in"):
        write_atomically(path, lambda draft: fail(draft, OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="a bug"):
        write_atomically(path, lambda draft: fail(draft, ValueError("a bug")))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("place", "make_folders", "words"),
    [("missing/file", False, "an existing folder"), ("in-the-way/file", True, "name a file in a folder"),
     ("folder", True, "is a folder")],
)  # fmt: skip
def test_a_place_that_cannot_hold_a_file_is_named(place: str, make_folders: bool, words: str, tmp_path: Path) -> None:
    """Nothing is left behind there."""
    (tmp_path / "in-the-way").write_text("a file")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=words) as caught:
        write_atomically(tmp_path / place, "text", make_folders=make_folders)
    assert str(tmp_path / place) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a rename without its content would be an empty file under a good name."""
    events: list[str] = []
    monkeypatch.setattr(atomic_file, "flush_to_disk", lambda path: events.append("folder" if path.is_dir() else "content"))
    replace = os.replace

    def rename(*names: Path) -> None:
        events.append("name")
        replace(*names)

    monkeypatch.setattr(os, "replace", rename)
    write_atomically(tmp_path / "file", "text")
    assert events == ["content", "name", "folder"]


@pytest.mark.parametrize("name", ["n" * 255, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 85])
def test_names_of_any_length_that_a_disk_takes_can_be_written(name: str, tmp_path: Path) -> None:
    """The first name of a file is longer than its own."""
    assert write_atomically(tmp_path / name, "text").read_text() == "text"


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_files_get_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    """Temporary names are often made for their owner alone, which others could then not read."""
    plain = tmp_path / "plain"
    plain.write_text("")
    path = write_atomically(tmp_path / "file", "text")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Another process writes long texts of one letter over each other; every look finds a whole one."""
    path = write_atomically(tmp_path / "file", "a" * 100_000)
    script = ("import sys; from fusionlab.atomic_file import write_atomically\n"
              "for i in range(60): write_atomically(sys.argv[1], 'ab'[i % 2] * 100_000)")  # fmt: skip
    seen = set()
    with subprocess.Popen([sys.executable, "-c", script, str(path)]) as writer:
        while writer.poll() is None:
            text = path.read_text()
            seen.add(text)
            assert len(text) == 100_000 and len(set(text)) == 1
    assert writer.returncode == 0 and seen <= {"a" * 100_000, "b" * 100_000}
