"""The imports between packages. Each allowed import is in a table below; an entry that no code uses fails too."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import parsed

ROOT = Path(__file__).parents[1]

# From the bottom up. CLUSTER: package or top-level module, and what it imports of `cluster`; nothing of `deployments`,
# which `cluster` starts by import strings. DEPLOYMENTS: also what it imports of `cluster`.
CLUSTER = {
    "settings": "",
    "child": "",
    "liveness": "",
    "memory": "",
    "ports": "",
    "private_files": "",
    "redaction": "",
    "extras": "",
    "charts": "extras",
    "sse": "",
    "units": "",
    "audit": "private_files",
    "otlp": "",
    "audit_export": "audit otlp",
    "tables": "",
    "logs": "",
    "client": "sse",
    "batch_client": "client sse",
    "redis_client": "",
    "scaling_metrics": "",
    "records": "settings",
    "warm": "sse",
    "cores": "private_files",
    "configuration": "settings",
    "intervals": "settings",
    "node": "configuration settings",
    "redis_server": "child private_files",
    "scaling_history": "records scaling_metrics",
    "autoscaling": "scaling_history scaling_metrics settings",
    "reports": "records settings",
    "models": "child extras ports private_files settings units",
    "serve_config": "configuration intervals models redis_client settings",
    "measuring": "cores",
    # The library's own client of a bucket, as models are read.
    "objects": "models private_files records settings",
    "tuning": "child cores measuring memory models private_files settings tables units",
    "launch": (
        "child configuration cores intervals liveness memory models node private_files records redis_client "
        "redis_server serve_config settings tuning units"
    ),
    "kubernetes": "configuration launch models redis_client serve_config settings",
    "doctor": (
        "cores extras kubernetes launch memory models private_files records redis_client redis_server serve_config "
        "settings tuning units"
    ),
    "bench": "charts sse tables",
    "plan": "autoscaling bench charts cores measuring models settings tables units",
    "commands": (
        "audit audit_export batch_client bench charts client configuration cores doctor extras kubernetes launch logs "
        "memory models objects plan private_files records redis_client reports scaling_metrics serve_config settings "
        "tables tuning units warm"
    ),
    "cli": "child commands cores private_files",
}
DEPLOYMENTS = {
    "common": ("", "records redis_client"),
    # Metrics count errors and messages of `common`, which therefore logs and counts nothing itself.
    "observability": ("common", "child launch liveness otlp"),
    "routing": ("common observability", "models plan settings"),
    # The semantic cache asks the embedding replicas.
    "cache": ("common routing", "records settings"),
    # A caller's team is the fair queue's team.
    "tenancy": ("common routing", "records reports settings units"),
    "generation": ("cache common observability routing tenancy", "models records settings"),
    "api": (
        "cache common generation observability routing tenancy",
        "audit audit_export models private_files records redaction redis_client reports serve_config settings units",
    ),
    # A line of a batch is asked by way of the application's routes.
    "batches": ("api common observability tenancy", "objects records settings"),
    # Their routes answer JSON and refuse as the API does.
    "pages": (
        "api common observability tenancy",
        "cores launch liveness models records reports serve_config settings sse",
    ),
    "engine": (
        "common observability",
        "autoscaling child cores liveness models node plan serve_config settings tuning",
    ),
    "tuning": ("common engine generation", "models settings tuning"),
    "checking": ("common engine generation", "models settings"),
    "router": (
        "api batches cache common generation observability pages routing tenancy",
        "audit liveness models node records reports scaling_history serve_config",
    ),
    "app": ("engine router", "serve_config"),
}
# Packages that are slow to import, or not installed everywhere: only these import them.
RESTRICTED = {
    # The models' folder and their comparison read a model; the engine runs it.
    "openvino": "cluster.models deployments.engine",
    # It converts GGUF files, in a process of its own; benchmarks compare with it.
    "openvino_genai": "cluster.models",
    # Routers check grammars, engines follow them.
    "llguidance": "deployments.common deployments.engine",
    # 0.1 s of a start, for those whose people sign on; and as much for those who encrypt what is kept.
    "joserfc": "deployments.tenancy",
    "cryptography": "cluster.objects cluster.records",
    # The extra `buckets`.
    "obstore": "cluster.models cluster.objects",
    # Export is the extra `export`; optimum and nncf run as commands of its virtual environment.
    "torch": "cluster.models",
    "optimum": "",
    "nncf": "",
    "transformers": "cluster.models",
    "gradio": "deployments.pages",
    "pypdf": "deployments.pages",
    "docx": "deployments.pages",
    "ray": (
        "cluster.launch cluster.scaling_history deployments.api deployments.app deployments.engine deployments.pages "
        "deployments.router deployments.routing"
    ),
    "typer": "cluster.cli cluster.commands",
}


def imports() -> Iterator[tuple[str, str, str]]:
    """The importing package, the imported package and the place of each import.

    Of packages other than Dray's, only the top package.
    """
    for top in ("cluster", "deployments"):
        for file in (ROOT / top).rglob("*.py"):
            path = file.relative_to(ROOT)
            importer = _package(".".join(path.with_suffix("").parts))
            for node in ast.walk(parsed(file)):
                for name in _names(node):
                    yield importer, _package(name), f"{path}:{node.lineno}"  # type: ignore[attr-defined]


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module is not None, "imports are absolute"
        # `from cluster import node` imports cluster.node.
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _package(name: str) -> str:
    """cluster.models for cluster.models.folder.open_model; ray for ray.serve."""
    top, *rest = name.split(".")
    return f"{top}.{rest[0]}" if top in ("cluster", "deployments") and rest else top


def test_packages_import_only_what_the_tables_allow() -> None:
    allowed = {(f"cluster.{name}", f"cluster.{imported}") for name, row in CLUSTER.items() for imported in row.split()}
    for name, (own, of_cluster) in DEPLOYMENTS.items():
        allowed |= {(f"deployments.{name}", f"deployments.{imported}") for imported in own.split()}
        allowed |= {(f"deployments.{name}", f"cluster.{imported}") for imported in of_cluster.split()}
    # Before anything else, `cluster` turns off OpenVINO's telemetry.
    allowed.add(("deployments.__init__", "cluster"))
    places = defaultdict(set)
    for importer, imported, where in imports():
        if imported.startswith(("cluster", "deployments")) and importer != imported:
            places[importer, imported].add(where)
    forbidden = [
        f"{importer} imports {imported}: {places[importer, imported]}" for importer, imported in places.keys() - allowed
    ]
    unused = [f"{importer} does not import {imported}" for importer, imported in allowed - places.keys()]
    assert not forbidden and not unused, "\n".join(sorted(forbidden + unused))


def test_packages_import_only_those_listed_before_them() -> None:
    """This rules out cycles."""
    for table in (CLUSTER, {name: own for name, (own, _) in DEPLOYMENTS.items()}):
        listed: set[str] = set()
        for name, row in table.items():
            assert set(row.split()) <= listed, name
            listed.add(name)


def test_heavy_packages_are_imported_only_where_they_are_used() -> None:
    importers = defaultdict(set)
    for importer, imported, _ in imports():
        if imported in RESTRICTED:
            importers[imported].add(importer)
    assert {name: importers[name] for name in RESTRICTED} == {
        name: set(row.split()) for name, row in RESTRICTED.items()
    }
