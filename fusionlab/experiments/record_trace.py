"""Record the trace that the first notebook opens with: one question, two experts, and the same question to each alone.

    python -m fusionlab.experiments.record_trace [--out data/traces/first_look.parquet] [--question TEXT --answer TEXT]

Made again whenever the shipped weights change. Both experts are loaded and `evidence` decides between them, so the weights
say which one the text is about. The question was chosen among seven: large model and math expert each get it wrong alone,
and right together.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionlab.team import Team
    from fusionlab.trace import Trace

QUESTION = "A baker makes 12 trays with 9 rolls each and sells 75 rolls. How many rolls are left?"
ANSWER = "33"
EXPERTS = ("math", "trivia")
FILE = Path("data/traces/first_look.parquet")


def record_first_look(team: Team, question: str, *, max_new_tokens: int = 64) -> Trace:
    """A full trace of the fused answer; `meta["alternatives"]` holds what large and each expert write alone."""
    from fusionlab.baselines import generate_alone

    prompt = f"Question: {question}\nAnswer:"
    names = list(team.experts)
    fused = team.generate(
        [prompt],
        method="evidence" if len(names) > 1 else "exact",
        experts=names,
        max_new_tokens=max_new_tokens,
        trace="full",
    ).traces[0]
    answers = []
    for name in ("large", *names):
        alone = generate_alone(team, name, [prompt], max_new_tokens=max_new_tokens)
        answers.append(describe_answer(team, f"{name} alone", alone.token_ids[0], alone.texts[0]))
    return dataclasses.replace(fused, meta=fused.meta | {"alternatives": answers})


def describe_answer(team: Team, name: str, token_ids: list[int], text: str) -> dict[str, Any]:
    """One answer as `trace_payload` takes it for the comparison of texts."""
    return {"name": name, "token_ids": token_ids, "pieces": [team.piece(token) for token in token_ids], "text": text}


def main(arguments: list[str] | None = None) -> int:
    """Record, save and show; 1 if the fused answer is not the expected one (the file is written all the same)."""
    from fusionlab.team import Team
    from fusionlab.trace_text import trace_to_text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--answer", default=ANSWER, help="what the fused answer must end with")
    options = parser.parse_args(arguments)
    team = Team.from_pretrained("embedded", experts=list(EXPERTS), say=print)
    trace = record_first_look(team, options.question)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    trace.save(options.out)
    print(trace_to_text(trace))
    for other in trace.meta["alternatives"]:
        print(f"{other['name']}: {other['text']!r}")
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    if not trace.text.strip().endswith(options.answer):
        print(f"the fused answer does not end with {options.answer!r}: choose another question", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
