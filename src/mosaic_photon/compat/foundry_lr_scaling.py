"""llm-foundry's GlobalLRScaling makes weight decay a share of the learning rate at that moment, which is 0 in a warm-up
from 0 and another after each resume, and gives it to the groups that are exempt from decay too. The schedulers go on
saying the rate of before until their next step.

No upstream issue. llm-foundry 0.22.0. Delete when decay is a share of the peak, of the groups that have some.
"""

from composer.core import State
from composer.loggers import Logger
from llmfoundry.callbacks import GlobalLRScaling as FoundrysGlobalLRScaling

NEEDED = "llm-foundry"


class GlobalLRScaling(FoundrysGlobalLRScaling):
    """llm-foundry's; weight decay becomes `wd_pct` of each group's scaled peak learning rate."""

    def fit_start(self, state: State, logger: Logger) -> None:
        """Scale. A group without decay stays so, unless the optimizer was given none at all."""
        groups = [
            (group, bool(optimizer.defaults.get("weight_decay")) and not group.get("weight_decay"))
            for optimizer in state.optimizers
            for group in optimizer.param_groups
        ]
        super().fit_start(state, logger)
        for group, is_exempt in groups:
            group["weight_decay"] = 0.0 if is_exempt else self.wd_pct * group.get("initial_lr", group["lr"])
        for scheduler in state.schedulers:
            scheduler.get_last_lr()[:] = [group["lr"] for group in scheduler.optimizer.param_groups]
