"""The node folder is the user's own, or it is refused."""

import os
import tempfile
from pathlib import Path

import pytest

from mosaic_photon.dataloader.node.folder import node_folder
from mosaic_photon.errors import ConfigError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"mosaic-photon-{os.getuid()}"


def test_the_default_is_made_for_this_user_alone(temporary: Path):
    assert node_folder() == node_folder("") == temporary
    assert temporary.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_write_to_is_closed(temporary: Path):
    temporary.mkdir()
    temporary.chmod(0o777)
    node_folder()
    assert temporary.stat().st_mode & 0o777 == 0o700


def test_a_link_in_the_default_place_is_refused(temporary: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    temporary.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"is a link; set mosaic.node_folder"):
        node_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_another_users_folder_in_the_default_place_is_refused(temporary: Path):
    temporary.mkdir()
    os.chown(temporary, 12345, 12345)
    with pytest.raises(ConfigError, match=r"belongs to another user"):
        node_folder()


def test_a_configured_folder_is_made_and_must_be_a_folder(tmp_path: Path):
    assert node_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"mosaic.node_folder = .*file': File exists; name a folder"):
        node_folder(str(tmp_path / "file"))
