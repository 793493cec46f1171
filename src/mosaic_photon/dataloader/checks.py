"""What the data asks of a job, for the job's list of checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mosaic_photon.dataloader.documents import document_counter
from mosaic_photon.dataloader.order.deal import Layout
from mosaic_photon.dataloader.order.skips import Skips
from mosaic_photon.dataloader.shards.patience import patience_of
from mosaic_photon.job.data_config import streams_of
from mosaic_photon.job.layout_checks import data_parallel_degree
from mosaic_photon.names import metric_names

if TYPE_CHECKING:
    from mosaic_photon.job.facts import Facts
    from mosaic_photon.job.tables import MosaicJobConfig


def check_patience(job: MosaicJobConfig, facts: Facts) -> None:
    """A rank that waits for its data must not be given up by the others."""
    patience_of(job, facts.world_size)


def check_batch(job: MosaicJobConfig, facts: Facts) -> None:
    """The global batch must be whole micro-batches on every data-parallel rank."""
    degree = data_parallel_degree(job, facts.world_size)
    Layout.of(degree, 0, job.training.local_batch_size, job.training.global_batch_size)


def check_documents(job: MosaicJobConfig, facts: Facts) -> None:
    """A model that keeps documents apart must be told what is between them."""
    document_counter(facts.model_args, job.mosaic.dataloader["dataset"])


def check_stream_names(job: MosaicJobConfig, facts: Facts) -> None:
    """Streams that are reported one by one must have names of their own in metrics."""
    if job.mosaic.loss_per_stream:
        metric_names(streams_of(job.mosaic.dataloader["dataset"]), "[mosaic] loss_per_stream = true: streams")


def check_skips(job: MosaicJobConfig, facts: Facts) -> None:
    """Batches that are to be passed over must be some, and of this run."""
    Skips.parse(job.mosaic.skip_batches).check_within(job.training.steps)


CHECKS = (check_patience, check_batch, check_documents, check_stream_names, check_skips)
