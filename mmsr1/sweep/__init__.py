"""Multiruns: what one was to do (`plan`), one of its jobs (`job`), the process that sweeps (`watch`), and the lines by
which these know of each other, whatever launcher starts the jobs (`rows`)."""

from mmsr1.sweep.plan import Planned, command_of, planned

__all__ = ["Planned", "command_of", "planned"]
