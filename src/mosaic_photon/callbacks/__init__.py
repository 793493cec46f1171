"""Composer callbacks, and the host that runs Composer callbacks inside TorchTitan.

The way of an event, all of it in the trainer's main thread, on every rank:

1. TorchTitan's trainer (`titan/v02/trainer.py`) or its validator reaches a point that Composer has an event for, and
   calls `MosaicLoop.fire(event, ...)`, which is `host.CallbackHost.fire`.
2. `host.MOMENTS` says which of Composer's events that is: most are one, some are several.
3. `job_state.JobState` takes in what has become known (batch, outputs, loss), so that its `composer.State` is right
   when callbacks look. At a batch's end the clock moves; its duration is the slowest rank's.
4. `CallbackHost._run` calls `run_event` of each callback in the order of the job's tables. What they log goes through
   `composer_view.TitanDestination` to TorchTitan's metric logger, and leaves the device there.
5. `JobState` lets go of logits and eval data.
6. A callback that has raised is not run again. With several ranks the job goes on to the next of the events where all
   ranks agree (on CPUs, in the group that the trainer handed over), and there ends on all of them with one message.
   A callback that has called `state.stop_training()` stops all ranks after the same step.

`registry` makes callbacks from the job's tables before the model is built; `refused` names those that cannot work here.
Composer is imported on demand, by a job with callbacks alone.
"""

from typing import TYPE_CHECKING

from mosaic_photon.names import lazy_names

if TYPE_CHECKING:
    from mosaic_photon.callbacks.activation_monitor import ActivationMonitor
    from mosaic_photon.callbacks.group_monitors import QuasiHyperbolicParameterMonitor
    from mosaic_photon.callbacks.optimizer_monitor import OptimizerMonitor
    from mosaic_photon.callbacks.spike_guard import SpikeGuard

__all__ = ["ActivationMonitor", "OptimizerMonitor", "QuasiHyperbolicParameterMonitor", "SpikeGuard"]
__getattr__ = lazy_names(
    __name__,
    {
        "ActivationMonitor": "activation_monitor",
        "OptimizerMonitor": "optimizer_monitor",
        "QuasiHyperbolicParameterMonitor": "group_monitors",
        "SpikeGuard": "spike_guard",
    },
)
