"""Tables for people, in which no name is cut.

In a pipe they are as wide as their contents. A terminal that is too narrow lacks the least important columns; what is
still too wide is printed a cell a line.
"""

from collections.abc import Collection, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

_BESIDE_A_CELL = 3
"""Its line and its padding."""
_TEXT_WIDTH = 24
"""The least width of a column of sentences, which wrap at words."""

Cell = str | Text
"""A str is shown as it is, without rich's markup."""


class DataTable:
    """A table of names and figures.

    columns: the headings, and the others some of them. drop: left out on narrow terminals, the first one first. right:
    aligned to the right. sentences: may be wrapped. header: whether headings are shown.
    """

    def __init__(
        self,
        *columns: str,
        title: str = "",
        caption: str = "",
        drop: Sequence[str] = (),
        right: Collection[str] = (),
        sentences: Collection[str] = (),
        header: bool = True,
    ) -> None:
        if len(set(columns)) < len(columns) or not {*drop, *right, *sentences} <= set(columns):
            raise ValueError(f"each column has a heading of its own, and no other is dropped or aligned: {columns}")
        self.columns = columns
        self._title, self._caption = title, caption
        self._drop, self._right, self._sentences, self._header = drop, right, sentences, header
        self._rows: list[list[Text]] = []

    def add_row(self, *cells: Cell) -> None:
        """Adds a row; cells at its end may be missing."""
        texts = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        self._rows.append(texts + [Text() for _ in self.columns[len(texts) :]])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._title:
            yield Text(self._title, style="italic", overflow="fold")
        for count in range(len(self._drop) + 1):
            shown = [index for index, name in enumerate(self.columns) if name not in self._drop[:count]]
            if sum(self._width(index) + _BESIDE_A_CELL for index in shown) < options.max_width:
                yield self._table(shown)
                return
        yield from self._a_cell_a_line()

    def _width(self, index: int) -> int:
        """That a column needs."""
        cells = [row[index].cell_len for row in self._rows]
        widest = max([Text(self.columns[index]).cell_len if self._header else 0, *cells])
        return min(widest, _TEXT_WIDTH) if self.columns[index] in self._sentences else widest

    def _table(self, shown: Sequence[int]) -> Table:
        table = Table(caption=self._caption or None, show_header=self._header)
        for index in shown:
            name = self.columns[index]
            wraps = name in self._sentences
            table.add_column(
                name,
                justify="right" if name in self._right else "left",
                no_wrap=not wraps,
                overflow="fold",
                min_width=self._width(index),
            )
        for row in self._rows:
            table.add_row(*(row[index] for index in shown))
        return table

    def _a_cell_a_line(self) -> Iterator[RenderableType]:
        for row in self._rows:
            for name, cell in zip(self.columns, row, strict=True):
                if cell:
                    yield Text.assemble(f"{name}: " if self._header and name else "", cell, overflow="fold")
            yield ""
        if self._caption:
            yield Text(self._caption, style="table.caption", overflow="fold")
