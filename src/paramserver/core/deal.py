"""What is free of an epoch: pieces that nobody holds, dealt to workers or to whoever asks."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from paramserver.core.assignment import Assignment
from paramserver.core.progress import deal_evenly, without
from paramserver.core.spans import Range

Piece = tuple[int, int, int]  # shard, start, stop


@dataclass(slots=True)
class _Hand:
    """What is left of a worker's deal: pieces that came back first, then its shard numbers."""

    order: Sequence[int] = ()
    position: int = 0
    pieces: deque[Piece] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.pieces) + len(self.order) - self.position


class Deal:
    """The free pieces of one epoch.

    Args:
        policy: how shards are dealt.
        epoch: its number.
        size: positions of the epoch.
        shard_size: positions of a shard; the last one may be smaller.
        ranks: workers to deal to.

    Attributes:
        free: how many pieces are free.
    """

    def __init__(
        self, policy: Assignment, epoch: int, size: int, shard_size: int, ranks: Sequence[int]
    ) -> None:
        self._shared = policy.shared
        self._size, self._shard_size = size, shard_size
        self._common = _Hand()
        self._hands: dict[int, _Hand] = {}
        self.free = -(-size // shard_size)
        dealt = policy.deal(self.free, max(1, len(ranks)), epoch)
        if policy.shared or not ranks:
            self._common = _Hand(dealt[0])
        else:
            self._hands = {r: _Hand(order) for r, order in zip(ranks, dealt, strict=True)}

    def piece(self, shard: int) -> Piece:
        """A whole shard."""
        start = shard * self._shard_size
        return shard, start, min(start + self._shard_size, self._size)

    def pop(self, rank: int) -> Piece | None:
        """The next piece for a worker; it is free no more."""
        for hand in (self._hands.get(rank), self._common):
            if not hand:
                continue
            self.free -= 1
            if hand.pieces:
                return hand.pieces.popleft()
            hand.position += 1
            return self.piece(hand.order[hand.position - 1])
        return None

    def take(self, rank: int, want: int) -> Piece | None:
        """``want`` positions, whatever the shards are: fewer where the next ones do not follow."""
        found = self.pop(rank)
        if found is None:
            return None
        shard, start, stop = found
        while stop - start < want and (more := self.pop(rank)) is not None:
            if more[1] != stop:
                self._front(self._common, more)
                break
            stop = more[2]
        if stop - start > want:
            cut = start + want
            self._front(self._common, (cut // self._shard_size, cut, stop))
        return shard, start, min(stop, start + want)

    def _front(self, hand: _Hand, piece: Piece) -> None:
        hand.pieces.appendleft(piece)
        self.free += 1

    def put_back(self, parts: Sequence[Range], rank: int | None) -> None:
        """Parts are free again, in front: what came back is older than what was never given.

        Args:
            rank: a worker that is still there gets its own again; None: whoever asks.
        """
        hand = self._common if rank is None else self._hands.get(rank, self._common)
        for start, stop in reversed(parts):
            self._front(hand, (start // self._shard_size, start, stop))

    def share_out(self, rank: int | None, heirs: Collection[int]) -> None:
        """What a worker will not take goes to those that stay in the epoch.

        Args:
            rank: the worker; None: what was left for whoever asks.
            heirs: ranks that stay.
        """
        hand = self._common if rank is None else self._hands.get(rank)
        if self._shared or not hand:
            return
        pieces = list(self._pieces(hand))
        hand.pieces, hand.order, hand.position = deque(), (), 0
        hands = {r: self._hands.setdefault(r, _Hand()) for r in heirs}
        loads = [(len(h), r) for r, h in hands.items() if h is not hand]
        heapq.heapify(loads)
        for piece in pieces:
            if not loads:
                self._common.pieces.append(piece)
                continue
            load, heir = heapq.heappop(loads)
            hands[heir].pieces.append(piece)
            heapq.heappush(loads, (load + 1, heir))

    def remove(self, done: Sequence[Range]) -> None:
        """What a snapshot says is done is not free; the rest keeps its order.

        Args:
            done: sorted and disjoint.
        """
        size = self._shard_size
        self.free = 0
        for hand in (self._common, *self._hands.values()):
            left = [part for _, a, b in self._pieces(hand) for part in without((a, b), done)]
            hand.pieces = deque((start // size, start, stop) for start, stop in left)
            hand.order, hand.position = (), 0
            self.free += len(left)

    def deal_again(self, ranks: Sequence[int]) -> None:
        """All that is free goes to these workers in equal parts, whoever it was dealt to."""
        if self._shared or not ranks:
            return
        pieces = self.pieces()
        self._common = _Hand()
        self._hands = {rank: _Hand() for rank in ranks}
        for piece, rank in zip(
            pieces, deal_evenly([b - a for _, a, b in pieces], ranks), strict=True
        ):
            self._hands[rank].pieces.append(piece)

    def _pieces(self, hand: _Hand) -> Iterator[Piece]:
        yield from hand.pieces
        yield from (self.piece(shard) for shard in hand.order[hand.position :])

    def pieces(self) -> list[Piece]:
        """All that are free."""
        return [p for hand in (self._common, *self._hands.values()) for p in self._pieces(hand)]
