"""Draws the map in docs/architecture.md from tests/allowed_imports.toml: `python docs/draw_map.py` writes it anew."""

import tomllib
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parent / "tests" / "allowed_imports.toml"
PAGE = HERE / "architecture.md"
BEGIN, END = "```mermaid\n", "```\n"
KNOWN_BY_ALL = {"shared", "compat"}


def drawing() -> str:
    """A mermaid graph of the rooms: an arrow is left out where a longer way says the same."""
    rooms = {room: set(names) - KNOWN_BY_ALL for room, names in tomllib.loads(TABLE.read_text())["rooms"].items()}
    rooms = {room: names for room, names in rooms.items() if room not in KNOWN_BY_ALL}
    lines = [f'    {_id(room)}["{room}"]' for room in sorted(rooms)]
    for room, names in sorted(rooms.items()):
        further = {far for name in names for far in _below(name, rooms)}
        lines += [f"    {_id(room)} --> {_id(name)}" for name in sorted(names - further)]
    return "graph TD\n" + "\n".join(lines) + "\n"


def _below(room: str, rooms: dict[str, set[str]]) -> set[str]:
    return {far for name in rooms[room] for far in {name, *_below(name, rooms)}}


def _id(room: str) -> str:
    return room.replace(".", "_")


def with_drawing(page: str) -> str:
    """The page with the drawing as it is now."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + drawing() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(with_drawing(PAGE.read_text()))
