"""Helm's own code, from its library on PyPI, in a process of its own: `python helm.py lint|render CHART [NAMESPACE]`.

The library runs Go in this process, and a fault of it must not end the tests. `render` reads values as JSON from
standard input. Prints JSON: `texts` of the objects, or why the values are `refused`; `faults` for `lint`.
"""

import json
import sys
from pathlib import Path

import helm_python


def lint(chart: Path) -> dict[str, list[str]]:
    report = helm_python.lint(chart, strict=True)
    return {"faults": [*report["errors"], *(str(each) for each in report["messages"] if each["severity"] > 1)]}


def render(chart: Path, namespace: str) -> dict[str, str | list[str]]:
    values = json.load(sys.stdin)
    with helm_python.Chart.load(chart) as loaded:
        try:
            loaded.validate_schema(values)
        except helm_python.HelmValuesError as error:
            return {"refused": str(error)}
        rendered = loaded.render(values, name="dray", namespace=namespace)
    return {"texts": [text for name, text in rendered.items() if name.endswith(".yaml")]}


if __name__ == "__main__":
    action, chart = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(lint(chart) if action == "lint" else render(chart, sys.argv[3])))
