"""`dray settings`."""

from rich.markup import escape
from rich.table import Table

from cluster.commands.console import AsJson, Config, out, settled
from cluster.configuration import describe, leaves, variable


def show_settings(as_json: AsJson = False, config: Config = None) -> None:
    """Print every setting in force, where it came from, and what it does."""
    loaded = settled(config)
    values, texts = leaves(loaded.settings.model_dump(mode="json")), describe()
    if as_json:
        out.print_json(
            data={
                name: {"value": values[name], "origin": loaded.origins[name], "variable": variable(name)}
                for name in values
            }
        )
        return
    table = Table("setting", "value", "from", "what it does")
    for name, value in values.items():
        table.add_row(name, escape(str(value)), loaded.origins[name], texts[name])
    out.print(table)
