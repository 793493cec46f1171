"""OptimizerMonitor on one model, in a TorchTitan job and in Composer's Trainer."""

import pytest
import torch
from torch.utils.data import DataLoader

import jobs
from composer_jobs import DATA, DECAY, EPS, LR, job
from mosaic_photon.callbacks import OptimizerMonitor
from mosaic_photon.models import TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name

STEPS = 3
JOB = job(STEPS, "[callbacks.optimizer_monitor]\ninterval = 1\n").replace("steps = 3\n", "steps = 3\nmax_norm = 1e9\n")


def in_composer(weights, args, rows):
    """What the monitor logs of the same steps: name -> {batch: value}."""
    from composer import Trainer
    from composer.loggers import InMemoryLogger
    from llmfoundry.utils.builders import build_composer_model

    model = build_composer_model(name="mpt_mup_causal_lm", cfg=args.foundry_config(), tokenizer=None)
    model.model.load_state_dict({to_foundry_name(name): tensor for name, tensor in weights.items()})
    memory = InMemoryLogger()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=len(rows) // STEPS),
        optimizers=torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=EPS, weight_decay=DECAY),
        max_duration=f"{STEPS}ba",
        callbacks=[OptimizerMonitor(interval=1)],
        loggers=[memory],
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    return {name: {stamp.batch.value: float(value) for stamp, value in data} for name, data in memory.data.items()}


@pytest.mark.filterwarnings("ignore")
def test_the_same_numbers_in_a_job_and_in_composers_trainer(tmp_path, prepared_data, monkeypatch):
    forward, seen = TitanComposerMPTMuP.forward, []

    def recorded(self, tokens, **inputs):
        if not seen:
            seen.append(({name: p.detach().clone() for name, p in self.named_parameters()}, self.model_args))
        seen.append(tokens)
        return forward(self, tokens, **inputs)

    monkeypatch.setattr(TitanComposerMPTMuP, "forward", recorded)
    assert jobs.run_here(jobs.write_job(tmp_path, prepared_data, JOB, DATA)) == 0
    (weights, args), *batches = seen
    composers = in_composer(weights, args, torch.cat(batches))
    quantities = [f"l2_norm/{name}" for name in ("grad", "param", "update", "moment", "moment2")]
    for quantity in [*quantities, "max/moment2"]:
        for name in ("layers.1.ffn.up_proj.weight", "norm.weight", "global"):
            composers_name = name if name == "global" else f"model.{to_foundry_name(name)}"
            values = jobs.scalars(tmp_path, f"{quantity}/{name}")
            assert values.keys() == {1, 2, 3}, (quantity, name)
            assert values == pytest.approx(composers[f"{quantity}/{composers_name}"], rel=1e-3), (quantity, name)
