"""Words as vectors: skip-gram over the identifiers of the Python standard library's own source.

paramserver run -s 2 -w 2 examples/words.py

The vocabulary has no bound and is never counted out: a word's id is a hash of it, and its row is
born when it is first trained on. There is nothing but tables in this model.
"""

import argparse
import hashlib
import keyword
import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paramserver as ps

WORD = re.compile(r"[A-Za-z_]\w{2,}")
WINDOW = 5  # words to either side
NEGATIVES = 512  # drawn for a whole batch


def corpus(files: int) -> list[str]:
    """The identifiers of the first files of the standard library, in the order of the text."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:files]
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)
    return [word for word in WORD.findall(text) if not keyword.iskeyword(word)]


def word_id(word: str) -> int:
    """64 bits that stand for a word, the same on every machine."""
    return int.from_bytes(
        hashlib.blake2b(word.encode(), digest_size=8).digest(), "big", signed=True
    )


class SkipGram(nn.Module):
    """Skip-gram with negative sampling (Mikolov et al., 2013)."""

    def __init__(self, client: ps.Client, dim: int, lr: float) -> None:
        super().__init__()
        how: dict[str, Any] = {"client": client, "lr": lr, "consistency": ps.Async(scale_lr="none")}
        self.centres = ps.Embedding("centres", dim, init=ps.Uniform(-0.1, 0.1), **how)
        self.contexts = ps.Embedding("contexts", dim, init=ps.Zeros(), **how)

    def forward(self, centre: Tensor, context: Tensor, negative: Tensor) -> Tensor:
        """The loss of pairs of neighbours [n], against words [m] that are none."""
        words, others = self.centres(centre), self.contexts(torch.cat([context, negative]))
        near = (words * others[: len(context)]).sum(1)
        far = words @ others[len(context) :].T
        return -F.logsigmoid(near).mean() - 5 * F.logsigmoid(-far).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=150, help="of the standard library")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=2048, help="pairs per worker and step")
    parser.add_argument("--dim", type=int, default=48)
    parser.add_argument("--lr", type=float, default=0.2)
    options = parser.parse_args()

    words = corpus(options.files)
    counts = Counter(words)
    ids_of = {word: word_id(word) for word in counts}
    # Frequent words are left out now and then, so that rare ones come near each other.
    share = torch.tensor([counts[word] for word in words]) / len(words)
    kept = (
        torch.rand(len(words), generator=torch.Generator().manual_seed(0)) < (3e-4 / share).sqrt()
    )
    ids = torch.tensor([ids_of[word] for word in words])[kept]
    draw = torch.Generator()

    def pairs(places: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.tensor(places)
        away = torch.randint(1, WINDOW + 1, at.shape, generator=draw)
        away *= 2 * torch.randint(0, 2, at.shape, generator=draw) - 1
        others = torch.randint(0, len(ids), (NEGATIVES,), generator=draw)
        return ids[at], ids[(at + away) % len(ids)], ids[others]

    with ps.connect() as client:
        draw.manual_seed(client.rank)
        model = SkipGram(client, options.dim, options.lr)
        optimizer = client.optimizer(model, torch.optim.SGD)
        places: Any = range(len(ids))  # all that the loader deals; the rest is done by ``pairs``
        loader = client.loader(places, batch_size=options.batch_size, collate_fn=pairs)
        for _ in client.epochs(options.epochs):
            for centre, context, negative in loader:
                optimizer.zero_grad()
                loss = model(centre, context, negative)
                loss.backward()
                optimizer.step()
                client.log(loss=loss)

        client.barrier("trained")
        if client.is_chief:
            table = model.centres.table
            print(f"{len(ids)} words of text, {len(table)} rows", flush=True)
            known = [word for word, _ in counts.most_common(2000)]
            vectors = F.normalize(table.pull(torch.tensor([ids_of[word] for word in known])))
            for word in ("stdout", "append", "startswith", "socket", "width"):
                near = (vectors @ vectors[known.index(word)]).topk(6).indices[1:]
                print(f"{word}: {' '.join(known[i] for i in near)}", flush=True)


if __name__ == "__main__":
    main()
