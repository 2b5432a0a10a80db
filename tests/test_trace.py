"""Traces: what is refused, what a file gives back, what a table holds."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_factory import EMOJI_PIECES, EMOJI_TEXT, HOSTILE, make_trace

from fusionlab.errors import CorruptFileError, FusionError, MissingFileError, OutputError, TraceError
from fusionlab.trace import ARRAYS, GRID_ARRAYS, TABLE_ARRAYS, Trace, load_traces, save_traces
from fusionlab.trace_fields import IDS, REST_WEIGHTS, even_grid
from fusionlab.trace_file import TRACE_VERSION, VERSION_KEY, read_traces

if TYPE_CHECKING:
    pass

# -- what a trace accepts ------------------------------------------------------------------------


def test_array_tables_name_every_array_field() -> None:
    """Validation, files and frames walk these tables, so a field missing there would be lost silently."""
    arrays = {spec.name for spec in dataclasses.fields(Trace) if "Array" in str(spec.type)}
    assert arrays == ARRAYS.keys() | GRID_ARRAYS.keys() | TABLE_ARRAYS.keys()


@pytest.mark.parametrize("name", [name for name in ARRAYS | GRID_ARRAYS | TABLE_ARRAYS if name != "grid"])
def test_a_wrong_shape_is_refused_with_field_expected_and_received(name: str) -> None:
    """Whoever writes a decode must see at once which column is off, and by how much."""
    trace = make_trace()
    array = getattr(trace, name)
    with pytest.raises(TraceError) as caught:
        dataclasses.replace(trace, **{name: array[:-1]})
    short = (len(array) - 1, *array.shape[1:])
    expected = (len(array), *array.shape[1:])
    assert all(part in str(caught.value) for part in (repr(name), str(short), str(expected)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"experts": ("math", "math")}, "repeats a name"),
        ({"level": "verbose"}, "use 'full' or 'light'"),
        ({"level": "light"}, "keeps no grid"),
        ({"rest_peaks": None}, "'rest_peaks' must have shape"),
        ({"alpha": np.full((3, 2), -0.1)}, "negative weight"),
        ({"alpha": np.full((3, 2), np.nan)}, "negative weight or NaN"),
        (
            {"flipped": np.array([True, True, True]), "flipped_by": np.array([0, 2, 1])},
            "'flipped_by' is 2 at token 1",
        ),
        ({"flipped": np.zeros(3, bool), "flipped_by": np.zeros(3, int)}, "not flipped"),
        ({"topk_pieces": {}}, "no text for the token ids"),
        ({"token_ids": np.array([0.5, 1, 2])}, "must hold int32, received float64"),
        ({"token_ids": np.array([2**40, 1, 2])}, "do not fit in int32"),
        ({"meta": {"model": object()}}, "cannot be written as JSON"),
        ({"prompt": "half \ud83d"}, "surrogate"),
        ({"pieces": ("a", "b", 3)}, "where text is expected"),
    ],
)
def test_a_wrong_value_is_refused_in_words(change: dict[str, Any], complaint: str) -> None:
    """A trace that exists is a trace that every reader can trust."""
    with pytest.raises(TraceError, match=re.escape(complaint)):
        dataclasses.replace(make_trace(), **change)


def test_a_trace_cannot_be_changed_through_its_arrays() -> None:
    """A record that a plot could alter would be no record; and the caller's own arrays stay writable."""
    alpha = np.ones((3, 2), np.float32)
    trace = make_trace(alpha=alpha)
    with pytest.raises(ValueError, match="read-only"):
        trace.alpha[0, 0] = 5
    alpha[0, 0] = 7
    assert trace.alpha[0, 0] == 1


def test_only_used_texts_are_kept_and_no_entry_needs_none() -> None:
    """The decode may hand over its whole vocabulary; id -1 stands for a model that was not run."""
    trace = make_trace(top_k=2, tables=False)
    absent = np.full_like(trace.topk_ids_small, -1)
    lean = dataclasses.replace(trace, topk_ids_small=absent, topk_pieces=trace.topk_pieces | {10**6: "unused", -1: "none"})
    used = {int(i) for name in ("large", "fused", "experts") for i in getattr(lean, f"topk_ids_{name}").ravel()}
    assert set(lean.topk_pieces) == used | {int(i) for i in lean.large_choice}


def test_importing_traces_needs_no_torch() -> None:
    """Reading a saved trace on a small machine must not load the engine."""
    import subprocess

    code = "import sys, fusionlab.trace_html; print({'torch', 'numpy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# -- files ---------------------------------------------------------------------------------------


@st.composite
def any_traces(draw: st.DrawFn) -> Trace:
    """Traces of any legal content: NaN and infinities, odd texts, no tokens, no experts, any level and version."""
    n, e, k, g, c, m = (draw(st.integers(0, top)) for top in (4, 3, 3, 3, 2, 2))
    level = draw(st.sampled_from(["full", "full of version 1", "light"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = {"N": n, "E": e, "K": k, "G": g, "C": c, "S": len(REST_WEIGHTS), "M": m}
    texts = st.text(max_size=6) | st.sampled_from([*HOSTILE, "\ufffd", "🦊", "", "\n\t "])
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38], np.float32)
    arrays: dict[str, Any] = {}
    grid = np.sort(rng.uniform(0, 3, g).astype(np.float32))
    sizes["H"] = len(even_grid(grid, e))
    wanted = {"full": ARRAYS | GRID_ARRAYS | TABLE_ARRAYS, "light": ARRAYS}.get(level, ARRAYS | GRID_ARRAYS)
    for name, (dims, dtype) in wanted.items():
        shape = tuple(sizes[d] for d in dims)
        if dtype == "float32":
            plain = rng.normal(size=shape).astype(np.float32)
            arrays[name] = np.where(rng.random(shape) < 0.3, rng.choice(special, shape), plain)
        elif dtype == "bool":
            arrays[name] = rng.random(shape) < 0.5
        else:
            arrays[name] = rng.integers(0, 2**31, shape, dtype=np.int32)
    if level != "light":
        arrays["grid"] = grid
    arrays["alpha"] = np.abs(rng.normal(size=(n, e))).astype(np.float32)
    arrays["flipped"] = arrays["flipped"] & (e > 0)
    arrays["flipped_by"] = np.where(arrays["flipped"], rng.integers(0, max(e, 1), n), -1)
    ids = np.concatenate([arrays[name].ravel() for name in arrays if name in IDS])
    ids = np.concatenate([ids, arrays["large_choice"]])
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | texts,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
        max_leaves=4,
    )
    return Trace(
        prompt=draw(texts),
        text=draw(texts),
        experts=tuple(draw(st.lists(texts, min_size=e, max_size=e, unique=True))),
        method=draw(texts),
        constraint=draw(st.dictionaries(texts, json_values, max_size=3)),
        level=level.split()[0],
        pieces=tuple(draw(st.lists(texts, min_size=n, max_size=n))),
        topk_pieces={int(i): draw(texts) for i in np.unique(ids)},
        meta=draw(st.dictionaries(texts, json_values, max_size=3)),
        **arrays,
    )


@given(traces=st.lists(any_traces(), max_size=3))
def test_a_file_gives_back_exactly_what_was_saved(tmp_path_factory: Any, traces: list[Trace]) -> None:
    """Every field of every trace, bit for bit: an analysis of a saved run is an analysis of the run."""
    path = tmp_path_factory.mktemp("traces") / "run.parquet"
    save_traces(traces, path)
    loaded = load_traces(path)
    assert loaded == traces
    for before, after in zip(traces, loaded, strict=True):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
        assert after.pieces == before.pieces
        assert after.topk_pieces == before.topk_pieces


@pytest.mark.parametrize(
    "trace",
    [
        make_trace([]),
        make_trace(experts=()),
        make_trace(level="light", tables=False),
        make_trace(tables=False),
        make_trace(EMOJI_PIECES, text=EMOJI_TEXT),
        make_trace(HOSTILE),
    ],
    ids=["no tokens", "no experts", "light", "version 1", "emoji", "hostile"],
)
def test_one_trace_round_trips_alone(tmp_path: Path, trace: Trace) -> None:
    """The everyday pair, save and load, on each corner by name."""
    trace.save(tmp_path / "a.parquet")
    assert Trace.load(tmp_path / "a.parquet") == trace


def test_traces_that_differ_in_one_bit_are_unequal() -> None:
    """The round-trip tests rest on ==, so == must see every field."""
    trace = make_trace()
    for name in ARRAYS | GRID_ARRAYS | TABLE_ARRAYS:
        changed = getattr(trace, name).copy()
        if name == "flipped" or not changed.size:
            continue  # bound to flipped_by, seen below; or no experts mix
        changed.view(np.uint8).reshape(-1)[0] ^= 1
        try:
            other = dataclasses.replace(trace, **{name: changed})
        except TraceError:
            continue  # refused outright
        assert other != trace, name
    flipped = ~np.asarray(trace.flipped)
    assert dataclasses.replace(trace, flipped=flipped, flipped_by=np.where(flipped, 0, -1)) != trace
    assert dataclasses.replace(trace, prompt="other") != trace
    assert dataclasses.replace(trace, text="other") != trace
    assert dataclasses.replace(trace, meta={"seed": 1}) != trace


def test_a_row_of_the_file_can_be_read_by_itself(tmp_path: Path) -> None:
    """SQL over many files is how batches of runs are compared; a row must carry its own texts."""
    import pyarrow.parquet as pq

    trace = make_trace()
    save_traces([make_trace(seed=9), trace], tmp_path / "two.parquet")
    row = pq.read_table(tmp_path / "two.parquet").to_pylist()[-1]
    assert (row["trace"], row["position"], row["piece"]) == (1, len(trace) - 1, trace.pieces[-1])
    assert dict(row["topk_pieces"])[row["large_choice"]] == trace.topk_pieces[int(trace.large_choice[-1])]
    np.testing.assert_array_equal(np.array(row["topk_ids_experts"]), trace.topk_ids_experts[-1])


def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a sweep must not cost the result that was there."""
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    make_trace().save(path)

    def break_half_way(table: object, draft: Path, **options: object) -> None:
        draft.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", break_half_way)
    with pytest.raises(OutputError, match="No space left"):
        make_trace(seed=1).save(path)
    assert Trace.load(path) == make_trace()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["missing/a.parquet", "file.txt/a.parquet", "folder"])
def test_an_unwritable_place_is_an_output_error(tmp_path: Path, place: str) -> None:
    """The message names the path and what to do; nothing is created on the way."""
    (tmp_path / "file.txt").write_text("in the way")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for write in (make_trace().save, make_trace().to_html):
        with pytest.raises(OutputError, match=re.escape(str(tmp_path / place))):
            write(tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("keep", [0, 3, 500, -9, -1])
def test_a_truncated_file_is_reported_as_corrupt(tmp_path: Path, keep: int) -> None:
    """An interrupted copy is the usual damage."""
    path = tmp_path / "a.parquet"
    make_trace().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match="copy it again"):
        Trace.load(path)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_a_trace_silently(tmp_path_factory: Any, place: float, bit: int) -> None:
    """Checksums over pages and header: a damaged file is refused, or gives the same trace."""
    path = tmp_path_factory.mktemp("damage") / "a.parquet"
    trace = make_trace()
    trace.save(path)
    damaged = bytearray(path.read_bytes())
    damaged[int(place * len(damaged))] ^= 1 << bit
    path.write_bytes(damaged)
    with contextlib.suppress(FusionError):  # refused, in words
        assert Trace.load(path) == trace


def test_a_file_of_version_1_is_read_as_a_full_trace_without_tables(tmp_path: Path) -> None:
    """Whoever kept the traces of an earlier release keeps them; what they lack is what they never held."""
    import pyarrow.parquet as pq

    trace = make_trace(tables=False)
    trace.save(tmp_path / "now.parquet")
    table = pq.read_table(tmp_path / "now.parquet")
    first = (table.schema.metadata or {}) | {VERSION_KEY: b"1"}
    pq.write_table(table.drop_columns(list(TABLE_ARRAYS)).replace_schema_metadata(first), tmp_path / "then.parquet")
    (loaded,) = read_traces(tmp_path / "then.parquet")
    assert loaded == trace and not loaded.has_tables


def test_other_versions_and_other_files_are_told_apart(tmp_path: Path) -> None:
    """Each calls for something else: an older release, another path, another function."""
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    make_trace().save(path)
    table = pq.read_table(path)
    newer = (table.schema.metadata or {}) | {VERSION_KEY: str(TRACE_VERSION + 1).encode()}
    pq.write_table(table.replace_schema_metadata(newer), tmp_path / "newer.parquet")
    with pytest.raises(TraceError, match=rf"version {TRACE_VERSION + 1}.*release that wrote it"):
        Trace.load(tmp_path / "newer.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "table.parquet")
    with pytest.raises(TraceError, match="not a trace"):
        Trace.load(tmp_path / "table.parquet")
    save_traces([make_trace(), make_trace()], tmp_path / "two.parquet")
    with pytest.raises(TraceError, match=r"holds 2 traces.*load_traces"):
        Trace.load(tmp_path / "two.parquet")
    with pytest.raises(MissingFileError, match="nowhere"):
        Trace.load(tmp_path / "nowhere.parquet")


# -- tables ----------------------------------------------------------------------------------------


def test_frame_has_a_row_per_token_and_a_column_per_expert() -> None:
    """pandas users group and plot without unpacking arrays."""
    trace = make_trace(seed=4)
    frame = trace.to_frame()
    assert list(frame["piece"]) == list(trace.pieces)
    np.testing.assert_array_equal(frame["alpha.trivia"], trace.alpha[:, 1])
    assert frame["topk_experts.math"][1] == [trace.topk_pieces[i] for i in trace.topk_ids_experts[1, 0].tolist()]
    assert frame["topk_logprobs_fused"][2] == trace.topk_logprobs_fused[2].tolist()
    assert list(frame["large_choice_piece"]) == [trace.topk_pieces[i] for i in trace.large_choice.tolist()]
    assert len(make_trace([]).to_frame()) == 0


def test_moved_share_counts_flips_and_averages_weights() -> None:
    """The demo's table, worked by hand."""
    trace = make_trace(
        alpha=np.array([[1.0, 0], [0.5, 0], [0, 2.0]]),
        flipped=np.array([True, False, True]),
        flipped_by=np.array([0, -1, 1]),
    )
    assert trace.moved_share() == {
        "math": {"flipped": pytest.approx(1 / 3), "mean_alpha": pytest.approx(0.5)},
        "trivia": {"flipped": pytest.approx(1 / 3), "mean_alpha": pytest.approx(2 / 3)},
    }
    assert make_trace([]).moved_share()["math"] == {"flipped": 0.0, "mean_alpha": 0.0}
