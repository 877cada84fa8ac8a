"""The state of a slice: see ``paramserver.slice_state``."""

from paramserver.slice_state import VALUE, SliceState, SliceStates

__all__ = ["VALUE", "SliceState", "SliceStates"]
