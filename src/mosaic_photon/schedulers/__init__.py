"""Learning-rate schedules. The pure mathematics needs nothing; asking for a Composer class imports Composer."""

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mosaic_photon.schedulers import composer_schedulers

    return getattr(composer_schedulers, name)
