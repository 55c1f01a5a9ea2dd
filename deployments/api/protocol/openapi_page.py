"""GET /docs: what GET /openapi.json says, for people."""

from jinja2 import Environment

from deployments.api.protocol.openapi import document
from deployments.api.static import ICON

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ doc.info.title }} API</title>
{{ icon | safe }}
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 0.9em ui-monospace, monospace }
pre { overflow-x: auto }
details { border-top: 1px solid #8886; padding: 0.5rem 0 }
summary { cursor: pointer }
table { border-collapse: collapse; width: 100% }
td { padding: 0.2rem 1rem 0.2rem 0; vertical-align: top; border-top: 1px solid #8883; overflow-wrap: anywhere }
.method { display: inline-block; width: 3.5rem; text-transform: uppercase; font-weight: 600 }
</style>
<h1>{{ doc.info.title }} {{ doc.info.version }}</h1>
<p><a href="./">Start page</a> · machine-readable: <a href="openapi.json">openapi.json</a></p>
{% for path, methods in doc.paths.items() %}
{% for method, operation in methods.items() %}
<details>
<summary><span class="method">{{ method }}</span> <code>{{ path }}</code> {{ operation.summary }}</summary>
{% if operation.requestBody %}
{% set content = operation.requestBody.content.values() | first %}
{% set name = content.schema["$ref"].split("/")[-1] %}
{% set schema = doc.components.schemas[name] %}
<p>{{ schema.description }}</p>
<table>
{% for field, type in schema.properties.items() %}
<tr><td><code>{{ field }}</code>{{ " (required)" if field in schema.required }}</td>
<td><code>{{ type | tojson }}</code></td></tr>
{% endfor %}
</table>
{% endif %}
</details>
{% endfor %}
{% endfor %}
<h2>Schemas</h2>
{% for name, schema in doc.components.schemas.items() %}
<details id="{{ name }}"><summary><code>{{ name }}</code> {{ schema.description }}</summary>
<pre>{{ schema | tojson(2) }}</pre></details>
{% endfor %}
</html>
"""


def page() -> str:
    """The document as HTML, in one page that loads nothing else."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(doc=document(), icon=ICON)
