"""Where a training run works, what it writes down, and the teacher it starts from."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusionlab import embedded
from fusionlab.atomic_file import write_atomically
from fusionlab.models import device_name
from fusionlab.train.corpus import CHAT_STARTS, QUESTION_STARTS
from fusionlab.train.settings import settings_hash

UNRELATED_TEXTS = (  # belong to no task: an expert's evidence on them must be negative
    "Once upon a time there was a", "The weather in the mountains had been mild all week, and",
    "def read_lines(path):\n    with open(path) as stream:\n",
    "Dear Ms. Alvarez,\n\nThank you for your letter of",
    "To bake bread you need flour, water, yeast and", "The committee met on Tuesday to discuss the",
    "She opened the old wooden box and found", "In this paper we study the effect of",
    "My favourite song is about a train that", "Breaking news: the river has risen and",
    "The history of the bicycle begins in", "I think that dogs are friendlier than cats because",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Where and how a run works; none of it changes what is trained."""

    out: Path
    work: Path
    device: str = "cpu"
    compile: bool = False
    dtype: torch.dtype = torch.bfloat16
    seconds_limit: float = float("inf")  # of healing in this process
    checkpoint_every: int = 1000
    host_bytes: int = 0  # memory of the host that the teacher's states may take
    command: str = "fusionlab train all"
    say: Callable[[str], None] = print

    def record(self) -> dict[str, Any]:
        """What every entry of training.json says about the machine and the day."""
        return {
            "command": self.command,
            "device": device_name(self.device),
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }


def read_records(out: Path) -> dict[str, Any]:
    """training.json of a folder, or an empty frame for it."""
    path = out / "training.json"
    return json.loads(path.read_text()) if path.is_file() else {"small": None, "experts": {}}


def write_records(out: Path, records: dict[str, Any]) -> None:
    """Write training.json. Raises `OutputError`."""
    write_atomically(out / "training.json", json.dumps(records, indent=1) + "\n")


def large_sha256(large: Any) -> str:
    """sha256 over the large model's tensors by name: the same weights on every machine, whatever the file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(large.state_dict().items()):
        if name != "lm_head.weight":  # tied
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_teacher(run: Run) -> tuple[Any, Any]:
    """The frozen large model in fp32 and its tokenizer; says by hash which ones they are."""
    if run.device.startswith("cuda"):
        torch.set_float32_matmul_precision("highest")  # what is measured in fp32 is fp32; training is bf16
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every length of the cache
    large = embedded.load_large(device=run.device).requires_grad_(False)
    tokenizer = embedded.load_tokenizer()
    sample = [*CHAT_STARTS, *QUESTION_STARTS, *UNRELATED_TEXTS, "Answer: 40 * 9 = 360. #### 262"]
    run.say(f"large sha256 {large_sha256(large)[:16]}, tokens sha256 "
            f"{settings_hash([tokenizer.encode(text) for text in sample])}, torch {torch.__version__}, "
            f"{run.record()['device']}")  # fmt: skip
    return large, tokenizer
