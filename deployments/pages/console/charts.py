"""Bars by day, for gradio's BarPlot. The figures are in tables too, for those who cannot see the bars."""

import datetime
from collections.abc import Collection, Iterable
from typing import Any

import gradio as gr
from gradio.components.native_plot import PlotData

from deployments.pages.console.section import Updates, board
from deployments.pages.console.tables import Board, LegendEntry

_COLOURS = ("#b45309", "#2563eb", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777")
_HEIGHT = 260
_MAX_BARS = 31


class Bars:
    """A chart of bars, each a day's or a week's, in colours; and what the colours mean."""

    def __init__(self, title: gr.I18n) -> None:
        titles = {"x_title": " ", "y_title": " "}
        self._plot = gr.BarPlot(
            x="day", y="value", color="group", label=title, height=_HEIGHT, x_label_angle=-90, **titles
        )
        # gradio's own legend has no entries (6.31).
        self._legend = board()

    @property
    def outputs(self) -> list[Any]:
        """The components that `shown` changes."""
        return [self._plot, self._legend]

    def shown(self, values: Iterable[tuple[str, str, float]], days: Collection[str]) -> Updates:
        """Updates of the chart. values: of each day (ISO), a group's name and its value. days: all of them, also those
        on which nothing was used; many are shown as weeks."""
        in_weeks = len(days) > _MAX_BARS
        used = [(_bar(day, in_weeks=in_weeks), group, value) for day, group, value in values]
        groups = list(dict.fromkeys(group for _, group, _ in used))
        sums = {(_bar(day, in_weeks=in_weeks), group): 0.0 for day in days for group in groups}
        for bar, group, value in used:
            sums[bar, group] += value
        types = {"day": "nominal", "group": "nominal", "value": "quantitative"}
        rows = [[bar[5:], group, value] for (bar, group), value in sorted(sums.items())]
        data = PlotData(columns=["day", "group", "value"], data=rows, datatypes=types, mark="bar").model_dump()
        order = list(dict.fromkeys(row[0] for row in rows))
        colours = {group: _COLOURS[index % len(_COLOURS)] for index, group in enumerate(groups)}
        legend = [LegendEntry(group, colour) for group, colour in colours.items()]
        return {
            self._plot: gr.update(value=data, color_map=colours, colors_in_legend=[], sort=order),
            self._legend: Board(legend=legend).json(),
        }


def _bar(day: str, *, in_weeks: bool) -> str:
    """The day, or the first one of its week."""
    date = datetime.date.fromisoformat(day)
    return (date - datetime.timedelta(days=date.weekday()) if in_weeks else date).isoformat()
