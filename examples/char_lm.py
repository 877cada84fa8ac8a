"""A small GPT that learns to write Python from the standard library's own source.

paramserver run -s 2 -w 2 examples/char_lm.py
paramserver run -s 2 -w 2 examples/char_lm.py --text FILE
"""

import argparse
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import paramserver as ps

CONTEXT = 64


class Block(nn.Module):
    """One transformer layer: causal self-attention, then a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Next-byte logits (batch x length x 256) for bytes (batch x length)."""

    def __init__(self, width: int = 96, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.byte = nn.Embedding(256, width)
        self.place = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for table in (self.byte, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        hidden = self.norm(self.blocks(self.byte(x) + self.place(places)))
        return hidden @ self.byte.weight.T


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of CONTEXT bytes, and the same one byte later."""

    def __init__(self, text: bytes) -> None:
        self.text = torch.tensor(list(text), dtype=torch.long)

    def __len__(self) -> int:
        return (len(self.text) - 1) // CONTEXT

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * CONTEXT
        window = self.text[start : start + CONTEXT + 1]
        return window[:-1], window[1:]


def standard_library(size: int) -> bytes:
    """The first ``size`` bytes of the standard library's source, in alphabetical order."""
    text = b""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        text += path.read_bytes()
        if len(text) >= size:
            break
    return text[:size]


@torch.no_grad()
def bits_per_byte(model: GPT, windows: Windows) -> float:
    """Cross-entropy over held-out windows, in bits."""
    pairs = [windows[i] for i in range(len(windows))]
    x, y = (torch.stack(part) for part in zip(*pairs, strict=True))
    return float(F.cross_entropy(model(x).flatten(0, 1), y.flatten())) / math.log(2)


@torch.no_grad()
def sample(model: GPT, prompt: str, length: int) -> str:
    """The prompt and ``length`` bytes the model goes on with."""
    text = torch.tensor(list(prompt.encode()))[None]
    for _ in range(length):
        likely = (model(text[:, -CONTEXT:])[0, -1] / 0.8).softmax(0)
        text = torch.cat([text, torch.multinomial(likely, 1)[None]], dim=1)
    return bytes(text[0].tolist()).decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--text", type=Path, help="a file to learn from")
    parser.add_argument("--size", type=int, default=600_000, help="bytes of text at most")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    source = options.text.read_bytes() if options.text else standard_library(options.size)
    text, held_out = source[: options.size][:-8_192], source[: options.size][-8_192:]
    with ps.connect() as client:
        model = GPT()
        optimizer = client.optimizer(model, torch.optim.AdamW, lr=options.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
        loader = client.loader(Windows(text), batch_size=16)
        for epoch in client.epochs(options.epochs, scheduler):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
                loss.backward()
                optimizer.step()
                client.log(loss=loss)
            scheduler.step()
            if client.is_chief:
                bits = bits_per_byte(model, Windows(held_out))
                print(f"epoch {epoch}: {bits:.3f} bits per byte on text not seen", flush=True)
        if client.is_chief:
            print(sample(model, "def ", 200), flush=True)


if __name__ == "__main__":
    main()
