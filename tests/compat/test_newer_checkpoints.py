"""A checkpoint of a newer torch is read by an older one."""

import pickle

from torch.distributed.checkpoint.metadata import TensorProperties

from mosaic_photon.compat import newer_checkpoints


class Newer(TensorProperties):
    """As a torch to come may write it."""

    def __getstate__(self) -> tuple:
        return (*super().__getstate__(), "new")

    def __reduce__(self) -> tuple:
        return TensorProperties, (), self.__getstate__()


def test_what_is_known_of_a_tensor_is_taken() -> None:
    newer_checkpoints.apply()
    assert pickle.loads(pickle.dumps(Newer(requires_grad=True))) == TensorProperties(requires_grad=True)
