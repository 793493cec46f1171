"""From a checked job and its open data to the parts that a release of TorchTitan builds a trainer from."""

from __future__ import annotations

from functools import partial

from mosaic_photon.callbacks.registry import build_callbacks
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.schedulers.builder import build_lr_schedulers
from mosaic_photon.titan.interface import Parts
from mosaic_photon.titan.spec import TrainSpec
from mosaic_photon.train.data import JobData
from mosaic_photon.train.loop import MosaicLoop
from mosaic_photon.train.stop import GracefulStop


def parts_of(job: MosaicJobConfig, spec: TrainSpec, data: JobData, stop: GracefulStop) -> Parts:
    """The job's parts.

    Raises:
        ConfigError: a callback that there is not, that cannot work here, or that does not take its arguments.
    """
    callbacks = build_callbacks(job.callbacks)
    loop = MosaicLoop(job, spec.model_args[job.model.flavor], data.loader, callbacks, stop)
    return Parts(spec, data, partial(build_lr_schedulers, run_length=data.run), loop, data.start)
