"""Conversations as a model is given them: the template around a prompt, and which parts of it are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fedsa_lora.errors import ConfigError
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.rows import Inputs, Kept
from fedsa_lora.tasks.tables import library

CHAT = "chat"  # the template of the tokenizer
DATE = "26 Jul 2024"  # that Llama's templates write, else today's: a run would differ from day to day
PROMPT = "{prompt}"
ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]  # role, content


@dataclass(frozen=True)
class Part:
    """A piece of a conversation. ``learned``: it is an answer, whose tokens have a loss."""

    text: str
    learned: bool = False


@dataclass(frozen=True)
class Template:
    """Words around a prompt. ``turn`` has {prompt} in it, once; an answer follows it after ``space``.
    ``system`` comes first, with ``gap`` behind it; a system message of the conversation takes its place."""

    turn: str
    system: str = ""
    gap: str = "\n\n"
    space: str = ""

    def parts(self, messages: Sequence[Message]) -> Iterator[Part]:
        """The pieces of a conversation in order, up to its last answer. An answer is not ended yet."""
        system, asked = self.system, ""
        for message in messages:
            content = message["content"]
            if message["role"] == "system":
                system = content
            elif message["role"] == "user":
                asked += self.turn.replace(PROMPT, content)
            else:
                if system:
                    asked = system + self.gap + asked
                yield Part(asked)
                yield Part(self.space + content, learned=True)
                system, asked = "", ""


TEMPLATES = {
    # of Stanford Alpaca, for an instruction without further input
    "alpaca": Template(
        "### Instruction:\n{prompt}\n\n### Response:",
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.",
    ),
    # of Vicuna 1.1
    "vicuna": Template(
        "USER: {prompt} ASSISTANT:",
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions.",
        gap=" ",
        space=" ",
    ),
}


def template_of(name: str) -> Template:
    """The template of a name, or of a text with {prompt} in it. Raises ConfigError for one without."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name.count(PROMPT) != 1:
        raise ConfigError(
            f"template is {name!r}: expected {CHAT}, {', '.join(TEMPLATES)}, or a text with {PROMPT} in it, "
            "once"
        )
    return Template(name)


def chat_parts(tokenizer: Any, messages: Sequence[Message], ends: Sequence[str]) -> Iterator[Part]:
    """The pieces of a conversation as the tokenizer's own template writes it, up to the end of its last
    answer; each answer is ended by one of the texts ``ends``.

    Raises ConfigError where the tokenizer has no template, where its template writes an answer after other
    words than those that it asks for one with, and where an answer has no end.
    """
    _check_template(tokenizer)
    done = ""
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _written(tokenizer, messages[:at], add_generation_prompt=True)
        whole = _written(tokenizer, messages[: at + 1])
        if not asked.startswith(done) or not whole.startswith(asked):
            raise _unfit(tokenizer, "writes an answer after another text than the prompt to generate one")
        ended = [whole.rfind(text, len(asked)) + len(text) for text in ends if text in whole[len(asked) :]]
        if not ended:
            raise _unfit(tokenizer, f"ends an answer with none of {listing(ends)}")
        yield Part(asked[len(done) :])
        yield Part(whole[len(asked) : max(ended)], learned=True)
        done = whole[: max(ended)]


def _check_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path} has no chat template: set task.template to "
            f"{', '.join(TEMPLATES)}, or to a text with {PROMPT} in it",
            sent="the tokenizer of the model has no chat template",
            key="task.template",
        )


def _written(tokenizer: Any, messages: Sequence[Message], **options: bool) -> str:
    given = [dict(message) for message in messages]
    text: str = tokenizer.apply_chat_template(given, tokenize=False, date_string=DATE, **options)
    return text


def _unfit(tokenizer: Any, fault: str) -> ConfigError:
    return ConfigError(
        f"the chat template of the tokenizer {tokenizer.name_or_path} {fault}: set task.template to "
        f"{', '.join(TEMPLATES)}, or to a text with {PROMPT} in it",
        sent="the chat template of the tokenizer cannot be used for training",
        key="task.template",
    )


def read_messages(kept: Kept, column: str) -> Inputs:
    """The conversations of a column, one a row: each a list of {role, content}, with an answer in it.

    Raises DataError for the rows that are none.
    """
    rows = kept.column(column).to_pylist()
    faulty = np.array([at for at, row in enumerate(rows) if not _is_conversation(row)], dtype=np.int64)
    kept.refuse(
        faulty,
        column,
        "is not a conversation",
        f"expected a list of {{role, content}} with text as content and the roles {', '.join(ROLES)}: a "
        "user's message in front of each of the assistant's, and one of these at least",
        sent="rows hold no conversation",
        key="task.messages",
    )
    plain = [[{"role": m["role"], "content": m["content"]} for m in row] for row in rows]
    found: Inputs = library().Dataset(pa.table({"messages": plain}))
    return found


def _is_conversation(row: Any) -> bool:
    if not isinstance(row, list) or not all(isinstance(message, dict) for message in row):
        return False
    if not all(isinstance(message.get("content"), str) for message in row):
        return False
    roles = [message.get("role") for message in row]
    if not set(roles) <= set(ROLES):
        return False
    answers = [at for at, role in enumerate(roles) if role == "assistant"]
    return bool(answers) and all(at > 0 and roles[at - 1] == "user" for at in answers)
