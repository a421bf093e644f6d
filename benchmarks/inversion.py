"""Texts that the server of split learning recovers from h1: ``python benchmarks/inversion.py``.

The parts of a model in one process: a client trains with the server, with noise on h1, with h1 projected on
few directions, or with neither. The server reads h1 of texts that this client trains on. It knows the
pretrained weights, as anybody does, and which protection there is, and it has its own texts; it does not
know what the client learns in its first blocks, which in the first step is nothing yet. A token is recovered
where the first guess is right. Each guess is made from one state alone: whoever looks at whole texts recovers
more.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils import clip_grad_norm_

import fedsa_lora
from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cut.parts import Ends, trunk_states
from fedsa_lora.learning.training import make_optimizer, round_batches
from fedsa_lora.seeds import generator, torch_seed
from fedsa_lora.server.build import build_trunk, skeleton
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.task import Batch, Examples
from fedsa_lora.tasks.task import measured as measures_of

NOISES = (0.3, 0.5, 1.0)  # of the norm of a state
RATES = (1.0, 0.4)  # of the learning rate: the better one counts, since noise may ask for a lower one
RANKS = (2, 4, 8, 16)  # parts of the width
DRAWS = 64  # of a protection, of which the server takes the mean where it knows the state
VICTIM, ATTACKED = "0", 128  # the client, and texts of it that are read
HIDDEN, EPOCHS, AT_ONCE, RATE = 256, 8, 512, 3e-3  # of the decoder
STORIES = Path(fedsa_lora.__file__).parent / "data/authors/stories.parquet"
Protection: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Guess: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # tokens, (n,), of states, (n, d)
Row: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Known:
    """States that were sent, (n, d), and the tokens at their places, (n,)."""

    states: torch.Tensor
    ids: torch.Tensor


class Parts:
    """Both sides of a model that is cut, with a protection of h1 between them."""

    def __init__(self, config: RunConfig) -> None:
        empty = skeleton(config)
        trunk = build_trunk(config, empty)
        assert trunk is not None
        assert config.cut is not None
        self.config, self.task = config, config.task
        self.client, self.server = build.model(config), trunk.model
        self.ends = Ends(self.client.module, config.cut)
        self.start = empty.initial(config.seed)
        self.restart()

    @property
    def sides(self) -> tuple[AdapterModel, AdapterModel]:
        return self.client, self.server

    def restart(self) -> None:
        """LoRA as a run begins with it: the model is the pretrained one."""
        for side in self.sides:
            side.write({name: self.start[name] for name in side.layout.names})
            side.set_mode(training=False)

    def model(self, batch: Batch, protection: Protection) -> Callable[..., Any]:
        """A model like the whole one for a batch."""
        states = protection(self.ends.bottom(batch))
        return self.ends.top(trunk_states(self.server.module, states, batch["attention_mask"]))

    def train(self, examples: Examples, protection: Protection, steps: int, rate: float) -> None:
        """Both sides learn together from the start, at a part of the learning rate."""
        self.restart()
        settings = replace(self.config.train, steps=steps, epochs=None, lr=rate * self.config.train.lr)
        tensors = []
        for side in self.sides:
            side.set_trainable(frozenset(side.layout.names))
            side.set_mode(training=True)
            tensors += [side.parameter(name) for name in side.layout.names]
        optimizer = make_optimizer([], self.client.parameter, settings, tensors)
        rng = generator(self.config.seed, "batches", VICTIM, 1)
        for indices in round_batches(examples.lengths, settings, rng):
            batch = self.task.collate(examples, indices)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.task.loss(self.model(batch, protection), batch))
            clip_grad_norm_(tensors, settings.clip_norm or float("inf"))
            optimizer.step()

    @torch.no_grad()
    def perplexity(self, examples: Examples, protection: Protection) -> float:
        """That of the whole, on held-out examples."""
        for side in self.sides:
            side.set_mode(training=False)
        answers = [
            self.task.predict(self.model(batch, protection), batch).numpy()
            for batch in self.batches(examples)
        ]
        return measures_of(self.task, np.concatenate(answers), examples.labels)["perplexity"]

    @torch.no_grad()
    def sent(self, examples: Examples, protection: Protection) -> Known:
        """What the server is sent of examples, but for the first token of each, which all texts have."""
        self.client.set_mode(training=False)
        states, ids = [], []
        for batch in self.batches(examples):
            tokens = batch["attention_mask"].bool()
            tokens[:, 0] = False
            states.append(protection(self.ends.bottom(batch))[tokens])
            ids.append(batch["input_ids"][tokens])
        return Known(torch.cat(states), torch.cat(ids))

    def batches(self, examples: Examples) -> Iterator[Batch]:
        size = self.config.train.eval_batch_size
        for begin in range(0, len(examples), size):
            yield self.task.collate(examples, np.arange(begin, min(begin + size, len(examples))))


def plain(states: torch.Tensor) -> torch.Tensor:
    """No protection."""
    return states


def noisy(ratio: float, draw: torch.Generator, states: torch.Tensor) -> torch.Tensor:
    """Gaussian noise, whose norm is on the root mean square ``ratio`` times that of each state."""
    size = ratio * states.norm(dim=-1, keepdim=True) / states.shape[-1] ** 0.5
    return states + size.detach() * torch.randn(states.shape, generator=draw)


def projected(mean: torch.Tensor, basis: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What of states lies in the directions of ``basis``, (d, k), around a mean, (d,)."""
    return mean + (states - mean) @ basis @ basis.T


def directions(states: torch.Tensor, rank: int) -> Protection:
    """A projection on the first principal directions of states, (n, d)."""
    mean = states.mean(dim=0)
    basis = torch.linalg.svd(states - mean, full_matrices=False).Vh[:rank].T
    return partial(projected, mean, basis)


def measured(words: Sequence[str], bottoms: Sequence[int], seed: int) -> Row:
    """Shares of tokens recovered in the first step and after training, and the held-out perplexity that each
    protection leaves."""
    rows = []
    for bottom in bottoms:
        config = load([*words, f"cut.bottom={bottom}", f"seed={seed}"])
        parts = Parts(config)
        steps = config.federation.rounds * (config.train.steps or 1)
        own, public = parts.task.load_client(VICTIM), corpora(parts)
        seen = own.train.at(np.arange(min(ATTACKED, len(own.train))))
        start = parts.perplexity(own.test, plain)
        for name, protection in protections(parts, public, seed).items():
            guesses = attacks(parts, public, protection, seed)
            first = parts.sent(seen, protection)
            trained = []
            for rate in RATES:
                parts.train(own.train, protection, steps, rate)
                trained.append((parts.perplexity(own.test, protection), parts.sent(seen, protection)))
            parts.restart()
            perplexity, last = min(trained, key=lambda found: found[0])
            row = {"bottom": bottom, "protection": name, "perplexity": perplexity}
            rows.append(row | {"first": shares(guesses, first), "last": shares(guesses, last)})
    usual = float(first.ids.bincount().max() / len(first.ids))
    return {
        "words": [*words, f"seed={seed}"],
        "steps": steps,
        "tokens": len(first.ids),
        "most_frequent": usual,
        "start": start,
        "rows": rows,
    }


def corpora(parts: Parts) -> dict[str, Examples]:
    """Texts that the server has: what other clients train on, and stories that anybody can have."""
    others = [str(at) for at in range(parts.config.federation.clients) if str(at) != VICTIM]
    alike = Examples.joined([parts.task.load_client(name).train for name in others])
    task: Any = parts.task
    ids = [np.array(task.tokenizer(text)["input_ids"]) for text in pq.read_table(STORIES)["text"].to_pylist()]
    rows = [row[at : at + task.max_length] for row in ids for at in range(0, len(row), task.max_length)]
    lengths = np.array([len(row) for row in rows])
    stories = Examples({"input_ids": rows, "labels": rows}, np.full(len(rows), -1), lengths)
    return {"others": alike, "stories": stories}


def protections(parts: Parts, public: Mapping[str, Examples], seed: int) -> dict[str, Protection]:
    """Those that are tried, by name; directions are those of public texts in the pretrained model."""
    draw = torch.Generator().manual_seed(torch_seed(seed, "noise on h1"))
    found: dict[str, Protection] = {"none": plain}
    found |= {f"noise {ratio:g}": partial(noisy, ratio, draw) for ratio in NOISES}
    states = parts.sent(public["others"], plain).states
    ranks = [states.shape[-1] // part for part in RANKS]
    return found | {f"rank {rank}": directions(states, rank) for rank in ranks}


@torch.no_grad()
def alone(parts: Parts, protection: Protection) -> torch.Tensor:
    """h1 of each token of the vocabulary behind the first token of a text, (vocabulary, d)."""
    task: Any = parts.task
    first = task.tokenizer("a")["input_ids"][0]
    tokens = torch.arange(embeddings(parts).shape[0])
    ids = torch.stack([torch.full_like(tokens, first), tokens], dim=1)
    states = parts.ends.bottom({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[:, 1]
    total = torch.zeros_like(states)
    for _ in range(DRAWS):
        total += protection(states)
    return total / DRAWS


def embeddings(parts: Parts) -> torch.Tensor:
    """Those of the pretrained model, (vocabulary, d)."""
    weight: torch.Tensor = parts.ends.whole.get_input_embeddings().weight.detach()
    return weight


def attacks(
    parts: Parts, public: Mapping[str, Examples], protection: Protection, seed: int
) -> dict[str, Guess]:
    """What the server can make of the pretrained model, the protection and its own texts, by name."""
    tables = {"embedding": embeddings(parts), "alone": alone(parts, protection)}
    found: dict[str, Guess] = {name: partial(nearest, table) for name, table in tables.items()}
    for source, examples in public.items():
        known = parts.sent(examples, protection)
        found[source] = decoder(known, len(tables["alone"]), seed)
    return found


def shares(guesses: Mapping[str, Guess], known: Known) -> dict[str, float]:
    """The share of tokens that each guess finds."""
    return {name: float((guess(known.states) == known.ids).float().mean()) for name, guess in guesses.items()}


def nearest(table: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The row of a table that each state has the least angle to."""
    return (normalize(states, dim=-1) @ normalize(table, dim=-1).T).argmax(dim=-1)


def decoder(known: Known, vocabulary: int, seed: int) -> Guess:
    """One hidden layer from states to tokens, trained on known ones."""
    torch.manual_seed(torch_seed(seed, "decoder"))
    mean, spread = known.states.mean(dim=0), known.states.std(dim=0) + 1e-6
    width = known.states.shape[-1]
    net = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, vocabulary))
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(known.ids)).split(AT_ONCE):
            loss = cross_entropy(net((known.states[chosen] - mean) / spread), known.ids[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    @torch.no_grad()
    def guess(states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = net((states - mean) / spread).argmax(dim=-1)
        return found

    return guess


def page(found: Row) -> str:
    """A row for each depth and protection."""
    lines = [
        f"Tokens that the server recovers from h1: {' '.join(found['words'])}, {found['steps']} steps, "
        f"{found['tokens']:,} tokens of client {VICTIM}. The most frequent token is "
        f"{found['most_frequent']:.3f} of them; before training the perplexity is {found['start']:.1f}.",
        "",
        "| blocks before h1 | protection | nearest embedding | nearest h1 of a token alone "
        "| decoder of stories | decoder of others' texts | the same after training | held-out perplexity |",
        f"|{'---|' * 8}",
    ]
    for row in found["rows"]:
        first = [row["first"][name] for name in ("embedding", "alone", "stories", "others")]
        found_shares = [f"{share:.3f}" for share in (*first, row["last"]["others"])]
        cells = [str(row["bottom"]), row["protection"], *found_shares, f"{row['perplexity']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--bottoms", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(page(measured(options.words or ["experiment=split/tiny"], options.bottoms, options.seed)))


if __name__ == "__main__":
    main()
