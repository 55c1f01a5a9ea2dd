"""What a section of the console shows, as console.js draws it.

It travels as JSON, and the browser makes text of every cell: a question or an answer cannot become a part of the page.
"""

import msgspec


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cell. number, time (Unix time): shown as the browser's language has them. digits: after the point.

    share: a bar, of 0 to 1. id: the text is one. tone: good, warn or bad, if it is to stand out.
    """

    text: str = ""
    number: float | None = None
    digits: int = 0
    time: float | None = None
    share: float | None = None
    id: bool = False
    tone: str = ""


class Action(msgspec.Struct, frozen=True, omit_defaults=True):
    """A button of a row. action: as the section's handler knows it. confirm: a question that is asked before."""

    action: str
    label: str
    confirm: str = ""


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row. id: of what it shows, which its actions are about. name: what screen readers call it."""

    cells: list[Cell]
    id: str = ""
    name: str = ""
    actions: list[Action] = []


class Table(msgspec.Struct, frozen=True, omit_defaults=True):
    """A table. caption: its heading. empty: shown where there are no rows. head: names of the columns."""

    caption: str
    head: list[str]
    rows: list[Row]
    empty: str
    more: Action | None = None
    """A button below it, for what did not fit."""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A figure with its name."""

    name: str
    value: Cell


class Notice(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sentence that stands out. tone: as a cell's."""

    text: str
    tone: str = "warn"
    code: str = ""
    """A command to run."""


class LegendEntry(msgspec.Struct, frozen=True):
    """What a colour of a chart means. colour: in CSS."""

    name: str
    colour: str


class Board(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a part of a section shows, in this order."""

    notices: list[Notice] = []
    figures: list[Figure] = []
    legend: list[LegendEntry] = []
    tables: list[Table] = []

    def json(self) -> str:
        """As console.js reads it."""
        return msgspec.json.encode(self).decode()


def text(value: str, tone: str = "") -> Cell:
    """A cell with text."""
    return Cell(text=value, tone=tone)


def id_text(value: str) -> Cell:
    """A cell with an id."""
    return Cell(text=value, id=True)


def number(value: float | None, tone: str = "") -> Cell:
    """A cell with a number; none: a dash."""
    return Cell(text="–") if value is None else Cell(number=value, tone=tone)


def money(value: float | None, tone: str = "") -> Cell:
    """A cell with an amount; none: a dash."""
    return Cell(text="–") if value is None else Cell(number=value, digits=2, tone=tone)


def seconds(value: float | None) -> Cell:
    """A cell with a duration."""
    if value is None:
        return Cell(text="–")
    # With spaces that do not break.
    if value < 1:
        return Cell(text=f"{value * 1000:.0f}\u00a0ms")
    return Cell(text=f"{value:.2f}\u00a0s" if value < 10 else f"{value:.0f}\u00a0s")


def moment(value: float) -> Cell:
    """A cell with a Unix time."""
    return Cell(time=value)


def share(value: float, tone: str = "") -> Cell:
    """A cell with a part of a whole, 0 to 1 or more."""
    return Cell(share=value, tone=tone)
