"""Names of parameters and modules, without what wrapping inserts."""

WRAPPERS = ("_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module")
"""Attributes that activation checkpointing, torch.compile and FSDP 1 put between a module and its content."""


def clean_name(name: str) -> str:
    """The dotted name as the unwrapped model has it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
