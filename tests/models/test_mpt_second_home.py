"""`mpt_mup_causal_lm` in llm-foundry's registry: Composer's Trainer trains it as a job here does."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import jobs
from composer_jobs import DATA, DECAY, EPS, LR, job
from mosaic_photon.models import TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup.state_dict_adapter import from_foundry_name, to_foundry_name

STEPS = 20
JOB = job(STEPS, "[mup]\nenabled = true\nbase_width = 16\nbase_depth = 1\n")
DROPOUT = "rope = true, attn_pdrop = 0.1 }}\nresid_pdrop = 0.1\nemb_pdrop = 0.1"


@pytest.fixture
def signal_handlers():
    """Importing Composer replaces them."""
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("config", [JOB, JOB.replace("rope = true }}", DROPOUT)], ids=["plain", "dropout"])
def test_twenty_steps_with_composer_and_of_a_job(config, signal_handlers, tmp_path, prepared_data, monkeypatch):
    forward, seen = TitanComposerMPTMuP.forward, []

    def recorded(self: TitanComposerMPTMuP, tokens: Tensor, **inputs: Any) -> Tensor:
        if not seen:
            seen.append(({name: p.detach().clone() for name, p in self.named_parameters()}, self.model_args))
        seen.append(tokens)
        return forward(self, tokens, **inputs)

    monkeypatch.setattr(TitanComposerMPTMuP, "forward", recorded)
    assert jobs.run_here(jobs.write_job(tmp_path, prepared_data, config, DATA)) == 0
    (weights, args), *batches = seen
    ours = list(jobs.scalars(tmp_path).values())
    theirs = composer_losses(weights, args, torch.cat(batches), batch_size=len(torch.cat(batches)) // STEPS)
    assert len(ours) == len(theirs) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert min(ours) < ours[0] - 0.1


def composer_losses(weights: dict[str, Tensor], args: Any, rows: Tensor, batch_size: int) -> list[float]:
    """Losses of llm-foundry's model under Composer's Trainer, with muP's groups, which Composer does not make."""
    from composer import Callback, State, Trainer
    from composer.algorithms import GradientClipping
    from composer.loggers import Logger
    from llmfoundry.utils.builders import build_composer_model

    with pytest.warns(UserWarning, match="not with its learning rates"):
        model = build_composer_model(name="mpt_mup_causal_lm", cfg=args.foundry_config(), tokenizer=None)
    model.model.load_state_dict({to_foundry_name(name): tensor for name, tensor in weights.items()})
    scales = TitanComposerMPTMuP(args).parameter_scales()
    groups = []
    for name, parameter in model.model.named_parameters():
        scale = scales[from_foundry_name(name)]
        groups.append({"params": [parameter], "lr": LR * scale.lr, "eps": EPS * scale.eps,
                       "weight_decay": DECAY * scale.weight_decay})  # fmt: skip
    losses: list[float] = []

    class Record(Callback):
        def after_loss(self, state: State, logger: Logger) -> None:
            losses.append(float(state.loss))

    # Its iterator would draw from the generator that dropout draws from.
    own = torch.Generator()
    loader = DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=batch_size, generator=own)
    with warnings.catch_warnings(action="ignore"):
        Trainer(
            model=model, train_dataloader=loader, max_duration=f"{STEPS}ba", device="cpu", seed=3,
            device_train_microbatch_size=2, callbacks=[Record()],
            optimizers=torch.optim.AdamW(groups, betas=(0.9, 0.95)), progress_bar=False, log_to_console=False,
            algorithms=[GradientClipping(clipping_type="norm", clipping_threshold=1.0)],
        ).fit()  # fmt: skip
    return torch.tensor(losses).view(STEPS, -1).mean(1).tolist()  # micro-batches of as many labels


def test_sdpa_is_in_llm_foundrys_attention_registry():
    from llmfoundry.layers_registry import attention_implementations

    from mosaic_photon.models.mpt_mup.attention import sdpa_attention

    assert attention_implementations.get("sdpa") is sdpa_attention
