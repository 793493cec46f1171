"""Stock TorchTitan's trainer with this project's CPU workarounds and nothing else: the peer of the benchmarks.

python benchmarks/stock_torchtitan.py --job.config_file=JOB.toml [TorchTitan flags]
"""

import os

from mosaic_photon.compat import cpu_device_type, cpu_metrics, cpu_pg_timeouts
from mosaic_photon.train_with_mosaic import be_one_process, free_port


def one_process() -> None:
    """What torchrun sets, for a job of one process."""
    be_one_process()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))


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
