"""Where a group under Sync is cut for a snapshot, and whether its clocks stand still until then."""

from __future__ import annotations

from paramserver.core.decisions import Cut


class Cuts:
    """The cuts that a group's lead was asked for.

    Several groups are cut at one clock in two steps: each lead holds its group, which then closes
    no clock, and tells its next one; then all are asked for a cut at the largest of these, with
    which they go on.

    Attributes:
        newest: the newest cut made, for servers that follow again.
        limit: clocks from this one on do not close; None: all do.
    """

    def __init__(self) -> None:
        self.newest: Cut | None = None
        self.limit: int | None = None
        self._due: dict[int, int] = {}

    def ask(self, id_: int, clock: int) -> None:
        """A cut is due at a clock; a hold ends."""
        self._due[id_] = clock
        self.limit = None

    def cancel(self, id_: int) -> None:
        """A cut that is due is not made."""
        self._due.pop(id_, None)

    def due(self, id_: int) -> bool:
        """Whether a cut was asked for and has not been made."""
        return id_ in self._due

    def at(self, clock: int) -> list[Cut]:
        """The cuts that are made now, at this clock."""
        made = [Cut(id_, clock) for id_, due in self._due.items() if due == clock]
        for cut in made:
            del self._due[cut.id]
            self.newest = cut
        return made
