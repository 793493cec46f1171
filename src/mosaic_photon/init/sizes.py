"""Which model of a family, and how much of it at a time, this machine can train.

The rule: weights, gradients and AdamW's two moments, 16 bytes a parameter, shared out over the GPUs, take at most half
of a GPU's memory; the activations of a micro-batch take at most a quarter. Without a GPU it is the debug size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mosaic_photon.names import human_size

STATE_BYTES = 16
"""Of a parameter: float32 weight, gradient, and AdamW's two moments."""
LAYER_BYTES, KEPT_BYTES, LOGIT_BYTES = 48, 2, 12
"""Of a token, times the width: what a layer's backward pass needs; what is kept of a layer that is computed again. And
times the vocabulary: logits, their float32 copy and their gradient."""
MOST_SEQUENCES, MOST_ON_CPU = 32, 4
CPU_TOKENS = 2048
"""In a micro-batch of the debug size on CPU cores: a second or two a step."""


@dataclass(frozen=True)
class Size:
    """A member of a family of models."""

    flavor: str
    width: int
    layers: int
    overrides: dict[str, Any] = field(default_factory=dict)
    """`[model.overrides]` that make it of the flavor."""

    def parameters(self, vocabulary: int) -> int:
        """About how many: 12 matrices of width x width a layer, embedding and head."""
        return 12 * self.layers * self.width**2 + 2 * vocabulary * self.width


def _llama3(width: int, layers: int, heads: int) -> Size:
    return Size("debugmodel", width, layers, {"dim": width, "n_layers": layers, "n_heads": heads})


FAMILIES: dict[str, tuple[Size, ...]] = {
    "llama3": (
        Size("debugmodel", 256, 6),
        _llama3(768, 12, 12),
        _llama3(1024, 24, 16),
        _llama3(2048, 20, 16),
        _llama3(3072, 28, 24),
        Size("8B", 4096, 32),
    ),
    "mpt": (
        Size("debugmodel", 256, 4),
        Size("125m", 768, 12),
        Size("350m", 1024, 24),
        Size("1b", 2048, 24),
        Size("3b", 2560, 32),
        Size("7b", 4096, 32),
    ),
}
"""From small to large; the first is for any machine."""


@dataclass(frozen=True)
class Machine:
    """What there is to train on."""

    gpus: int
    memory: int = 0
    """Of the smallest GPU. Bytes."""
    bfloat16: bool = False

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        import torch

        count = torch.cuda.device_count()
        if not count:
            return cls(0)
        memory = min(torch.cuda.get_device_properties(number).total_memory for number in range(count))
        return cls(count, memory, torch.cuda.is_bf16_supported(including_emulation=False))

    def __str__(self) -> str:
        if not self.gpus:
            return "no GPU"
        return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} of {human_size(self.memory)}"


@dataclass(frozen=True)
class Plan:
    """A model, and a micro-batch of it that fits."""

    size: Size
    machine: Machine
    seq_len: int
    local_batch: int
    """Sequences in a micro-batch of one GPU."""
    recompute: bool
    """Whether all activations have to be computed again in the backward pass."""
    processes: int
    """As many as there are GPUs, if there is a sample for each."""


def plan(family: str, machine: Machine, vocabulary: int, seq_len: int, samples: int) -> Plan:
    """The largest member of the family that fits the machine by the rule above, and its micro-batch.

    Args:
        family: a key of FAMILIES.
        vocabulary: rows of the embedding.
        seq_len: targets of a sample; the plan's are fewer where not one such sequence fits.
        samples: there are for training; a step has no more.
    """
    size = _largest(FAMILIES[family], machine, vocabulary)
    if machine.gpus:
        logits, width, room = LOGIT_BYTES * vocabulary, size.width, machine.memory // 4
        kept = room // (LAYER_BYTES * width * size.layers + logits)
        again = room // ((KEPT_BYTES * size.layers + LAYER_BYTES) * width + logits)
    else:
        kept = again = CPU_TOKENS
    recompute = seq_len > kept
    fits = again if recompute else kept
    seq_len = seq_len if seq_len <= fits else max(fits // 256, 1) * 256
    processes = max(1, min(machine.gpus, samples))
    most = min(fits // seq_len, samples // processes, MOST_SEQUENCES if machine.gpus else MOST_ON_CPU)
    return Plan(size, machine, seq_len, _power_of_two(most), recompute and machine.gpus > 0, processes)


def _largest(family: Sequence[Size], machine: Machine, vocabulary: int) -> Size:
    room = machine.gpus * machine.memory // 2
    fit = [size for size in family if size.parameters(vocabulary) * STATE_BYTES <= room]
    return fit[-1] if fit else family[0]


def _power_of_two(number: int) -> int:
    """The largest one that is no larger, at least 1."""
    return 1 << max(number.bit_length() - 1, 0) if number > 0 else 1
