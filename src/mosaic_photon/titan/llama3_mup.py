"""Llama 3's place in the parametrization, whatever its modules are: model args with `[mup]`, and a role a parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import ConfigError
from mosaic_photon.mup import table as rules
from mosaic_photon.mup.table import ParameterScale, Parametrization, Role, parameter_scale
from mosaic_photon.names import clean_name
from mosaic_photon.titan.releases import installed

if TYPE_CHECKING or installed().folder == "v02":
    from torchtitan.models.llama3 import TransformerModelArgs
else:
    from mosaic_photon.titan.v03.llama3 import Llama3Args as TransformerModelArgs

HIDDEN_STD = 0.02
"""TorchTitan's sigma for hidden weights, at the base width."""


@dataclass
class Llama3MuPModelArgs(TransformerModelArgs):
    """TorchTitan's args and the parametrization."""

    mup: dict[str, Any] = field(default_factory=dict)
    """Fields of Parametrization, filled from the job's `[mup]` table."""

    @classmethod
    def of(cls, args: TransformerModelArgs) -> Llama3MuPModelArgs:
        return cls(**{f.name: getattr(args, f.name) for f in dataclasses.fields(args)})

    @property
    def parametrization(self) -> Parametrization:
        return Parametrization(**self.mup)

    def update_from_config(self, job_config: Any, **kwargs: Any) -> None:
        """TorchTitan's, then `[mup]`.

        Raises:
            ConfigError: a bad `[mup]` table, attention_scale without sdpa, or weights to or from Hugging Face.
        """
        super().update_from_config(job_config, **kwargs)
        table = job_config.mup
        if not table.enabled:
            return
        for name in ("initial_load_in_hf", "last_save_in_hf"):
            if job_config.checkpoint.enable and getattr(job_config.checkpoint, name):
                raise ConfigError(
                    f"checkpoint.{name} = true: Hugging Face's Llama has no place for the multipliers of [mup], so its "
                    "logits would be others; set it to false: `mosaic-photon export` and `import` take [mup] in."
                )
        if table.attention_scale and self.attn_type != "sdpa":
            raise ConfigError(f"[mup] attention_scale needs attn_type 'sdpa' in Llama 3, not {self.attn_type!r}.")
        self.mup = asdict(rules.from_table(table, self.dim, self.n_layers))


def role_of(name: str) -> Role:
    """The row of the parametrization's table for a parameter of this model (Llama 3 has no biases)."""
    if name.startswith("layers."):
        return Role.HIDDEN_NORM if name.endswith("_norm.weight") else Role.HIDDEN_WEIGHT
    return {"tok_embeddings": Role.EMBEDDING, "norm": Role.OUTER_NORM, "output": Role.UNEMBEDDING}[name.split(".")[0]]


def init_factor(name: str, parametrization: Parametrization) -> float:
    """What TorchTitan's initial weights of a parameter are multiplied by: hidden sigma / sqrt(m_N), and the head as
    wide as at the base width, whose sigma TorchTitan makes dim^-0.5."""
    role = role_of(name)
    if role is Role.HIDDEN_WEIGHT:
        return rules.init_std_factor(role, parametrization)
    return parametrization.m_n**0.5 if role is Role.UNEMBEDDING else 1.0


def scales(names: Iterable[str], parametrization: Parametrization) -> dict[str, ParameterScale]:
    """Factors on LR, weight decay and epsilon by parameter name, wrappers' prefixes removed."""
    clean = map(clean_name, names)
    return {name: parameter_scale(role_of(name), parametrization) for name in clean}
