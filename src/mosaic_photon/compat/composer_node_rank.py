"""`composer.utils.dist.get_node_rank` reads NODE_RANK, which Composer's own launcher sets and torchrun does not.

No upstream issue. Delete when Composer reads torchrun's GROUP_RANK.
"""

import os

NEEDED = "mosaicml"


def set_node_rank() -> None:
    """Give Composer the node's rank as torchrun knows it; 0 without torchrun."""
    os.environ.setdefault("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
