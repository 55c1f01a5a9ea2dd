"""A Helm chart of rendered manifests.

Settings are rendered before, so that every number has one source. The chart's values are what differs between clusters
with the same settings: images, labels, storage, nodes, the route, addresses, monitoring.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import yaml

from cluster.kubernetes.chart_values import Document, default_values, pod_templates, schema
from cluster.kubernetes.manifests import kustomize
from cluster.kubernetes.network import api_server, clients, names
from cluster.kubernetes.render import kustomization, render
from cluster.kubernetes.sizes import KubernetesError
from cluster.settings import Settings

_CLUSTER_WIDE = ("Namespace", "PriorityClass")
_COMPONENTS = ("../components/gateway",)
# What stands in the manifests until they are text: a value, or a whole line.
_VALUE, _LINE = re.compile(r"'@@(\w+)@@'"), re.compile(r"^( *)'@@(\w+)@@': ''$", flags=re.MULTILINE)
_EXPRESSIONS = {
    "namespace": "{{ .Release.Namespace }}",
    "image": "{{ .Values.image | quote }}",
    "fetch_image": "{{ .Values.fetchImage | quote }}",
    "redis_image": "{{ .Values.redisImage | quote }}",
    "node_selector": "{{ toJson .Values.engines.nodeSelector }}",
    "tolerations": "{{ toJson .Values.engines.tolerations }}",
    "hostnames": "{{ toJson .Values.route.hostnames }}",
    "parents": "{{ toJson .Values.route.parentRefs }}",
    "dns": '{{ include "dray.blocks" .Values.network.dnsAddresses }}',
    "clients": '{{ include "dray.blocks" .Values.network.clientNetworks }}',
    "api_ports": '{{ include "dray.ports" .Values.network.apiServerPorts }}',
}
_LINES = {
    "labels": "{{{{- with .Values.labels }}}}\n{{{{- toYaml . | nindent {indent} }}}}\n{{{{- end }}}}",
    "only_labels": "{{{{- with .Values.labels }}}}\n{spaces}labels: {{{{ toJson . }}}}\n{{{{- end }}}}",
    "release": "{{{{- with .Values.monitoring.labels }}}}\n{{{{- toYaml . | nindent {indent} }}}}\n{{{{- end }}}}",
    "pull_secrets": (
        "{{{{- with .Values.imagePullSecrets }}}}\n{spaces}imagePullSecrets: {{{{ toJson . }}}}\n{{{{- end }}}}"
    ),
    "storage_class": (
        "{{{{- with .Values.storageClass }}}}\n{spaces}storageClassName: {{{{ . | quote }}}}\n{{{{- end }}}}"
    ),
}
_SIZES = {
    f"{server}_{name}": expression.replace("SERVER", server)
    for server in ("answers", "teams", "gcs")
    for name, expression in (
        ("maxmemory", '"{{ int .Values.redis.SERVERMemoryMiB }}mb"'),
        ("memory", '"{{ include "dray.redisMemory" .Values.redis.SERVERMemoryMiB }}Mi"'),
        ("disk", "{{ .Values.redis.SERVERDisk | quote }}"),
    )
}
_HELPERS = """\
{{- define "dray.blocks" -}}
[{{- range $index, $cidr := . }}{{ if $index }}, {{ end }}{"ipBlock": {"cidr": {{ $cidr | quote }}}}{{- end }}]
{{- end }}
{{- define "dray.ports" -}}
[{{- range $index, $port := . }}{{ if $index }}, {{ end }}{"protocol": "TCP", "port": {{ $port }}}{{- end }}]
{{- end }}
{{- define "dray.redisMemory" -}}
{{ max 512 (mul 256 (div (add (mul 3 (int .)) 511) 512)) }}
{{- end }}
"""
_NOTES = """\
Dray is {{ if .Release.IsUpgrade }}updated{{ else }}installed{{ end }}. It needs:

- KubeRay's operator, 1.7 or later
- the Secrets of its Redis servers: k8s/secrets.sh {{ .Release.Namespace }} | kubectl apply -f -
- the label that admits routes from here:
  kubectl label namespace {{ .Release.Namespace }} dray/routes=true pod-security.kubernetes.io/enforce=restricted

kubectl -n {{ .Release.Namespace }} wait rayservice/dray --for=condition=Ready --timeout=30m
"""
_HEAD = (
    "# Written by `dray k8s chart`. Settings of models, routers and limits are rendered before: change them there.\n"
)


def chart(documents: list[Document], monitoring: list[Document]) -> dict[str, str]:
    """The files of a chart by their path in it.

    documents: an overlay, as Kustomize renders it. monitoring: those of k8s/monitoring. Raises KubernetesError.
    """
    values = default_values(documents)
    files = {
        "Chart.yaml": yaml.safe_dump(_description(), sort_keys=False),
        "values.yaml": _HEAD + yaml.safe_dump(values, sort_keys=False),
        "values.schema.json": json.dumps(schema(values), indent=2) + "\n",
        "templates/NOTES.txt": _NOTES,
        "templates/_helpers.tpl": _HELPERS,
    }
    for document in documents:
        if document["kind"] != "Namespace":
            condition = ".Values.route.enabled" if document["kind"] == "HTTPRoute" else ""
            files[_path(document)] = _template(document, values, condition)
    for policy, value in _more_policies():
        files[_path(policy)] = _template(policy, values, f".Values.network.{value}")
    for document in monitoring:
        document["metadata"]["labels"].pop("release", None)
        document["metadata"]["labels"]["@@release@@"] = ""
        files[f"templates/monitoring/{_file(document)}"] = _template(document, values, ".Values.monitoring.enabled")
    return files


def write_chart(settings: Settings, manifests: Path, target: Path) -> list[str]:
    """Writes the chart of these settings into a folder, and returns its files' paths. Raises KubernetesError.

    manifests: the folder k8s.
    """
    with tempfile.TemporaryDirectory() as name:
        # Kustomize takes no absolute paths.
        copy = Path(name).resolve()
        for part in ("base", "components", "monitoring"):
            shutil.copytree(manifests / part, copy / part)
        overlay = copy / "overlay"
        overlay.mkdir()
        files = render(settings, copy / "base")
        for file, text in {**files, "kustomization.yaml": kustomization(files, "../base", _COMPONENTS)}.items():
            (overlay / file).write_text(text)
        written = chart(kustomize(overlay), kustomize(copy / "monitoring"))
    if target.exists():
        shutil.rmtree(target / "templates", ignore_errors=True)
    for path, text in written.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text)
    return list(written)


def _description() -> Document:
    return {
        "apiVersion": "v2",
        "name": "dray",
        "description": "Small reasoning language models on CPUs behind an OpenAI-compatible API",
        "type": "application",
        "version": version("dray"),
        "appVersion": version("dray"),
        "kubeVersion": ">=1.29.0-0",
        "sources": [],
    }


def _path(document: Document) -> str:
    return f"templates/{_file(document)}"


def _file(document: Document) -> str:
    return f"{document['kind'].lower()}-{document['metadata']['name']}.yaml"


def _more_policies() -> Iterator[tuple[Document, str]]:
    yield names("@@dns@@"), "dnsAddresses"
    yield clients("@@clients@@"), "clientNetworks"
    yield api_server("@@api_ports@@"), "apiServerPorts"


def _template(document: Document, values: Document, condition: str) -> str:
    """The text of one template. condition: the value without which the object is left out; empty: none."""
    marked: Document = json.loads(json.dumps(document))
    _mark(marked, values)
    text: str = yaml.dump(marked, Dumper=_Lines, sort_keys=False, allow_unicode=True, width=1000)
    # Whatever of the manifests looks like a template's own syntax is text.
    text = text.replace("{{", '{{ "{{" }}')
    text = _LINE.sub(lambda match: _LINES[match[2]].format(indent=len(match[1]), spaces=match[1]), text)
    text = _VALUE.sub(lambda match: (_EXPRESSIONS | _SIZES)[match[1]], text)
    text = text.replace("@@job@@", _job_version(values))
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n" if condition else text


class _Lines(yaml.SafeDumper):
    """Writes multi-line text as a literal block."""


_Lines.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _job_version(values: Document) -> str:
    """What a Job's name ends with where values change its pods: a Job is immutable."""
    default = json.dumps([values.get("fetchImage", ""), values["image"], [], {}], separators=(",", ":"))
    given = 'list (.Values.fetchImage | default "") .Values.image .Values.imagePullSecrets .Values.labels | toJson'
    changed = "{{ if ne $pods `" + default + "` }}-{{ $pods | sha256sum | trunc 8 }}{{ end }}"
    return "{{- $pods := " + given + " }}" + changed


def _mark(document: Document, values: Document) -> None:
    kind, metadata = document["kind"], document["metadata"]
    _mark_labels(metadata)
    if kind not in _CLUSTER_WIDE:
        metadata["namespace"] = "@@namespace@@"
    for template in pod_templates(document):
        _mark_labels(template["metadata"])
        pod = template["spec"]
        pod["@@pull_secrets@@"] = ""
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            container["image"] = _image(container, values)
        if pod.get("nodeSelector") == values["engines"]["nodeSelector"]:
            pod |= {"nodeSelector": "@@node_selector@@", "tolerations": "@@tolerations@@"}
    if kind == "Job":
        metadata["name"] += "@@job@@"
    if kind == "PersistentVolumeClaim":
        document["spec"]["@@storage_class@@"] = ""
    if kind == "StatefulSet":
        _mark_server(document, metadata["name"].removeprefix("dray-"))
    if kind == "HTTPRoute":
        document["spec"] |= {"hostnames": "@@hostnames@@", "parentRefs": "@@parents@@"}


def _mark_server(document: Document, server: str) -> None:
    """The sizes of a Redis server: of its data, of its pod, which follows from that, and of its disk."""
    [container] = document["spec"]["template"]["spec"]["containers"]
    for entry in container["env"]:
        if entry["name"] == "MAXMEMORY":
            entry["value"] = f"@@{server}_maxmemory@@"
    for sizes in container["resources"].values():
        sizes["memory"] = f"@@{server}_memory@@"
    for claim in document["spec"].get("volumeClaimTemplates", ()):
        claim["spec"]["resources"]["requests"]["storage"] = f"@@{server}_disk@@"
        claim["spec"]["@@storage_class@@"] = ""


def _mark_labels(metadata: Document) -> None:
    if metadata.get("labels"):
        metadata["labels"]["@@labels@@"] = ""
    else:
        metadata["@@only_labels@@"] = ""


def _image(container: Document, values: Document) -> str:
    image: str = container["image"]
    # First, because the images may be the same.
    if container.get("command", [])[:3] == ["dray", "models", "pull"]:
        return "@@fetch_image@@"
    for name, mark in (("redisImage", "@@redis_image@@"), ("image", "@@image@@")):
        if image == values.get(name):
            return mark
    raise KubernetesError(f"the chart has no value for the image {image}")
