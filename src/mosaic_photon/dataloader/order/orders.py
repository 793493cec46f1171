"""The order of each epoch, made once a node: a file in the node folder that every rank maps."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mosaic_photon.dataloader.node.files import map_made, remove_unheld, remove_unused
from mosaic_photon.dataloader.order.epoch import EpochOrder
from mosaic_photon.dataloader.order.sampling import Ints
from mosaic_photon.errors import ConfigError

logger = logging.getLogger(__name__)

SMALL = 1 << 20
"""An order of fewer samples is made by each process: that takes 0.2 s and 4 MB, and needs no file."""


class Orders:
    """The orders of the epochs of one data set.

    The first process of the node that needs an order makes it, the others wait and map the same file. It stays when the
    job ends, so that the next start finds it; what nobody used for a day is removed.
    """

    def __init__(self, order: EpochOrder, node_folder: Callable[[], Path], keep: int = 1) -> None:
        """`node_folder` is asked where an order is too large to be made by each process; `keep` orders are held."""
        self.order, self.length = order, order.length()
        self._is_small = self.length < SMALL
        self._folder = None if self._is_small else node_folder() / "orders"
        self._held: dict[int, Ints] = {}
        self._keep = keep
        self._getting = threading.Lock()
        self._maker: Maker | None = None
        self._prepared = -1
        self._is_first_of_node = os.environ.get("LOCAL_RANK", "0") == "0"
        if self._folder is not None and self._is_first_of_node:
            remove_unused(self._folder)

    @property
    def bytes(self) -> int:
        """Of one epoch's order on the node."""
        return self.length * self.order.dtype.itemsize

    def get(self, epoch: int) -> Ints:
        """The order of an epoch, of shape (length,). Raises ConfigError if there is no room for it."""
        with self._getting:
            order = self._held.pop(epoch, None)
            if order is None:
                for oldest in list(self._held)[: len(self._held) - self._keep + 1]:
                    del self._held[oldest]  # the mapping goes, and with it the hold on the file
                order = self.order.make(epoch) if self._folder is None else self._mapped(epoch, self._folder)
            self._held[epoch] = order
            return order

    def check_room(self, epoch: int) -> None:
        """Raise ConfigError if the order of an epoch is not here and does not fit the node folder's disk."""
        if self._folder is None or self._path(epoch, self._folder).exists():
            return
        free = shutil.disk_usage(self._folder.parent).free
        if free < self.bytes:
            raise self._no_room(self._folder, f"{free / 1e9:.2f} GB are free")

    def prepare(self, epoch: int) -> None:
        """Begin to make the order of an epoch in a process of its own, in one rank of the node; once an epoch."""
        if self._folder is None or not self._is_first_of_node or self._prepared == epoch:
            return
        self._prepared = epoch
        path = self._path(epoch, self._folder)
        if path.exists() or (self._maker is not None and self._maker.path == path):
            return
        self._stop_maker()
        self._maker = Maker.start(self.order, epoch, path)

    def close(self) -> None:
        """End what `prepare` began."""
        self._prepared = -1
        self._stop_maker()

    def _stop_maker(self) -> None:
        if self._maker is not None:
            self._maker.stop()
            self._maker = None

    def _mapped(self, epoch: int, folder: Path) -> Ints:
        path = self._path(epoch, folder)
        try:
            mapped = map_made(path, lambda part: write(self.order, epoch, part))
        except OSError as error:
            raise self._no_room(path, str(error.strerror)) from error
        if epoch > 1 and self._is_first_of_node:
            remove_unheld(self._path(epoch - 2, folder))  # a roll-back goes to the epoch before at most
        return np.frombuffer(mapped, self.order.dtype)

    def _no_room(self, path: Path, why: str) -> ConfigError:
        return ConfigError(
            f"{path}: cannot keep the order of an epoch, {self.bytes / 1e9:.2f} GB, on this node: {why}; free some"
            " space, or set mosaic.node_folder"
        )

    def _path(self, epoch: int, folder: Path) -> Path:
        return folder / self.order.name(epoch)


def write(order: EpochOrder, epoch: int, path: Path) -> None:
    """Write the order of an epoch to a new file. Raises OSError if there is no room for it."""
    length = order.length()
    logger.info(f"Making the order of epoch {epoch}: {length:,} samples, {length * order.dtype.itemsize / 1e9:.2f} GB")
    with path.open("wb+") as file:
        os.posix_fallocate(file.fileno(), 0, length * order.dtype.itemsize)  # writing to a mapping can't say: disk full
        order.fill(epoch, np.memmap(file, order.dtype, "r+", shape=(length,)))


@dataclass
class Maker:
    """A process that makes one order, and ends with the process that started it."""

    path: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, order: EpochOrder, epoch: int, path: Path) -> Maker:
        """Its memory is its own, and it takes no turns from the trainer's interpreter."""
        process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it could not start: the rank that needs the order makes it
            pickle.dump((order, epoch, path), process.stdin)
            process.stdin.flush()  # it stays open: its end tells the maker that this process is gone
        return cls(path, process)

    def stop(self) -> None:
        """End the process, whether it is done or not."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()


def main(stdin: IO[bytes]) -> None:
    """Make the order that the process at the other end of the pipe asks for."""
    order, epoch, path = pickle.load(stdin)
    threading.Thread(target=_end_with_parent, args=(stdin,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the job, which then closes the pipe
    os.nice(10)
    with suppress(OSError):  # said by the rank that needs the order
        map_made(path, lambda part: write(order, epoch, part))


def _end_with_parent(stdin: IO[bytes]) -> None:
    os.read(stdin.fileno(), 1)  # stdin.read() would hold a lock that the interpreter wants when it ends
    os._exit(0)


if __name__ == "__main__":
    main(sys.stdin.buffer)
