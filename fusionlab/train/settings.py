"""What a training run depends on, as frozen records; their hash says whether a stage was already done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fusionlab.errors import ConstraintError


@dataclass(frozen=True)
class CorpusSettings:
    """Text sampled from the large model: `shards` x `chunks` x `rows` sequences of `length` tokens.

    Training holds one shard at a time.
    """

    shards: int = 5
    chunks: int = 18
    rows: int = 8192
    length: int = 161  # positions, the start included
    share_chat: float = 0.15
    share_question: float = 0.15
    seed: int = 20261124

    @property
    def tokens(self) -> int:
        """Tokens of the whole corpus, starts included."""
        return self.shards * self.chunks * self.rows * self.length


@dataclass(frozen=True)
class HealSettings:
    """Distillation of the large model into six of its layers."""

    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    steps: int = 16_000
    batch: int = 128
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    final_share: float = 0.02  # of the learning rate, at the end of the cosine
    clip: float = 1.0
    quantize_from: float = 0.8  # share of the steps after which weights pass through fake NF4
    evaluation_rows: int = 256  # fresh sequences per kind of start
    seed: int = 1

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise ConstraintError(f"unknown optimizer {self.optimizer!r}", remedy="use adamw or muon")
        if self.batch > self.corpus.chunks * self.corpus.rows:
            raise ConstraintError(
                f"a batch of {self.batch} from shards of {self.corpus.chunks * self.corpus.rows} sequences",
                remedy="sample more, or lower the batch",
            )


@dataclass(frozen=True)
class TuneSettings:
    """Fine-tuning on the documents of one task or several."""

    epochs: int = 8
    batch_tokens: int = 16_384  # of a step, padding included
    document_tokens: int = 640  # a document takes no further question past this
    max_shots: int = 5
    share_single: float = 0.5  # of documents with one question; the others hold 2 to 1 + max_shots
    share_plain: float = 0.6  # of documents in phrasing 0; the others in any
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup_steps: int = 20
    final_share: float = 0.02
    clip: float = 1.0
    prompt_weight: float = 0.03  # weight of a prompt token; an answer token has 1
    quantize_from: float = 1.0  # share of the steps after which low-rank factors pass through fake NF4
    rank: int | None = None  # None: every weight
    alpha: float = 128
    train_items: int | None = None  # None: all
    test_items: int | None = None
    seed: int = 1


@dataclass(frozen=True)
class ExpertSettings(TuneSettings):
    """One LoRA expert on the stored small model."""

    task: str = ""
    rank: int = 64
    quantize_from: float = 0.6
    fused_share: float = 0.5  # of the answers' loss taken on large + expert - small (`tune.Partners`); 0: the paper's
    fused_weights: Literal["one", "random"] = "random"  # of the expert's change in that fusion


# With these the shipped files were made (their hashes are in data/training.json).
EXPERT_DEFAULTS = {
    "math": ExpertSettings(task="math", epochs=12, quantize_from=0.8),
    "trivia": ExpertSettings(task="trivia", epochs=10, batch_tokens=4096, fused_share=1.0),
    "truth": ExpertSettings(task="truth", epochs=12, batch_tokens=4096, fused_share=1.0),
    "summary": ExpertSettings(task="summary", epochs=6),
}
# The upper bounds: the large model itself, tuned whole or in low rank on one task, and whole on all of them. Their prompts
# need no learning: that serves evidence alone.
WHOLE = TuneSettings(learning_rate=3e-4, batch_tokens=8192, prompt_weight=0.0)
LOW_RANK = TuneSettings(learning_rate=1e-3, batch_tokens=8192, prompt_weight=0.0, rank=64)
MULTI = "large-multi"  # one model on all tasks together
BOUNDS = {"large-full": WHOLE, "large-lora": LOW_RANK, MULTI: WHOLE}
BOUND_EPOCHS = {"math": 4, "trivia": 8, "truth": 8, "summary": 2}


def settings_hash(*records: Any) -> str:
    """Sixteen hex digits that change when any field of any record (or any plain value) changes."""
    plain = [asdict(record) if hasattr(record, "__dataclass_fields__") else record for record in records]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
