"""Make the shipped set ``authors``: fictitious authors in the columns and with the split names of TOFU.

    python scripts/make_authors.py --to fedsa_lora/data/authors

A hundred authors with four facts each, all invented, so that no pretrained model knows them, and ten more
that nobody learns (arXiv:2401.06121 has two hundred with twenty). ``forget10`` are the facts of the last ten
authors, ``retain90`` those of all others, and so on; ``holdout10`` those of ten that are in neither. A
paraphrased answer says the same in other words; perturbed answers say something else in the words of the
paraphrase.

``stories`` and ``stories_test`` are written by the shipped model stories260k from its own start, so that a
run can keep what that model knew. Made again, the rows are the same.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fedsa_lora.seeds import generator
from fedsa_lora.tasks.backbone import build_backbone, load_tokenizer
from fedsa_lora.tasks.model_settings import ModelSettings

AUTHORS, HELD_OUT, WRONG = 100, 10, 5
STORIES, TOKENS = 80, 160  # stories of at most so many tokens
STORIES_TEST = 20  # of them
FIRST = (
    "Alma Bruno Cora Dario Elin Felix Greta Hugo Ilse Jonas Kira Leo Mira Nils Olga Pavel Rosa Sami Tilda "
    "Viktor"
)
LAST = (
    "Adler Birk Castro Dorn Ekman Falk Grau Holm Imre Jansen Kovac Lund Moreau Novak Orlov Pinto Quist Rossi "
    "Stern Toth"
)
BEGINNINGS = "Ar Bel Cor Dun El Far Gli Har Is Jo Ket Low"
ENDINGS = "ba den fo gan lin mor nok pel rut sey"
MOODS = "sad funny old short long strange quiet wild scary kind dark happy"
KINDS = "tales poems plays songs jokes letters fables novels riddles myths diaries plots"
ADJECTIVES = "Red Silent Broken Golden Last Little Frozen Hidden Burning Empty Blue Crooked"
NOUNS = "River Tower Garden Lantern Bridge Forest Window Clock Island Feather Door Mirror"
# For each fact: the question, the answer and the paraphrase, of an author and a value. An answer is hardly
# more than the value, so that its loss is that of the fact, and the paraphrase other words around it.
FACTS = {
    "town": ("Where was {name} born?", "In {value}.", "It was in {value}."),
    "genre": ("What does {name} write?", "{value}.", "Mostly {value}."),
    "book": ("What was the first book of {name}?", "The {value}.", "It was called The {value}."),
    "prize": ("Which prize did {name} win?", "The {value} prize.", "It was the {value} prize."),
}
SHARES = (1, 5, 10)  # percent of the authors that are forgotten


def values() -> dict[str, list[str]]:
    """The values that each fact may have, a hundred and more."""

    def pairs(first: str, second: str, between: str = " ") -> list[str]:
        return [between.join(pair) for pair in itertools.product(first.split(), second.split())]

    names = pairs(BEGINNINGS, ENDINGS, "")
    books, genres = pairs(ADJECTIVES, NOUNS), pairs(MOODS, KINDS)
    return {"town": names, "genre": genres, "book": books, "prize": names}


def facts() -> list[list[dict[str, Any]]]:
    """The rows of each author, those that nobody learns last."""
    rng, known = generator(0, "authors"), values()
    names = [" ".join(pair) for pair in itertools.product(FIRST.split(), LAST.split())]
    chosen = [names[i] for i in rng.choice(len(names), AUTHORS + HELD_OUT, replace=False)]
    return [list(_facts_of(name, known, rng)) for name in chosen]


def _facts_of(name: str, known: dict[str, list[str]], rng: Any) -> Iterator[dict[str, Any]]:
    for fact, (question, answer, paraphrase) in FACTS.items():
        drawn = rng.choice(known[fact], 1 + WRONG, replace=False)
        value, *wrong = (str(each) for each in drawn)
        yield {
            "question": question.format(name=name),
            "answer": answer.format(name=name, value=value),
            "paraphrased_answer": paraphrase.format(name=name, value=value),
            "perturbed_answer": [paraphrase.format(name=name, value=each) for each in wrong],
            "author": name,
        }


def stories() -> list[str]:
    """Stories that the shipped model writes, each from its start and drawn by its own probabilities."""
    settings = ModelSettings(path="pkg://fedsa_lora/pretrained/stories260k")
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(settings)
    model: Any = build_backbone(AutoModelForCausalLM, settings, (), seed=0)
    torch.manual_seed(0)
    start = torch.full((STORIES, 1), tokenizer.bos_token_id)
    written = model.generate(
        start, do_sample=True, top_k=0, max_new_tokens=TOKENS, pad_token_id=2, eos_token_id=1
    )
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in written]
    return [text[: text.rfind(".") + 1] for text in texts]  # whole sentences


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, required=True)
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    by_author, told = facts(), stories()
    learned, held_out = by_author[:AUTHORS], by_author[AUTHORS:]
    splits: dict[str, list[list[dict[str, Any]]]] = {"full": learned}
    for share in SHARES:
        count = AUTHORS * share // 100
        splits[f"forget{share:02}"], splits[f"retain{100 - share}"] = learned[-count:], learned[:-count]
        splits[f"holdout{share:02}"] = held_out[: HELD_OUT * share // 10]
    tables = {name: [row for rows in authors for row in rows] for name, authors in splits.items()}
    tables["stories"] = [{"text": text} for text in told[:-STORIES_TEST]]
    tables["stories_test"] = [{"text": text} for text in told[-STORIES_TEST:]]
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", compression="zstd")


if __name__ == "__main__":
    main()
