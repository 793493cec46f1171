"""Trains by TorchTitan's own Trainer with what a public name of this package gives it; see `layouts_driver`."""

import mosaic_photon
from mosaic_photon import train_spec
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import load_job
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models.model_args import apply_model_overrides
from mosaic_photon.titan.spec import get_train_spec
from mosaic_photon.titan.v02.spec import put_parts
from mosaic_photon.titan.v02.trainer import Trainer
from mosaic_photon.train.loop import parts_of
from mosaic_photon.train.stop import GracefulStop
from mosaic_photon.train_with_mosaic import leave_process_group, parse_arguments, prepare_process


def train(arguments: list[str], public_name: str) -> int:
    """One rank's life; the arguments are those of `train_with_mosaic`."""
    args, flags = parse_arguments(arguments)
    job = load_job(args.config, args.mosaic_config, flags)
    prepare_process(job)
    PUBLIC[public_name](job)
    if public_name != "data_of_job":  # whose caller sees to `[model.overrides]`, as here
        apply_model_overrides(get_train_spec(job.model.name), job)
    trainer = Trainer(job)
    try:
        trainer.train()
    except ConfigError as error:
        print(error, flush=True)
        raise
    trainer.close()
    trainer.dataloader.close()
    leave_process_group(None)
    return 0


def data_of_job(job: MosaicJobConfig) -> None:
    """What `build_trainer` gives TorchTitan's trainer, without this package's."""
    spec, stop = train_spec.spec_of_job(job), GracefulStop()
    data = train_spec.data_of_job(spec, job, job.parallelism.data_parallel_replicate_degree)
    put_parts(job.model.name, parts_of(job, spec, data, stop))
    stop.restore()


PUBLIC = {
    "register_llama3_mosaic": lambda job: mosaic_photon.register_llama3_mosaic(),
    "register_mpt_mup_mosaic": lambda job: mosaic_photon.register_mpt_mup_mosaic(),
    "register": lambda job: train_spec.register(job.model.name),
    "data_of_job": data_of_job,
}
