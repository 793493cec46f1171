"""Stock TorchTitan 0.3's trainer with this project's CPU workarounds and nothing else: the peer of the benchmarks.

python benchmarks/stock_torchtitan_v03.py FOLDER TEXT STEPS

Trains its Llama 3 debug model on TEXT, a folder of JSON lines, in the sizes of `bench_startup.JOB`; logs to FOLDER.
"""

import sys
from typing import Any

from mosaic_photon.compat import cpu_device_type, cpu_flex_attention, cpu_metrics, cpu_pg_timeouts
from stock_torchtitan import one_process


def config(folder: str, text: str, steps: int) -> Any:
    """The debug model's own config; its loss in one piece, as here."""
    from torchtitan.components.loss import CrossEntropyLoss
    from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
    from torchtitan.models.common.config_utils import decoder_vocab_size
    from torchtitan.models.llama3.config_registry import llama3_debugmodel

    made = llama3_debugmodel()
    made.dump_folder = folder
    made.loss = CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(made.model_spec))
    made.dataloader = HuggingFaceTextDataLoader.Config(dataset="c4_test", dataset_path=text)
    made.activation_checkpoint, made.validator.enable, made.debug.seed = None, False, 17
    made.training.steps, made.training.local_batch_size, made.training.seq_len = steps, 4, 256
    made.training.mixed_precision_param = "float32"
    made.metrics.log_freq, made.metrics.disable_color_printing = 1, True
    return made


def main() -> None:
    from torchtitan.tools.logging import init_logger

    one_process()
    init_logger()
    if cpu_device_type.ON_CPU:
        for workaround in (cpu_flex_attention, cpu_metrics, cpu_pg_timeouts):
            workaround.apply()
    trainer = config(sys.argv[1], sys.argv[2], int(sys.argv[3])).build()
    trainer.train()
    trainer.close()


if __name__ == "__main__":
    main()
