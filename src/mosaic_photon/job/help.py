"""What `-- --help` prints: each field of a job as a flag, by table, with its default and what it is."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

from mosaic_photon.job.kinds import describe, is_table, types_of

WIDTH = 116
HEAD = """\
Flags go after `--` and win over the job config. Each is written --TABLE.FIELD=VALUE, or with a space for the `=`;
booleans also as --TABLE.FIELD and --TABLE.no-FIELD, lists with commas or as words, lists of lists with a word for
each, fields of a {} as --TABLE.FIELD.KEY=VALUE.
"""


def help_text(job: type) -> str:
    """All flags of a job's dataclass."""
    return "\n".join([HEAD, *_lines(job(), job, "")])


def sentences_of(table: type) -> dict[str, str]:
    """The fields' docstrings, by name; a merged table has its parents'."""
    found: dict[str, str] = {}
    for cls in reversed(table.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError):  # made in memory
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in itertools.pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _lines(table: Any, cls: type, prefix: str) -> Iterator[str]:
    sentences, kinds = sentences_of(cls), types_of(cls)
    for field in dataclasses.fields(cls):
        name, value = f"{prefix}{field.name}", getattr(table, field.name)
        if is_table(kinds[field.name]):
            about = (inspect.getdoc(kinds[field.name]) or "").split("\n\n")[0]
            own = "" if about.startswith(kinds[field.name].__name__ + "(") else " ".join(about.split())
            yield f"\n[{name}]  {own}".rstrip()
            yield from _lines(value, kinds[field.name], f"{name}.")
        else:
            default = "true" if value is True else "false" if value is False else repr(value)
            yield f"  --{name}  {describe(kinds[field.name])}, default {default}"
            yield textwrap.fill(sentences.get(field.name, ""), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
