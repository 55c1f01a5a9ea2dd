"""`dray settings`."""

from rich.markup import escape
from rich.table import Table

from cluster.commands.console import AsJson, Config, load_settings, out
from cluster.configuration import flatten, setting_descriptions, variable


def show_settings(as_json: AsJson = False, config: Config = None) -> None:
    """Print every setting with its value, where the value comes from, and what it does."""
    loaded = load_settings(config)
    values, descriptions = flatten(loaded.settings.model_dump(mode="json")), setting_descriptions()
    if as_json:
        out.print_json(
            data={
                name: {"value": values[name], "origin": loaded.origins[name], "variable": variable(name)}
                for name in values
            }
        )
        return
    table = Table("setting", "value", "source", "description")
    for name, value in values.items():
        table.add_row(name, escape(str(value)), loaded.origins[name], descriptions[name])
    out.print(table)
