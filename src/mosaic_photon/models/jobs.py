"""A job's model args, for commands that need the model but not the data."""

from typing import Any

from mosaic_photon.errors import ConfigError


def load_job_model(path: str) -> tuple[Any, Any]:
    """The job config at `path` and a copy of its flavor's model args, `[model.overrides]` applied.

    Raises:
        ConfigError: a missing or malformed file, an unknown table, field, model, flavor or override.
    """
    import mosaic_photon.compat  # noqa: F401  (before TorchTitan)

    # isort: split
    from torchtitan.config import ConfigManager

    from mosaic_photon.job_config import MosaicJobConfig
    from mosaic_photon.job_loading import check_tables, read_toml
    from mosaic_photon.model_args import apply_model_overrides
    from mosaic_photon.train_spec import build_train_spec

    check_tables(read_toml(path), MosaicJobConfig, path)
    job = ConfigManager(MosaicJobConfig).parse_args([f"--job.config_file={path}"])
    job.checkpoint.initial_load_in_hf = False  # no such command loads those weights, and one makes them
    if not job.model.hf_assets_path:
        raise ConfigError(f"{path}: model.hf_assets_path is missing; name a folder with tokenizer.json.")
    spec = build_train_spec(job.model.name)
    apply_model_overrides(spec, job)
    return job, spec.model_args[job.model.flavor]
