"""The one exception for mistakes that a user can mend, and the helper that names the nearest known word."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A mistake in a job, data config or command line. The message says what, where, what was given, what is right."""


def nearest(given: str, known: Iterable[str]) -> str:
    """' Did you mean X?' where a known name is close to the given one, else a sentence listing all of them."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.lower(), lower, n=1)
    if close:
        return f" Did you mean {lower[close[0]]!r}?"
    return f" Known: {', '.join(names)}." if names else ""
