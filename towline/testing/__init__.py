"""What a program that embeds Towline needs for its own tests."""

from ._clocks import VirtualTimeLoop, run_virtual, virtual_time, virtual_time_backends

__all__ = ["VirtualTimeLoop", "run_virtual", "virtual_time", "virtual_time_backends"]
