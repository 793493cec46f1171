"""What ends a job with one message and no traceback, and helpers for what the messages say."""

import difflib
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A mistake in a job, data config or command line. The message says what, where, what was given, what is right."""


class NotFiniteError(Exception):
    """A step's loss or gradient norm is not finite, and the job stops. Raised on all ranks at the same point."""


class SpikesError(NotFiniteError):
    """Steps' numbers leap again and again, and the job stops. Raised on all ranks at the same point.

    `flags` are those that, added to the job's command, go on from before these steps and pass over their batches.
    """

    def __init__(self, what: str, flags: list[str]) -> None:
        super().__init__(f"{what} With {' '.join(flags)} the same job goes on from before them, without their batches.")
        self.flags = flags


def nearest(given: object, known: Iterable[str]) -> str:
    """' Did you mean X?' where a known name is close to the given one, else a sentence listing all of them."""
    names = sorted(known)
    return nearest_if_close(given, names) or (f" Known: {', '.join(names)}." if names else "")


def nearest_if_close(given: object, known: Iterable[str]) -> str:
    """' Did you mean X?' where a known name is close to the given one, else nothing."""
    lower = {name.lower(): name for name in sorted(known)}
    close = difflib.get_close_matches(str(given).lower(), lower, n=1)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


def ask_upstream(
    message: str, kinds: tuple[type[Exception], ...], call: Callable[..., T], *args: Any, **kwargs: Any
) -> T:
    """Call upstream code that judges what the user gave it: what it raises becomes a ConfigError.

    Args:
        message: what is refused; what the error says follows.
        kinds: what the called code raises for a user's mistake.
        call: upstream's function or class, and its arguments.

    Raises:
        ConfigError: for an error of these kinds. One that comes from this package's own code, which upstream may call
            back, is no mistake of the user's and passes as it is.
    """
    try:
        return call(*args, **kwargs)
    except ConfigError:
        raise
    except kinds as error:
        in_call = error.__traceback__ is not None and error.__traceback__.tb_next is not None  # else it never began
        if in_call and is_ours(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{message}: {reason}{'' if reason.endswith('.') else '.'}") from error


def is_ours(error: BaseException) -> bool:
    """Whether the error arose in this project's own code: a fault of ours, which is told with its traceback."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    home = os.path.dirname(os.path.abspath(__file__)) + os.sep
    return traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(home)
