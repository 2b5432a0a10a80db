"""Traces as text: whole characters, harmless terminals, marks that do not rest on colour."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_factory import EMOJI_PIECES, EMOJI_TEXT, HOSTILE, make_ended_trace, make_trace

from fusionlab.trace import ansi_tokens
from fusionlab.trace_text import expert_letter, group_pieces, trace_to_text, visible

if TYPE_CHECKING:
    pass


@given(
    text=st.text("ab é😀🦊漢!\n", max_size=12),
    cuts=st.lists(st.integers(1, 40), max_size=12),
    special=st.booleans(),
)
def test_grouped_pieces_spell_the_text_without_broken_characters(text: str, cuts: list[int], special: bool) -> None:
    """Byte-level tokenizers cut characters anywhere; a reader must see whole ones, and every token once."""
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b].decode(errors="replace") for a, b in pairwise(edges)]
    pieces += ["<|end|>"] if special else []
    groups = group_pieces(tuple(pieces), text)
    assert "".join(group.text for group in groups) == text + ("<|end|>" if special else "")
    assert [i for group in groups for i in range(group.start, group.stop)] == list(range(len(pieces)))


def test_pieces_of_another_text_keep_their_replacement_signs() -> None:
    """A text that was cut or cleaned cannot be lined up; then nothing is invented."""
    groups = group_pieces(("a", "\ufffd", "\ufffd", "b"), "something else")
    assert [group.text for group in groups] == ["a", "\ufffd\ufffd", "b"]


def test_labels_name_every_token_once() -> None:
    """Axes need N labels; the parts of one character must not repeat it."""
    assert make_trace(EMOJI_PIECES, text=EMOJI_TEXT).labels() == ["Hi", " 🦊", "…", "…", "!"]


@pytest.mark.parametrize("color", [False, True])
def test_the_token_that_ends_an_answer_is_a_faint_mark(color: bool) -> None:
    """A reader takes `<|im_end|>` for something the model said; the same letters in its text stay as they are."""
    shown = ansi_tokens(make_ended_trace(), color=color)
    body = shown.rsplit("\n", 1)[0]
    assert body.count("<|im_end|>") == 1
    assert ("\x1b[2m[end]\x1b[0m" in body) == color
    assert re.sub(r"\x1b\[[0-9;]*m|▲[AB]", "", body) == " Paris <|im_end|>[end]"
    assert make_ended_trace().labels() == [" Paris", " <|im_end|>", "[end]"]


def test_expert_letters_do_not_run_out() -> None:
    """Flips are told apart without colour, however many experts there are."""
    letters = [expert_letter(i) for i in range(100)]
    assert letters[:3] == ["A", "B", "C"]
    assert len(set(letters)) == 100


@given(text=st.text(), prompt=st.text(), name=st.text(min_size=1), color=st.booleans())
def test_no_control_character_of_a_model_reaches_a_terminal(text: str, prompt: str, name: str, color: bool) -> None:
    """An escape sequence in model text could rename the window, hide lines or type for the user."""
    trace = make_trace([text, *HOSTILE], experts=(name,), prompt=prompt)
    painted = ansi_tokens(trace, color=color)
    ours = re.sub(r"\x1b\[[0-9;]*m", "", painted) if color else painted
    for shown in (ours, trace_to_text(trace)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", shown)


def test_colour_changes_no_text_and_obeys_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and pipes get the same words; NO_COLOR is a user's standing wish."""
    trace = make_trace([" Santiago", " is", "\n", " 42"] * 10, seed=2)
    plain, painted = ansi_tokens(trace, color=False), ansi_tokens(trace, color=True)
    assert "\x1b" not in plain
    assert "\x1b[" in painted
    body = re.sub(r"\x1b\[[0-9;]*m", "", painted).rsplit("\n", 1)[0]
    assert body == plain.rsplit("\n", 1)[0]
    assert body.count("▲") == trace.flipped.sum() > 0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ansi_tokens(trace) == painted
    monkeypatch.setenv("NO_COLOR", "1")
    assert ansi_tokens(trace) == plain


def test_visible_keeps_joined_emoji_and_flags_whole() -> None:
    """Joiners and tags are format characters too, but they belong to the picture."""
    for emoji in ("👩‍🚀", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "❤️"):
        assert visible(emoji) == emoji
    assert visible("a\u200bb") == "a⟨U+200B⟩b"
