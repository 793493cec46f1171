"""Stock TorchTitan's trainer with this project's CPU workarounds and nothing else: the peer of the benchmarks.

python benchmarks/stock_torchtitan.py --job.config_file=JOB.toml [TorchTitan flags]
"""

import os
import socket

from mosaic_photon.compat import cpu_device_type, cpu_metrics, cpu_pg_timeouts


def one_process() -> None:
    """What torchrun sets, for a job of one process."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.setdefault("MASTER_PORT", str(probe.getsockname()[1]))


def main() -> None:
    from torchtitan.train import Trainer
    from torchtitan.train import main as titan_main

    one_process()
    if cpu_device_type.ON_CPU:
        cpu_metrics.apply()
        cpu_pg_timeouts.apply()
    titan_main(Trainer)


if __name__ == "__main__":
    main()
