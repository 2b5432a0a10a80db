"""The doctor notices real trouble: the conditions are made, not mocked, wherever a test can make them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from fusionlab import doctor, embedded
from fusionlab.doctor import Check, render


def test_every_check_answers_on_this_machine() -> None:
    """A check that breaks is reported, never raised, and none is forgotten."""
    checks = doctor.run_checks()
    names = {check.name for check in checks}
    assert {
        "python",
        "packages",
        "torch",
        "bitsandbytes",
        "memory",
        "cache folder",
        "jupyter",
        "chromium",
    } <= names
    assert all(check.detail for check in checks)


def test_failed_checks_say_what_to_do() -> None:
    """A finding without a remedy helps nobody; the arrow shows only where something is wrong."""
    text, _ = render(
        [
            Check("python", True, "3.12.1", "install another"),
            Check("disk", False, "0.2 GB free", "free 1.0 GB"),
            Check("chromium", False, "not found", "install it", required=False),
        ]
    )
    assert text.splitlines() == [
        "ok  python: 3.12.1",
        "!!  disk: 0.2 GB free -> free 1.0 GB",
        "--  chromium: not found -> install it",
    ]


def test_only_required_checks_decide() -> None:
    """Missing Chromium must not make a script stop; a broken cache must."""
    absent = Check("chromium", False, "not found", required=False)
    _, healthy = render([Check("python", True, "3.12.1"), absent])
    assert healthy
    _, healthy = render([Check("cache folder", False, "read only"), absent])
    assert not healthy


def test_an_old_python_fails() -> None:
    """3.10 parses most of the code and then breaks far away."""
    (check,) = doctor.check_python((3, 10, 13))
    assert not check.ok
    assert "3.11" in (check.remedy or "")


def test_packages_tell_missing_from_old_and_required_from_optional() -> None:
    """Each needs another command, and only required ones spoil the whole."""
    requirements = [
        "pytest>=1",
        "surely-not-installed>=2",
        "packaging>=9999",
        "also-not-installed>=1; extra == 'lab'",
        "not-for-users>=1; extra == 'dev'",
    ]
    found = {check.name: check for check in doctor.check_packages(requirements)}
    assert re.search(r"pytest \d", found["packages"].detail)
    assert found["surely-not-installed"].remedy == 'pip install "surely-not-installed>=2"'
    assert found["packaging"].required
    assert ">=9999 is needed" in found["packaging"].detail
    assert found["also-not-installed"].remedy == 'pip install "fusionlab[lab]"'
    assert not found["also-not-installed"].required
    assert "not-for-users" not in found


def test_nf4_round_trip_is_really_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bitsandbytes that imports but returns rubbish is the failure that costs a day."""
    from bitsandbytes import functional

    (check,) = doctor.check_bitsandbytes()
    assert check.ok
    true_dequantize = functional.dequantize_4bit
    monkeypatch.setattr(functional, "dequantize_4bit", lambda packed, state: -true_dequantize(packed, state))
    (check,) = doctor.check_bitsandbytes()
    assert not check.ok


@pytest.mark.parametrize(("limit", "used", "left"), [("2000000", "500000", 1_500_000), ("100", "900", 0)])
def test_memory_is_the_containers_where_it_has_a_limit(tmp_path: Path, limit: str, used: str, left: int) -> None:
    """Binder shows the host's memory and kills at 2 GB."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    assert doctor.available_memory_bytes(tmp_path) == left


def test_memory_is_the_machines_without_a_limit(tmp_path: Path) -> None:
    """The word "max", or no control group at all, is no limit."""
    unlimited = doctor.available_memory_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert min(unlimited, doctor.available_memory_bytes(tmp_path)) > 10_000_000


def test_too_little_memory_or_disk_fails_with_the_amount_needed(tmp_path: Path) -> None:
    """Both are the usual cause of a kernel that dies without a word."""
    (memory,) = doctor.check_memory(900_000_000)
    assert not memory.ok
    assert "1.5 GB" in (memory.remedy or "")
    (disk,) = doctor.check_disk(tmp_path, needed=10**18)
    assert not disk.ok
    (disk,) = doctor.check_disk(tmp_path, needed=1)
    assert disk.ok


def test_a_cache_folder_that_cannot_be_made_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way refuses root too, which a mode bit would not."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("FUSIONLAB_CACHE", str(in_the_way / "cache"))
    (check,) = doctor.check_cache_folder()
    assert not check.ok
    assert str(in_the_way) in check.detail
    assert "FUSIONLAB_CACHE" in (check.remedy or "")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache_folder_fails(tmp_path: Path) -> None:
    """The folder exists, and yet nothing can be put there."""
    tmp_path.chmod(0o500)
    (check,) = doctor.check_cache_folder(tmp_path)
    assert not check.ok


def test_probing_the_cache_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    """A look must not change what it looks at."""
    checks = list(doctor.check_cache_folder(tmp_path / "new" / "cache"))
    assert checks[0].ok
    assert list((tmp_path / "new" / "cache").iterdir()) == []


def make_converted_cache(cache: Path) -> Path:
    """A stand-in for the converted large model: one file and a manifest that describes it."""
    folder = cache / embedded.CONVERTED_NAME
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\x01" * 1000)
    manifest = {"revision": embedded.REVISION, "files": {weights.name: embedded.describe_file(weights)}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return weights


def run_check(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """Only one of the doctor's checks, run as `run_checks` runs it."""
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name]})
    return doctor.run_checks()


def test_an_empty_cache_is_no_failure_but_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first fetch everything else may be fine."""
    monkeypatch.setenv("FUSIONLAB_CACHE", str(tmp_path))
    text, healthy = render(run_check("large model", monkeypatch))
    assert text.startswith("--")
    assert text.endswith("fusionlab fetch")
    assert healthy


def test_one_changed_byte_in_the_converted_model_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with size and time as they were, which is what a failing disk looks like."""
    monkeypatch.setenv("FUSIONLAB_CACHE", str(tmp_path))
    weights = make_converted_cache(tmp_path)
    (check,) = run_check("large model", monkeypatch)
    assert check.ok

    status = weights.stat()
    weights.write_bytes(b"\x01" * 999 + b"\x02")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    (check,) = run_check("large model", monkeypatch)
    assert not check.ok
    assert check.required
    assert "model.safetensors" in check.detail
    assert "fusionlab fetch" in (check.remedy or "")


def test_shipped_weights_are_held_against_their_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Git clone can be cut short; then no manifest, a missing file and a changed one each say so."""
    monkeypatch.setattr(embedded, "data_folder", lambda: tmp_path)
    (check,) = run_check("shipped weights", monkeypatch)
    assert "no weights.json" in check.detail

    weights = tmp_path / "small.safetensors"
    weights.write_bytes(b"weights")
    (tmp_path / "weights.json").write_text(json.dumps({weights.name: embedded.describe_file(weights)}))
    (check,) = run_check("shipped weights", monkeypatch)
    assert check.ok

    weights.write_bytes(b"weight$")
    (check,) = run_check("shipped weights", monkeypatch)
    assert not check.ok
    assert "small.safetensors" in check.detail

    weights.unlink()
    (check,) = run_check("shipped weights", monkeypatch)
    assert "missing" in check.detail


def test_a_check_that_breaks_becomes_a_failed_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that cannot be imported is exactly what one calls the doctor for."""
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` raise ImportError
    (check,) = run_check("torch", monkeypatch)
    assert not check.ok
    assert check.required
    assert "torch" in check.detail
    assert check.remedy


def test_a_missing_browser_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests drive a browser."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    (check,) = doctor.check_chromium()
    assert not check.ok
    assert not check.required
    fetched = tmp_path / "chromium-1234" / "chrome-linux" / "chrome"
    fetched.parent.mkdir(parents=True)
    fetched.write_text("")
    assert doctor.find_chromium() == str(fetched)


def test_a_driver_that_torch_cannot_use_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU build on a GPU machine runs, slowly, and says nothing by itself."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch can use this machine's GPU")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = doctor.check_gpu()
    assert not check.ok
    assert not check.required
    assert "CUDA build" in (check.remedy or "")
