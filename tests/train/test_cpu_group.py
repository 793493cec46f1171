"""One group on CPUs for all that ranks agree on."""

from __future__ import annotations

import torch.distributed as dist

from mosaic_photon.train.loop import cpu_group


def test_a_group_is_made_once_beside_a_devices_and_not_at_all_beside_gloo() -> None:
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  (a backend that stands for a device's)

    for backend in ("fake", "fake", "gloo"):
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            group = cpu_group()
            assert cpu_group() is group and dist.get_backend(group) == "gloo"
            assert (group is dist.group.WORLD) == (backend == "gloo")
        finally:
            dist.destroy_process_group()
