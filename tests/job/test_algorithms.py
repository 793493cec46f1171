"""llm-foundry's table `algorithms` is answered with what to set instead, wherever it is given."""

import logging

import pytest

from mds_data import write_mds
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.algorithms import INSTEAD
from mosaic_photon.job.data_config import load_data_config
from mosaic_photon.job.load import read_job

CLIPPING = "algorithms:\n  gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}\n  alibbi: {}\n"


def test_each_algorithm_of_llm_foundry_has_an_answer():
    import llmfoundry.algorithms  # noqa: F401  (registers them)
    from llmfoundry.registry import algorithms

    assert set(INSTEAD) == set(algorithms.get_all())


def test_a_job_config_is_refused_with_the_answer(tmp_path):
    (tmp_path / "job.toml").write_text("[algorithms.gradient_clipping]\nclipping_threshold = 1.0\n")
    with pytest.raises(ConfigError, match=r"gradient_clipping: training\.max_norm bounds the gradient's norm"):
        read_job(str(tmp_path / "job.toml"), [])


def test_a_data_config_is_refused_and_a_whole_yaml_goes_on_with_the_answer(tmp_path, caplog):
    write_mds(tmp_path / "data", 8)
    loader = f"  name: text\n  dataset: {{local: {tmp_path / 'data'}}}\n"
    path = tmp_path / "data.yaml"
    path.write_text(f"{CLIPPING}mosaic_dataloader:\n{loader}")
    with pytest.raises(ConfigError, match=r"training\.max_norm.*Did you mean 'alibi'"):
        load_data_config(path)
    path.write_text(f"{CLIPPING}train_loader:\n{loader}")
    with caplog.at_level(logging.WARNING):
        load_data_config(path)
    assert "gradient_clipping: training.max_norm" in caplog.text and "low_precision" not in caplog.text
