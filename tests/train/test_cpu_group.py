"""One group on CPUs for all that ranks agree on."""

from __future__ import annotations

import torch.distributed as dist

from mosaic_photon.train.loop import cpu_group


def test_a_group_is_made_once_beside_a_devices_and_not_at_all_beside_gloo_or_pretended_ranks() -> None:
    from torch.testing._internal.distributed.fake_pg import _create_fake_pg

    dist.Backend.register_backend("device", _create_fake_pg, extended_api=True, devices=["cpu"])
    for backend in ("device", "device", "gloo", "fake"):
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            group = cpu_group()
            assert cpu_group() is group
            assert dist.get_backend(group) == {"device": "gloo"}.get(backend, backend)
            assert (group is dist.group.WORLD) == (backend != "device")
        finally:
            dist.destroy_process_group()
