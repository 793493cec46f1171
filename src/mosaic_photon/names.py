"""Names of parameters and modules without what wrapping inserts, and sizes as people read them."""

WRAPPERS = ("_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module")
"""Attributes that activation checkpointing, torch.compile and FSDP 1 put between a module and its content."""


def clean_name(name: str) -> str:
    """The dotted name as the unwrapped model has it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def human_size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
