"""What the scheduler keeps of a job in a snapshot: all but the values, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from google.protobuf import json_format

from paramserver.core.placement import GroupSpec
from paramserver.core.progress import Progress, from_json, to_json
from paramserver.errors import InvalidRequestError, ParameterServerError
from paramserver.scheduler.facts import Schedule
from paramserver.v1 import common_pb2
from paramserver.wire.convert import group_from_proto, group_to_proto


@dataclass(frozen=True, slots=True)
class GroupImage:
    """A group at the cut.

    Attributes:
        slice_elements: how its tensors were cut into slices.
        clock, version: at which it goes on.
    """

    spec: GroupSpec
    slice_elements: int
    clock: int
    version: int


@dataclass(frozen=True, slots=True)
class Image:
    """A job at the cut.

    Attributes:
        job, incarnation, lease, map_version, round: the newest numbers that were given.
        lineage: the same for all jobs that go on with one another.
        schedule: of the cut; None: no worker has saved one.
        warm: groups whose warm start is over.
        offices: by name, what was announced last by those who coordinate.
        bounds: of adaptive groups.
    """

    job: int
    incarnation: int
    lease: int
    map_version: int
    round: int
    lineage: str
    schedule: Schedule | None
    warm: tuple[str, ...]
    groups: tuple[GroupImage, ...]
    datasets: tuple[Progress, ...]
    offices: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a value that JSON can hold."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "lineage": self.lineage,
            "schedule": None if self.schedule is None else asdict(self.schedule),
            "warm": list(self.warm),
            "groups": [
                {
                    "spec": json_format.MessageToDict(group_to_proto(group.spec)),
                    "slice_elements": group.slice_elements,
                    "clock": group.clock,
                    "version": group.version,
                }
                for group in self.groups
            ],
            "datasets": [to_json(progress) for progress in self.datasets],
            "offices": dict(self.offices),
            "bounds": dict(self.bounds),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Image:
        """What ``to_json`` made.

        Raises:
            InvalidRequestError: a value that it cannot have made.
        """
        try:
            schedule = value["schedule"]
            return cls(
                **{name: int(value[name]) for name in _NUMBERS},
                lineage=str(value["lineage"]),
                schedule=None if schedule is None else Schedule(**schedule),
                warm=tuple(map(str, value["warm"])),
                groups=tuple(
                    GroupImage(
                        group_from_proto(json_format.ParseDict(g["spec"], common_pb2.GroupSpec())),
                        int(g["slice_elements"]),
                        int(g["clock"]),
                        int(g["version"]),
                    )
                    for g in value["groups"]
                ),
                datasets=tuple(map(from_json, value["datasets"])),
                offices={str(n): str(t) for n, t in value.get("offices", {}).items()},
                bounds={str(n): int(b) for n, b in value.get("bounds", {}).items()},
            )
        except ParameterServerError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, json_format.Error) as error:
            raise InvalidRequestError(f"not the state of a job: {error!r}") from error


_NUMBERS = ("job", "incarnation", "lease", "map_version", "round")
