"""Turn prompts into token ids, each model by its own tokenizer and chat template.

A prompt is a text, taken as it is, or a list of chat messages `{"role": ..., "content": ...}`, written with
each model's own template. Every fault names the prompt by its index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusionlab.errors import PromptError

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


def check_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts as a list. Raises `PromptError` for an empty one or one of another type."""
    batch: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not batch:
        raise PromptError("no prompt was given", remedy="pass at least one text")
    for index, prompt in enumerate(batch):
        if isinstance(prompt, str):
            if not prompt.strip():
                raise PromptError(f"prompt {index} is empty", remedy="pass some text")
            if any("\ud800" <= char <= "\udfff" for char in prompt):  # how Python carries bytes that are no text
                raise PromptError(f"prompt {index} is not UTF-8: {prompt!r:.80}", remedy="pass text")
        elif not is_conversation(prompt):
            raise PromptError(
                f"prompt {index} is {type(prompt).__name__}: {prompt!r:.80}",
                remedy="pass a text, or a list of {'role': ..., 'content': ...} messages",
            )
    return batch


def is_conversation(prompt: object) -> bool:
    """Whether `prompt` is a non-empty list of chat messages with text in the last one."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes) or not prompt:
        return False
    whole = all(
        isinstance(message, Mapping) and {"role", "content"} <= message.keys() and isinstance(message["content"], str)
        for message in prompt
    )
    return whole and bool(prompt[-1]["content"].strip())


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any, *, fallback: Any) -> list[list[int]]:
    """Token ids of every prompt. fallback: the large model's tokenizer, whose chat template is used when this
    model has none of its own (base models as small)."""
    texts = {index: prompt for index, prompt in enumerate(prompts) if isinstance(prompt, str)}
    ids = dict(zip(texts, tokenizer(list(texts.values())).input_ids, strict=True)) if texts else {}  # all at once: threads
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            text = write_conversation(prompt, tokenizer, fallback=fallback)
            ids[index] = list(tokenizer(text, add_special_tokens=False).input_ids)
    return [ids[index] for index in range(len(prompts))]


def check_continuations(prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[str]]:
    """The texts that may follow each prompt, as lists. Raises `PromptError` where one is missing, empty or no text."""
    if isinstance(continuations, str) or len(continuations) != len(prompts):
        received = "one text" if isinstance(continuations, str) else f"continuations of {len(continuations)}"
        raise PromptError(f"{len(prompts)} prompts, and {received}", remedy="pass one list of texts for each prompt")
    for index, texts in enumerate(continuations):
        if isinstance(texts, str) or not texts:
            raise PromptError(f"the continuations of prompt {index} are {texts!r:.80}", remedy="pass a list of texts")
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text:
                raise PromptError(f"continuation {place} of prompt {index} is {text!r:.80}", remedy="pass some text")
    return [list(texts) for texts in continuations]


def encode_continuations(
    prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]], tokenizer: Any, *, fallback: Any
) -> list[list[list[int]]]:
    """Token ids of the texts behind each prompt, as the tokenizer writes both together.

    Where its tokens of both together do not begin with those of the prompt, a text has the tokens that it has alone.
    Raises `PromptError` for a text without a token.
    """
    starts = encode_prompts(prompts, tokenizer, fallback=fallback)
    encoded = []
    for index, (prompt, start, texts) in enumerate(zip(prompts, starts, continuations, strict=True)):
        alone = tokenizer(list(texts), add_special_tokens=False).input_ids
        written = prompt if isinstance(prompt, str) else write_conversation(prompt, tokenizer, fallback=fallback)
        whole = tokenizer([written + text for text in texts], add_special_tokens=isinstance(prompt, str)).input_ids
        encoded.append([list(both[len(start) :]) if both[: len(start)] == start else list(own)
                        for both, own in zip(whole, alone, strict=True)])  # fmt: skip
        if [] in encoded[-1]:
            text = texts[encoded[-1].index([])]
            raise PromptError(f"the continuation {text!r:.80} of prompt {index} has no token", remedy="pass other text")
    return encoded


def write_conversation(prompt: Sequence[Message], tokenizer: Any, *, fallback: Any) -> str:
    """The conversation as text, ready for the assistant's turn."""
    template = tokenizer if tokenizer.chat_template else fallback
    if not template.chat_template:
        raise PromptError("the models have no chat template, but messages were given", remedy="pass plain texts")
    text: str = template.apply_chat_template(
        [dict(message) for message in prompt], tokenize=False, add_generation_prompt=True
    )
    return text


def prompt_text(prompt: Prompt) -> str:
    """How a prompt is shown in a trace: its text, or its turns one below the other."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def check_lengths(lengths: Sequence[int], new_tokens: int, context: int) -> None:
    """Raise `PromptError` if a prompt and its answer do not fit into the shortest context of the team."""
    for index, length in enumerate(lengths):
        if length + new_tokens > context:
            raise PromptError(
                f"prompt {index} has {length:,} tokens; with {new_tokens:,} new ones it exceeds the context of "
                f"{context:,} tokens",
                remedy="shorten the prompt or lower max_new_tokens",
            )


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string that follows something other than white space.

    >>> cut_at_stop(" Paris.\\nQuestion: ...", ["\\n"])
    ' Paris.'
    """
    first = len(text) - len(text.lstrip())
    ends = [at for string in stop if (at := text.find(string, first)) >= 0]
    return text[: min(ends)] if ends else text


class PieceReader:
    """Token id -> the text that it adds in the middle of a text, remembered."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.anchor = tokenizer("a", add_special_tokens=False).input_ids  # so that leading spaces survive decoding
        self.anchor_text = tokenizer.decode(self.anchor)
        self.known: dict[int, str] = {-1: ""}  # -1: no token

    def __call__(self, token: int) -> str:
        if token not in self.known:
            text = self.tokenizer.decode([*self.anchor, token])
            self.known[token] = text.removeprefix(self.anchor_text)
        return self.known[token]


class StopFinder:
    """Whether an answer holds a stop string, looked for only after a token that can complete one.

    A text is decoded when its last token holds the last character of a stop string, or part of a character; so a step
    over hundreds of rows costs one look-up a row.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], piece_of: Callable[[int], str]) -> None:
        self.tokenizer, self.stop, self.piece_of = tokenizer, tuple(stop), piece_of
        ends = {string[-1:] for string in stop}
        self.always = any(not end or (end.isspace() and end != "\n") for end in ends)  # decoders may drop or add spaces
        self.ends = (*ends, "\N{REPLACEMENT CHARACTER}")
        self.can_complete: dict[int, bool] = {}

    def __call__(self, answer: Sequence[int]) -> bool:
        """Whether the text of `answer`, of which only the last token is new, ends at a stop string."""
        if not self.stop or not (self.always or self._can_complete(answer[-1])):
            return False
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        return cut_at_stop(text, self.stop) != text

    def _can_complete(self, token: int) -> bool:
        if token not in self.can_complete:
            piece = self.piece_of(token)
            self.can_complete[token] = any(end in piece for end in self.ends)
        return self.can_complete[token]
