"""A trace as text: pieces grouped into whole characters, control characters made visible, terminal colours.

Model text is untrusted: an escape sequence in it must never reach a terminal, and a direction override must
not reorder the page. `visible` turns both into printable signs.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from fusionlab.trace import Trace

REPLACEMENT = "\ufffd"
END = "[end]"  # what a token that ends the answer is shown as
# 256-colour indexes near the page's Okabe-Ito hues: blue, orange, green, purple, sky, vermilion, yellow, grey
TERMINAL_HUES = (32, 214, 36, 175, 117, 202, 227, 247)
STRONG, FAINT = 0.5, 0.1  # share of the greatest weight from which a token is filled, or at least tinted


class PieceGroup(NamedTuple):
    """Tokens start..stop-1 that are shown as one text, because a character may be spread over them."""

    start: int
    stop: int
    text: str


def expert_letter(index: int) -> str:
    """A, B, ..., Z, then A1: the mark of an expert that does not rest on colour.

    >>> expert_letter(0), expert_letter(27)
    ('A', 'B1')
    """
    return chr(65 + index % 26) + (str(index // 26) if index >= 26 else "")


def group_pieces(pieces: tuple[str, ...], text: str) -> list[PieceGroup]:
    """Merge runs of byte-level fragments (pieces with U+FFFD), reading their characters from `text`.

    >>> group_pieces(("Hi ", "\\ufffd", "\\ufffd", "!"), "Hi 😀!")
    [PieceGroup(start=0, stop=1, text='Hi '),
     PieceGroup(start=1, stop=3, text='😀'),
     PieceGroup(start=3, stop=4, text='!')]

    Where `text` cannot be lined up with the pieces, a run keeps its replacement signs. Pieces that `text`
    leaves out (special tokens) are shown as they are.
    """
    runs = _runs_of_fragments(pieces)
    # for each boundary between runs: a position in `text` -> (runs that did not fit so far, position before)
    ways: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for run in runs:
        reached: dict[int, tuple[int, int]] = {}
        for at, (misfits, _) in ways[-1].items():
            ends = _ends_of_run(run.text, text, at)
            for end in ends or [at]:
                cost = misfits + (not ends)
                if end not in reached or cost < reached[end][0]:
                    reached[end] = (cost, at)
        ways.append(reached)
    end = min(ways[-1], key=lambda at: ways[-1][at][0] + len(text) - at)
    groups = []
    for run, way in zip(reversed(runs), reversed(ways), strict=False):
        at = way[end][1]
        whole = text[at:end] if REPLACEMENT in run.text and end > at else run.text
        groups.append(run._replace(text=whole))
        end = at
    return groups[::-1]


def _runs_of_fragments(pieces: tuple[str, ...]) -> list[PieceGroup]:
    runs: list[PieceGroup] = []
    for i, piece in enumerate(pieces):
        if REPLACEMENT in piece and runs and REPLACEMENT in runs[-1].text:
            runs[-1] = PieceGroup(runs[-1].start, i + 1, runs[-1].text + piece)
        else:
            runs.append(PieceGroup(i, i + 1, piece))
    return runs


def _ends_of_run(raw: str, text: str, at: int) -> list[int]:
    """Where in `text` a run that begins at `at` can end; empty where it does not fit."""
    if REPLACEMENT not in raw:
        form = raw if at or text.startswith(" ") else raw.lstrip(" ")  # some tokenizers drop a text's first space
        return [at + len(form)] if text.startswith(form, at) else []
    # a sign stands for a part of a character, and only characters beyond ASCII have parts
    shape = re.sub(f"{REPLACEMENT}+", lambda signs: f"[^\\x00-\\x7f]{{1,{len(signs[0])}}}", re.escape(raw))
    least = len(raw.replace(REPLACEMENT, " ").encode())  # a part is at least one byte
    return [
        end
        for end in range(at + 1, min(at + len(raw), len(text)) + 1)
        if len(text[at:end].encode()) >= least and re.fullmatch(shape, text[at:end])
    ]


def visible(text: str, *, newline: str = "⏎") -> str:
    """Control, format and direction characters as printable signs; a line feed as `newline`.

    >>> visible("a\\x1b[31m\\n")
    'a⟨U+001B⟩[31m⏎'
    """
    return "".join(newline if c == "\n" else _visible_char(c) for c in text)


def _visible_char(char: str) -> str:
    code = ord(char)
    if char == "\t":
        return "⇥"
    category = unicodedata.category(char)
    joins_emoji = code in (0x200C, 0x200D)
    hides = category == "Cf" and not joins_emoji and not 0xE0020 <= code <= 0xE007F  # flags are tags
    if hides or category in ("Cc", "Cs", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return char


def groups_with_movers(trace: Trace) -> Iterator[tuple[PieceGroup, int, int | None]]:
    """Each group of pieces, its token with the greatest weight, and the expert that flipped its first flipped token."""
    for group in group_pieces(trace.pieces, trace.text):
        rows = range(group.start, group.stop)
        strong = max(rows, key=lambda row: float(trace.alpha[row].max(initial=0.0)))
        yield group, strong, next((int(trace.flipped_by[row]) for row in rows if trace.flipped[row]), None)


def ansi_tokens(trace: Trace, *, color: bool | None = None) -> str:
    """The emitted text, tokens coloured by their strongest expert, flips underlined and marked ▲A.

    color: None = only on a terminal, and not where NO_COLOR is set or TERM is dumb. The token that ends the answer
    is a faint [end]. A legend line ends the text. Control characters of the model's text come out as printable signs,
    so no escape sequence of its own survives.

    >>> print(ansi_tokens(trace, color=False))                          # doctest: +SKIP
    The answer is 42▲A
    ▲ = flipped: the large model alone would choose otherwise; A = math
    """
    color = _terminal_has_color() if color is None else color
    greatest = float(trace.alpha.max(initial=0.0))
    ends = trace.ends_turn
    parts = []
    for group, strong, flipper in groups_with_movers(trace):
        mark = "" if flipper is None else f"▲{expert_letter(flipper)}"
        text = visible(group.text, newline="⏎\n")
        if ends[group.start]:
            parts.append((f"\x1b[2m{END}\x1b[0m" if color else END) + mark)
            continue
        if not color:
            parts.append(text + mark)
            continue
        share = float(trace.alpha[strong].max(initial=0.0)) / greatest if greatest else 0.0
        expert = int(trace.alpha[strong].argmax()) if trace.experts else 0
        parts.append(_painted(text, mark, expert=expert, share=share))
    return "".join(parts) + "\n" + _legend(trace, color=color)


def trace_to_text(trace: Trace) -> str:
    """Prompt, emitted text with flips marked, and one line per expert; plain text, no colour."""
    lines = [f"prompt: {visible(trace.prompt)}", f"{trace!r}", "", ansi_tokens(trace, color=False)]
    lines += [
        f"  {visible(name)}: flipped {moved['flipped']:.1%} of tokens, mean weight {moved['mean_alpha']:.2f}"
        for name, moved in trace.moved_share().items()
    ]
    return "\n".join(lines)


def _painted(text: str, mark: str, *, expert: int, share: float) -> str:
    hue = TERMINAL_HUES[expert % len(TERMINAL_HUES)]
    codes = ["4", "1"] if mark else []
    if share >= STRONG:
        codes += ["38", "5", "16", "48", "5", str(hue)]
    elif share >= FAINT:
        codes += ["38", "5", str(hue)]
    if not codes:
        return text
    # a break inside a filled stretch would colour the rest of the line, so each line is painted by itself
    painted = [f"\x1b[{';'.join(codes)}m{line}\x1b[0m" if line else "" for line in (text + mark).split("\n")]
    return "\n".join(painted)


def _legend(trace: Trace, *, color: bool) -> str:
    names = [(expert_letter(e), visible(name)) for e, name in enumerate(trace.experts)]
    if not names:
        return "no experts: the large model alone"
    if color:
        swatches = [
            f"\x1b[38;5;16;48;5;{TERMINAL_HUES[e % len(TERMINAL_HUES)]}m {letter} {name} \x1b[0m"
            for e, (letter, name) in enumerate(names)
        ]
        weight = "filled = weight of at least half the greatest, tinted = less"
        flip = "underlined ▲ = flipped: the large model alone would choose otherwise"
        return f"{' '.join(swatches)}  {weight}; {flip}"
    listed = ", ".join(f"{letter} = {name}" for letter, name in names)
    return f"▲ = flipped: the large model alone would choose otherwise; {listed}"


def _terminal_has_color() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and sys.stdout.isatty()
