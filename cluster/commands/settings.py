"""`dray settings`."""

from collections.abc import Iterable

from cluster.commands.console import AsJson, Config, load_settings, out, print_json
from cluster.configuration import flatten, setting_descriptions, variable
from cluster.tables import DataTable


def show_settings(as_json: AsJson = False, config: Config = None) -> None:
    """Print every setting with its value, where the value comes from, and what it does."""
    loaded = load_settings(config)
    values, descriptions = flatten(loaded.settings.model_dump(mode="json")), setting_descriptions()
    if as_json:
        print_json(
            {
                name: {"value": values[name], "origin": loaded.origins[name], "variable": variable(name)}
                for name in values
            }
        )
        return
    rows = ((name, str(value), loaded.origins[name], descriptions[name]) for name, value in values.items())
    out.print(settings_table(rows))


def settings_table(rows: Iterable[tuple[str, str, str, str]]) -> DataTable:
    """Name, value, source and description of settings."""
    sentences = ("value", "description")
    table = DataTable("setting", "value", "source", "description", sentences=sentences, drop=["source"])
    for row in rows:
        table.add_row(*row)
    return table
