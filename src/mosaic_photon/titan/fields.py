"""A job's fields that the installed TorchTitan does not have."""

from operator import attrgetter

from mosaic_photon import titan
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.facts import Facts
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.releases import installed

ALSO = {"activation_checkpoint.selective_ac_option": "op"}
"""What a field may say beside its default, as it is what such a release does."""


def check_fields(job: MosaicJobConfig, facts: Facts) -> None:
    """They may be set to their default only."""
    default = MosaicJobConfig()
    for name, instead in titan.release().LACKING.items():
        value = attrgetter(name)(job)
        if value not in (attrgetter(name)(default), ALSO.get(name)):
            raise ConfigError(f"{name} = {value!r}: TorchTitan {installed().newest} has no such setting; {instead}.")
