"""NF4 storage: what is saved is what is read, and damage is never read as weights."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.backends.cpu import ops
from bitsandbytes.nn import Linear4bit, Params4bit

from fusionlab.errors import CorruptFileError, OutputError
from fusionlab.nf4 import BLOCK_SIZE, load_tensors, pack_nf4, quant_parts, quiet_bitsandbytes, save_tensors, unpack_nf4


def make_weights() -> dict[str, torch.Tensor]:
    """Two matrices of which one has outliers, a norm, and a matrix that is kept as it is."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(96, 128, generator=generator)
    wide[3, 5] = 40.0
    return {
        "wide.weight": wide,
        "half.weight": torch.randn(64, 64, generator=generator).bfloat16(),
        "norm.weight": torch.randn(64, generator=generator),
        "kept.weight": torch.randn(8, 64, generator=generator),
    }


def test_saved_weights_round_trip_bit_for_bit(tmp_path: Path) -> None:
    """Published numbers are about the file's weights, so reading them must not change a bit."""
    packed = pack_nf4(make_weights(), keep=["kept.weight"])
    digest = save_tensors(packed, tmp_path / "w.safetensors", metadata={"rank": 3})
    loaded, metadata = load_tensors(tmp_path / "w.safetensors", sha256=digest)
    assert metadata == {"rank": 3}
    assert loaded.keys() == packed.keys()
    for name, tensor in packed.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_unpacked_weights_equal_bitsandbytes_dequantised_ones(tmp_path: Path) -> None:
    """The file holds bitsandbytes' own quantisation, not one that resembles it."""
    weights = make_weights()
    path = tmp_path / "w.safetensors"
    save_tensors(pack_nf4(weights, keep=["kept.weight"]), path, metadata={})
    unpacked = unpack_nf4(load_tensors(path)[0])
    assert unpacked.keys() == weights.keys()
    for name in ("wide.weight", "half.weight"):
        data, state = functional.quantize_4bit(
            weights[name].float(), blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
        )
        assert torch.equal(unpacked[name], functional.dequantize_4bit(data, state).float())
        assert not torch.equal(unpacked[name], weights[name].float())  # it was quantised at all
    for name in ("norm.weight", "kept.weight"):
        assert torch.equal(unpacked[name], weights[name])


def test_reading_weights_does_not_import_bitsandbytes(tmp_path: Path) -> None:
    """It brings a compiler along: a second and 50 MB for each process that loads the embedded team."""
    path = tmp_path / "w.safetensors"
    save_tensors(pack_nf4(make_weights()), path, metadata={})
    code = (
        "import sys; from pathlib import Path; from fusionlab.nf4 import load_tensors, unpack_nf4;"
        f"unpack_nf4(load_tensors(Path({str(path)!r}))[0]); print('bitsandbytes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_advice_of_a_kernel_from_the_hub_is_held_back_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """The line came before every answer of a 4-bit team on newer CPUs, and asks for what fusionlab has no use for."""
    advice = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please"
    assert advice in inspect.getsource(ops), "bitsandbytes words it differently now"
    for _ in range(2):
        quiet_bitsandbytes()
    assert len(ops.logger.filters) == 1
    ops.logger.warning(advice, "No module named 'kernels'")
    ops.logger.warning("Failed to load something else")
    assert caplog.messages == ["Failed to load something else"]


def test_packed_weights_take_four_bits_each() -> None:
    """Four bits a weight: a file of 96 x 128 weights holds half that many bytes of them."""
    packed = pack_nf4({"w": make_weights()["wide.weight"]})
    assert packed["w"].dtype == torch.uint8
    assert packed["w"].numel() == 96 * 128 // 2
    assert packed["w.absmax"].dtype == torch.uint8  # double quantisation: the scales are 8 bits too


def test_stored_weights_run_as_a_4_bit_layer() -> None:
    """The layout is bitsandbytes' own, so a 4-bit layer takes it as it is and computes the same product."""
    packed = pack_nf4(make_weights())
    layer = Linear4bit(128, 96, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = Params4bit.from_prequantized(
        packed["wide.weight"], quant_parts(packed, "wide.weight"), device="cpu", module=layer
    )
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    expected = x @ unpack_nf4(packed)["wide.weight"].T
    torch.testing.assert_close(layer(x), expected, atol=0.02 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kept_part", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused_by_its_sha256(tmp_path: Path, kept_part: float) -> None:
    """An interrupted copy must not become a model."""
    path = tmp_path / "w.safetensors"
    digest = save_tensors(pack_nf4(make_weights()), path, metadata={})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept_part * len(whole))])
    with pytest.raises(CorruptFileError, match=f"corrupted or truncated.*{digest}"):
        load_tensors(path, sha256=digest)


def test_a_flipped_bit_is_refused_by_its_sha256(tmp_path: Path) -> None:
    """One flipped bit in a scale would go unnoticed by the format itself."""
    path = tmp_path / "w.safetensors"
    digest = save_tensors(pack_nf4(make_weights()), path, metadata={})
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    load_tensors(path)  # the format alone does not see it
    with pytest.raises(CorruptFileError, match="sha256"):
        load_tensors(path, sha256=digest)


@pytest.mark.parametrize("kept_bytes", [0, 5, 200])
def test_a_truncated_file_without_known_sha256_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    """Users' adapters come without a hash; their format still shows a cut."""
    path = tmp_path / "w.safetensors"
    save_tensors(pack_nf4(make_weights()), path, metadata={})
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(CorruptFileError, match=r"w\.safetensors cannot be read as safetensors"):
        load_tensors(path)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    """Half a file under the final name would be taken for a whole one."""
    path = tmp_path / "w.safetensors"
    digest = save_tensors({"a": torch.ones(3)}, path, metadata={})

    def write_half(tensors: object, file: Path, metadata: object = None) -> None:
        Path(file).write_bytes(b"half")
        raise fault

    monkeypatch.setattr("safetensors.torch.save_file", write_half)
    for target in (path, tmp_path / "new.safetensors"):
        with pytest.raises(OutputError if fault is OSError else fault):
            save_tensors({"a": torch.zeros(3)}, target, metadata={})
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    assert torch.equal(load_tensors(path, sha256=digest)[0]["a"], torch.ones(3))


def test_saved_files_are_readable_by_others(tmp_path: Path) -> None:
    """safetensors writes 0600; a package installed by root is read by someone else."""
    path = tmp_path / "w.safetensors"
    save_tensors({"a": torch.ones(3)}, path, metadata={})
    assert path.stat().st_mode & 0o777 == 0o644
