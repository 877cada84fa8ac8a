"""What a parked call waits on."""

from __future__ import annotations

EVERYTHING = "everything"
START = "start"
VIEW = "view"
SNAPSHOT = "snapshot"


def group_topic(name: str) -> str:
    return f"group {name}"


def data_topic(name: str) -> str:
    return f"data {name}"


def warm_start_topic(group: str) -> str:
    return f"warm start {group}"


def announcement_topic(name: str) -> str:
    return f"announcement {name}"


def round_topic(name: str) -> str:
    return f"round {name}"
