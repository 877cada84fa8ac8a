"""``python -m tests.fuzz --seconds 300 [TARGET...]``: mutates good inputs, for so long each.

Where atheris is installed, coverage guides those of the frames, the snapshots and the journal.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import psutil

from tests.fuzz.guided import GUIDED, available, guided
from tests.fuzz.targets import Target, targets
from tests.quiet import quiet

SLOW_S = 2.0  # that one input may take
GROWTH = 256 << 20  # bytes that a target may grow by
LONGEST = 1 << 16
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)


class Found(AssertionError):
    """An input that a reader does not take as it should."""


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """An input like ``seed``, with a few things wrong."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = chance.choice(_NUMBERS)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = chance.randbytes(chance.choice((1, 4, 64)))
        elif kind == 4:
            data[at:at] = data[: chance.randrange(len(data) + 1)]
        else:
            data[at : at + 8] = chance.choice((b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f"))
    return bytes(data[:LONGEST])


@quiet()
def fuzz(target: Target, seconds: float, seed: int) -> int:
    """How many inputs were tried.

    Raises:
        Found: one that raised something else than a refusal, took long, or cost memory.
    """
    chance = random.Random(f"{target.name}/{seed}")
    process = psutil.Process()
    before = process.memory_info().rss
    corpus = list(target.seeds)
    for good in corpus:
        target.read(good)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        data = mutated(chance.choice(corpus), chance)
        began = time.monotonic()
        try:
            target.read(data)
            if len(corpus) < 1000 and chance.random() < 0.05:
                corpus.append(data)  # it was taken: a good place to go on from
        except target.refusals:
            pass
        except Exception as error:
            raise Found(f"{target.name}: {type(error).__name__}: {error}: {data!r}") from error
        tried += 1
        if time.monotonic() - began > SLOW_S:
            raise Found(f"{target.name}: took {time.monotonic() - began:.1f} s: {data!r}")
        if tried % 1000 == 0 and process.memory_info().rss - before > GROWTH:
            raise Found(f"{target.name}: grew by more than {GROWTH} bytes in {tried} inputs")
    return tried


def main() -> int:
    """The exit code: 1 for a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    found = 0
    for target in targets():
        if options.targets and target.name not in options.targets:
            continue
        if target.name in GUIDED and available():
            fine, said = guided(target.name, options.seconds)
            found += not fine
            end = "nothing found" if fine else "FOUND"
            print(f"{target.name}, guided by coverage for {options.seconds:g} s, {end}: {said}")
            continue
        try:
            tried = fuzz(target, options.seconds, options.seed)
            print(f"{target.name}: {tried} inputs in {options.seconds:g} s, nothing found")
        except Found as finding:
            found += 1
            print(f"FOUND {finding}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
