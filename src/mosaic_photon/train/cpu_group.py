"""The group in which all ranks agree: on CPUs, as agreeing must not wait for a device."""

from __future__ import annotations

import torch.distributed as dist

_made: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None


def cpu_group() -> dist.ProcessGroup:
    """A gloo group of all ranks, one for every purpose. Collective the first time, and used in one order everywhere.

    Where the ranks are pretended (`comm.mode = "fake_backend"`) so is the group.
    """
    global _made
    world = dist.group.WORLD
    assert world is not None, "there is no process group yet"
    if dist.get_backend() in ("gloo", "fake"):
        return world
    if _made is None or _made[0] is not world:
        _made = world, dist.new_group(backend="gloo")
    return _made[1]
