"""`mpt_mup_causal_lm` in llm-foundry's registry, trained by llm-foundry's builders and Composer's Trainer, as here."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name
from mosaic_photon.models.proxy import loss_of

SIZE = {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 128, "max_seq_len": 32}
MUP = {"enabled": True, "width": 4.0, "depth": 2.0}
STEPS = 20
EPS = 1e-6
"""Above rounding noise, which AdamW would otherwise blow up where the true gradient is 0 (the keys' bias)."""


@pytest.fixture
def signal_handlers():
    """Importing Composer replaces them."""
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_twenty_steps_with_composer_and_here(signal_handlers):
    warnings.simplefilter("ignore")
    from composer import Callback, State, Trainer
    from composer.loggers import Logger
    from llmfoundry.utils.builders import build_composer_model

    args = MPTMuPModelArgs(**SIZE | {"mup": MUP, "attn_config": {"rope": True}, "tie_word_embeddings": False})
    ours = TitanComposerMPTMuP(args)
    theirs = build_composer_model(name="mpt_mup_causal_lm", cfg=args.foundry_config(), tokenizer=None)
    theirs.model.load_state_dict({to_foundry_name(n): p.clone() for n, p in ours.state_dict().items()})
    data = torch.randint(128, (STEPS * 4, 32), generator=torch.Generator().manual_seed(0))
    losses: list[float] = []

    class Record(Callback):
        def after_loss(self, state: State, logger: Logger) -> None:
            losses.append(float(state.loss))

    loader = DataLoader([{"input_ids": row, "labels": row} for row in data], batch_size=4)
    Trainer(
        model=theirs, train_dataloader=loader, max_duration=f"{STEPS}ba", device="cpu", callbacks=[Record()],
        optimizers=torch.optim.AdamW(theirs.parameters(), lr=1e-3, eps=EPS), progress_bar=False, log_to_console=False,
    ).fit()  # fmt: skip

    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3, eps=EPS)
    for step, expected in enumerate(losses):
        tokens = data[step * 4 : step * 4 + 4]
        labels = torch.roll(tokens, -1, dims=1)
        labels[:, -1] = -100
        loss = loss_of(ours, (tokens, labels), "cpu")
        assert loss.item() == pytest.approx(expected, abs=1e-4), step
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(losses) == STEPS
    assert min(losses) < losses[0]


def test_sdpa_is_in_llm_foundrys_attention_registry():
    from llmfoundry.layers_registry import attention_implementations

    from mosaic_photon.models.mpt_mup.attention import sdpa_attention

    assert attention_implementations.get("sdpa") is sdpa_attention
