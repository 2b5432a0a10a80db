"""What `fusionlab doctor` looks at: the environment, the models, the cache and the GPU, one line each.

A check tries the real thing (writes a file, quantises a matrix, reads a hash) rather than guessing from
version numbers. This module knows the terms on which fusionlab runs; it repairs nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fusionlab.errors import FusionError

MIN_PYTHON = (3, 11)
MIN_MEMORY_BYTES = 1_500_000_000  # what the embedded team and the explorer need at their peak
MIN_DISK_BYTES = 1_000_000_000  # the wheel (98 MB), its unpacked GGUF and the converted model (540 MB)
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Check:
    """The outcome of one look at the environment; an optional check may fail without spoiling the whole."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None
    required: bool = True


def run_checks() -> list[Check]:
    """Look at everything once, in the order in which trouble is best mended.

    Never raises: a check that breaks becomes a failed `Check` that carries the error's own words.

    >>> all(isinstance(check, Check) for check in run_checks())  # doctest: +SKIP
    True
    """
    checks: list[Check] = []
    for name, look in CHECKS.items():
        try:
            checks.extend(look())
        except Exception as error:  # what a broken environment raises is not known beforehand
            if isinstance(error, FusionError):
                detail, remedy = error.message, error.remedy
            else:
                detail = f"{type(error).__name__}: {error}"
                remedy = "install fusionlab anew, in a clone by: make distclean setup"
            checks.append(Check(name, False, detail, remedy, required=name not in OPTIONAL))
    return checks


def render(checks: Iterable[Check]) -> tuple[str, bool]:
    """One line per check, and whether everything that fusionlab cannot do without is in order.

    A line starts with `ok`, `--` (optional and absent) or `!!` (broken); after the arrow, what to do.

    >>> render([Check("disk", False, "0.2 GB free", "free 1 GB")])
    ('!!  disk: 0.2 GB free -> free 1 GB', False)
    """
    checks = list(checks)
    healthy = all(check.ok for check in checks if check.required)
    return "\n".join(_render_check(check) for check in checks), healthy


def _render_check(check: Check) -> str:
    sign = "ok" if check.ok else "!!" if check.required else "--"
    remedy = f" -> {check.remedy}" if check.remedy and not check.ok else ""
    return f"{sign}  {check.name}: {check.detail}{remedy}"


# -- the environment -----------------------------------------------------------------------------


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Check]:
    """The interpreter is new enough."""
    wanted = ".".join(map(str, MIN_PYTHON))
    detail = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    yield Check("python", version >= MIN_PYTHON, detail, f"install Python {wanted} or newer and run make setup again")


def check_packages(requirements: Iterable[str] | None = None) -> Iterator[Check]:
    """Every package that pyproject asks for is there, at or above its lower bound; `lab` ones are optional.

    requirements: lines as in pyproject ("torch>=2.13"); those of the installed fusionlab if not given.
    """
    from packaging.requirements import Requirement

    if requirements is None:
        requirements = metadata.requires("fusionlab") or []
    present: dict[bool, list[str]] = {True: [], False: []}
    for requirement in map(Requirement, requirements):
        extra = "lab" if requirement.marker else None
        if requirement.marker and not requirement.marker.evaluate({"extra": "lab"}):
            continue  # tools for working on fusionlab itself
        wanted = f"{requirement.name}{requirement.specifier}"
        remedy = f'pip install "fusionlab[{extra}]"' if extra else f'pip install "{wanted}"'
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            detail = f"not installed, {wanted} is needed"
            yield Check(requirement.name, False, detail, remedy, required=not extra)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            present[not extra].append(f"{requirement.name} {version}")
        else:
            yield Check(
                requirement.name,
                False,
                f"{version} is installed, {wanted} is needed",
                remedy,
                required=not extra,
            )
    yield Check("packages", True, ", ".join(present[True]) or "none asked for")
    if present[False]:
        yield Check("notebook packages", True, ", ".join(present[False]), required=False)


def check_torch() -> Iterator[Check]:
    """Torch computes, and which of the CPU's features it finds."""
    import torch

    torch.ones(2, 2) @ torch.ones(2, 2)
    features = torch.cpu.get_capabilities()
    found = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if features.get(name)]
    note = "" if "avx512_f" in found else "; without AVX-512, 4-bit weights are unpacked once when loaded"
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() != 1 else ''}"
    yield Check("torch", True, f"{torch.__version__}, {threads}, {' '.join(found) or platform.machine()}{note}")


def check_gpu() -> Iterator[Check]:
    """CUDA devices with their free memory; none is fine, a GPU that torch cannot use is worth a word."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            detail = f"{torch.cuda.get_device_name(index)}, {_gb(free)} free of {_gb(total)}"
            yield Check(f"gpu {index}", True, detail, required=False)
    elif shutil.which("nvidia-smi"):
        remedy = "take the CUDA build of torch: make distclean setup TORCH_INDEX="
        detail = f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it"
        yield Check("gpu", False, detail, remedy, required=False)
    else:
        yield Check("gpu", True, "none; the embedded team does not need one", required=False)


def check_bitsandbytes() -> Iterator[Check]:
    """A matrix survives NF4 quantisation and back within the format's own error."""
    import torch

    from fusionlab.nf4 import quiet_bitsandbytes

    quiet_bitsandbytes()
    from bitsandbytes import functional

    values = torch.linspace(-1, 1, 64 * 64).reshape(64, 64).T.contiguous()  # every block spans the whole range
    packed, state = functional.quantize_4bit(values, quant_type="nf4", compress_statistics=True)
    worst = float((functional.dequantize_4bit(packed, state) - values).abs().max())
    ok = worst < 0.2  # half the widest gap between two NF4 levels is 0.152, double quantisation adds a little
    version = metadata.version("bitsandbytes")
    detail = f"{version}, NF4 round trip off by {worst:.3f} at most"
    yield Check("bitsandbytes", ok, detail, "pip install --force-reinstall bitsandbytes")


def check_memory(available: int | None = None) -> Iterator[Check]:
    """Enough memory for the embedded team, by the container's limit where there is one. available: bytes."""
    if available is None:
        available = available_memory_bytes()
    ok = available >= MIN_MEMORY_BYTES
    remedy = f"close other programs or kernels until {_gb(MIN_MEMORY_BYTES)} are free"
    yield Check("memory", ok, f"{_gb(available)} available", remedy)


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that a new process can have: the machine's, or less inside a container with a limit."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no control group here, or its limit is the word "max"
        return available
    return min(available, max(limit - used, 0))


# -- the cache and the models --------------------------------------------------------------------


def check_cache_folder(folder: Path | None = None) -> Iterator[Check]:
    """The cache folder can be made and written, and its disk has room."""
    folder = folder or _cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"fusionlab")
    except OSError as error:
        remedy = "set FUSIONLAB_CACHE to a folder that you may write to"
        yield Check("cache folder", False, f"{folder} cannot be written ({error.strerror})", remedy)
        return
    yield Check("cache folder", True, str(folder))
    yield from check_disk(folder)


def check_disk(folder: Path, needed: int = MIN_DISK_BYTES) -> Iterator[Check]:
    """The disk that holds `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    remedy = f"free {_gb(needed)}, or set FUSIONLAB_CACHE to a folder on another disk"
    yield Check("disk", free >= needed, f"{_gb(free)} free for the cache", remedy)


def check_large_model() -> Iterator[Check]:
    """The embedded large model is in the cache, and every byte of it is as it was written."""
    from fusionlab import embedded

    folder = embedded.cache_folder() / embedded.CONVERTED_NAME
    if not embedded.is_converted(folder):
        yield Check("large model", False, f"not in the cache ({folder})", "fusionlab fetch", required=False)
        return
    embedded.check_converted(folder, thorough=True)
    yield Check("large model", True, f"{embedded.REVISION} in {folder}")


def check_shipped_weights() -> Iterator[Check]:
    """The trained weights that ship with fusionlab match the sha256 in their manifest."""
    from fusionlab import embedded
    from fusionlab.nf4 import check_sha256

    manifest = embedded.shipped_manifest()
    remedy = "reinstall fusionlab, or in a clone: git checkout data/"
    if not manifest:
        yield Check("shipped weights", False, f"no weights.json in {embedded.data_folder()}", remedy)
        return
    for name, recorded in manifest.items():
        path = embedded.data_folder() / name
        if not path.is_file():
            yield Check("shipped weights", False, f"{path} is missing", remedy)
            return
        check_sha256(path, recorded["sha256"])
    total = sum(recorded["bytes"] for recorded in manifest.values())
    yield Check("shipped weights", True, f"{', '.join(manifest)} ({total / 1e6:.1f} MB)")


# -- the tools around ----------------------------------------------------------------------------


def check_kernel() -> Iterator[Check]:
    """JupyterLab can start a Python kernel of this environment."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError:
        yield Check("jupyter", False, "not installed", 'pip install "fusionlab[lab]"', required=False)
        return
    kernels = KernelSpecManager().find_kernel_specs()
    detail = ", ".join(sorted(kernels)) or "no kernels"
    yield Check("jupyter", "python3" in kernels, detail, f"{sys.executable} -m ipykernel install --user", False)


def check_chromium() -> Iterator[Check]:
    """A Chromium for the browser tests; nothing else needs it."""
    found = find_chromium()
    remedy = "install Chromium with the system's packages, or: playwright install chromium"
    yield Check("chromium", found is not None, found or "not found; only browser tests need it", remedy, False)


def find_chromium() -> str | None:
    """Path of the Chromium or Chrome on PATH, else of the one that playwright fetched, else None."""
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    browsers = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    fetched = sorted(browsers.glob("chromium-*/chrome-*/chrome"))
    return str(fetched[-1]) if fetched else None


CHECKS: dict[str, Callable[[], Iterator[Check]]] = {
    "python": check_python,
    "packages": check_packages,
    "torch": check_torch,
    "gpu": check_gpu,
    "bitsandbytes": check_bitsandbytes,
    "memory": check_memory,
    "cache folder": check_cache_folder,
    "large model": check_large_model,
    "shipped weights": check_shipped_weights,
    "jupyter": check_kernel,
    "chromium": check_chromium,
}
OPTIONAL = {"gpu", "jupyter", "chromium"}


def _cache_folder() -> Path:
    from fusionlab import embedded

    return embedded.cache_folder()


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
