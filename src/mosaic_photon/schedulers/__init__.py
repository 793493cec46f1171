"""Learning-rate schedules. The pure mathematics needs nothing; asking for a Composer class imports Composer."""

from typing import TYPE_CHECKING

from mosaic_photon.names import lazy_names

if TYPE_CHECKING:
    from mosaic_photon.schedulers.composer_schedulers import (
        ConstantWithLinearCooldownWithWarmupScheduler,
        ConstantWithSqrtCooldownWithWarmupAndSwitchScheduler,
        ConstantWithSqrtCooldownWithWarmupScheduler,
    )

__all__ = [
    "ConstantWithLinearCooldownWithWarmupScheduler",
    "ConstantWithSqrtCooldownWithWarmupAndSwitchScheduler",
    "ConstantWithSqrtCooldownWithWarmupScheduler",
]
__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "composer_schedulers"))
