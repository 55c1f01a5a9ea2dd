"""The documentation against the code."""

import re
from pathlib import Path

from deployments.protocol.chat import ChatRequest

API = (Path(__file__).parents[1] / "docs" / "api.md").read_text()


def test_every_parameter_is_in_the_table_and_no_other() -> None:
    table = API.split("## Parameters of chat completions")[1].split("##")[0]
    named = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert named == set(ChatRequest.__struct_fields__)
