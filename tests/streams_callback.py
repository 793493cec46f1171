"""A callback that tells two streams apart by what is in a row, and sums what the model loses on each."""

import torch
import torch.nn.functional as F
from composer.core import Callback, State
from composer.loggers import Logger
from tokenizers import Tokenizer

import mds_data

SUMS = ("losses", "labels", "rows", "bytes")


class Sums(Callback):
    """Logs each step's losses, labels, rows and bytes of text by stream, of one process, which has all logits."""

    def __init__(self) -> None:
        tokenizer = Tokenizer.from_file(str(mds_data.ASSETS / "tokenizer.json"))
        self.bytes = torch.tensor([0, 0, 0, *(len(tokenizer.id_to_token(token)) for token in range(3, 2048))])
        """Of each token: a byte is a character in the vocabulary of a byte-level tokenizer."""
        self.sums = torch.zeros(len(SUMS), 2, dtype=torch.float64)

    def batch_start(self, state: State, logger: Logger) -> None:
        self.sums.zero_()

    def after_loss(self, state: State, logger: Logger) -> None:
        labels, inputs = state.batch["labels"], state.batch["input_ids"]
        of_labels = F.cross_entropy(state.outputs.double().transpose(1, 2), labels, reduction="none", ignore_index=-100)
        stream = (inputs[:, 0] >= 3 + mds_data.SECOND // 1000).long()
        of_text = torch.where(labels == -100, 0, self.bytes[labels.clamp(min=0)])
        rows = [of_labels.sum(1), (labels != -100).sum(1), torch.ones(len(labels)), of_text.sum(1)]
        self.sums.index_add_(1, stream, torch.stack(rows).double())

    def batch_end(self, state: State, logger: Logger) -> None:
        for what, pair in zip(SUMS, self.sums.tolist(), strict=True):
            logger.log_metrics({f"sums/{what}/{stream}": value for stream, value in zip("ab", pair, strict=True)})
