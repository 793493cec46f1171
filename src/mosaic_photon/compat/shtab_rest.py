"""shtab's zsh script completes the first of an argument's many words, and no further one.

It writes `(*)` before an argument with nargs "*" or "+", by which zsh takes the first word for all of them.
Upstream: no issue filed yet; shtab 1.13.0, `complete_zsh`. Delete when a second word is completed without this.
"""

NEEDED = "shtab"


def complete_all(script: str) -> str:
    """The zsh script with such arguments completed at each word."""
    return script.replace('"(*)::', '"*:').replace('"(*):', '"*:')
