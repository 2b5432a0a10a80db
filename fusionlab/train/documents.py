"""Training texts of a task: documents of one to several solved questions, cut into batches of like length.

A document is a prompt with shots in which every answer is a target, not only the last one: it teaches answers
after 0, 1, 2 ... solved examples at the price of one. Documents differ from epoch to epoch in their company of
questions, their phrasing and the order of options. Prompt and answer are tokenised apart, as they are met in use.
Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fusionlab.embedded import EOS_ID
from fusionlab.train.settings import TuneSettings

_POOL_DOCUMENTS = 2048  # documents sorted by length together: little padding, yet a fresh mix every epoch


@dataclass(frozen=True)
class Document:
    """Tokens of one training text, and for each its weight in the loss as a target."""

    ids: list[int]
    weights: list[float]


class Writer:
    """Writes a task's documents; remembers the tokens of every question and answer it has met."""

    def __init__(self, task: Any, tokenizer: Any, settings: TuneSettings) -> None:
        self.task, self.tokenizer, self.settings = task, tokenizer, settings
        self.items = list(task.train[: settings.train_items])
        self._known: dict[str, list[int]] = {}

    def epoch(self, number: int) -> list[Document]:
        """All train items once, in documents drawn for this epoch."""
        draw = random.Random(f"{self.settings.seed}:{self.task.name}:{number}")
        items = [self._shuffle_options(item, draw) for item in self.items]
        draw.shuffle(items)
        documents = []
        while items:
            phrasing = 0 if draw.random() < self.settings.share_plain else draw.randrange(len(self.task.phrasings))
            size = self._draw_size(draw)
            document, used = self.write(items[:size], phrasing)
            documents.append(document)
            items = items[used:]
        return documents

    def _draw_size(self, draw: random.Random) -> int:
        if self.settings.max_shots == 0 or draw.random() < self.settings.share_single:
            return 1
        return draw.randint(2, 1 + self.settings.max_shots)

    def write(self, items: Sequence[Any], phrasing: int) -> tuple[Document, int]:
        """One document of the leading `items`, as many as fit into `document_tokens`; returns it and their number."""
        form = self.task.phrasings[phrasing]
        ids: list[int] = []
        weights: list[float] = []
        used = 0
        for item in items:
            lead = "\n\n" if used else f"{form.instruction}\n\n" if form.instruction else ""
            prompt, answer = self._encode(lead + form.ask(item)), self._encode(self.task.target(item, phrasing=phrasing))
            if used and len(ids) + len(prompt) + len(answer) >= self.settings.document_tokens:
                break
            ids += prompt + answer
            weights += [self.settings.prompt_weight] * len(prompt) + [1.0] * len(answer)
            used += 1
        return Document([*ids, EOS_ID], [*weights, 1.0]), used

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer.encode(text)
        return self._known[text]

    @staticmethod
    def _shuffle_options(item: Any, draw: random.Random) -> Any:
        """The item with its options in another order, so that none is learnt by its place."""
        choices = list(getattr(item, "choices", ()))
        if not choices:
            return item
        draw.shuffle(choices)
        return replace(item, fields={**item.fields, "choices": choices})


def plan_batches(writers: Sequence[Writer], settings: TuneSettings) -> list[list[Document]]:
    """The batches of all epochs: at most `batch_tokens` tokens each, padding included, of documents of like length."""
    batches: list[list[Document]] = []
    for number in range(settings.epochs):
        documents = [document for writer in writers for document in writer.epoch(number)]
        draw = random.Random(f"{settings.seed}:order:{number}")
        draw.shuffle(documents)
        epoch: list[list[Document]] = []
        for start in range(0, len(documents), _POOL_DOCUMENTS):
            pool = sorted(documents[start : start + _POOL_DOCUMENTS], key=lambda document: len(document.ids))
            epoch += split_by_tokens(pool, settings.batch_tokens)
        draw.shuffle(epoch)
        batches += epoch
    return batches


def split_by_tokens(documents: Sequence[Document], most: int) -> Iterator[list[Document]]:
    """Runs of documents, sorted by length, whose padded size stays within `most` tokens (one document always fits)."""
    batch: list[Document] = []
    for document in documents:
        if batch and (len(batch) + 1) * len(document.ids) > most:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def pad_batch(documents: Sequence[Document], *, device: Any) -> tuple[Tensor, Tensor]:
    """Right-padded (B, T) tokens and their weights in the loss, 0 on padding."""
    longest = max(len(document.ids) for document in documents)
    ids = torch.full((len(documents), longest), EOS_ID)
    weights = torch.zeros(len(documents), longest)
    for row, document in enumerate(documents):
        ids[row, : len(document.ids)] = torch.tensor(document.ids)
        weights[row, : len(document.ids)] = torch.tensor(document.weights)
    return ids.to(device), weights.to(device)
