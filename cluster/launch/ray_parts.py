"""How Ray starts its own processes: only those that Dray uses, and with no secret on a command line (ray 2.60).

Ray starts them on every first node, whatever its settings: the dashboard's head, the autoscaler's monitor and the log
monitor. They take 150 MB and a fiftieth of a core, open two ports, and the first asks the addresses of three clouds'
metadata services for the name of the cloud, even with usage statistics turned off.
"""

import re

_AGENT = re.compile(r'"[^"]*/dashboard/agent\.py"|\S+/dashboard/agent\.py')
"""The agent's program within the raylet's argument that holds the agent's command line."""
_GCS_PASSWORD = "--redis_password="
_WORKER_PASSWORD = re.compile(r" ?[^\s=]*redis[-_.]password=\S*")
"""Within the raylet's arguments that hold the command lines of its workers, in Python, C++ and Java."""


def leave_out_unused_processes() -> None:
    """Makes `ray.init` in this process start neither of them."""
    from ray._private.node import Node

    Node.start_api_server = _start_nothing
    Node.start_monitor = _start_nothing
    Node.start_log_monitor = _start_nothing


def shrink_agent() -> None:
    """Makes `ray.init` in this process start the raylet with the small agent of `cluster.launch.ray_agent`."""
    from ray._private import services

    start = services.start_ray_process

    def start_with_small_agent(command: list[str], *arguments: object, **options: object) -> object:
        replaced = [_AGENT.sub("-m cluster.launch.ray_agent --minimal", argument) for argument in command]
        return start(replaced, *arguments, **options)

    services.start_ray_process = start_with_small_agent


def hide_redis_password() -> None:
    """Keeps the password of Ray's Redis off the command lines of what `ray.init` in this process starts.

    Any user of the machine can read command lines. The GCS server takes the password from its environment instead; the
    workers, which get it too, never ask that Redis.
    """
    from ray._private import services

    start = services.start_ray_process

    def start_without_secret(
        command: list[str], *arguments: object, env_updates: dict[str, str] | None = None, **options: object
    ) -> object:
        environment = dict(env_updates or {})
        shown = []
        for argument in command:
            if argument.startswith(_GCS_PASSWORD):
                environment["FLAGS_redis_password"] = argument.removeprefix(_GCS_PASSWORD)
                shown.append("--fromenv=redis_password")
            else:
                shown.append(_WORKER_PASSWORD.sub("", argument))
        return start(shown, *arguments, env_updates=environment, **options)

    services.start_ray_process = start_without_secret


def _start_nothing(node: object, **options: object) -> None:
    """Stands in for a method of Ray's Node that starts a process."""
