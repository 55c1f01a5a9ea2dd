"""The command `ray`, whose raylet gets the small agent of `cluster.launch.ray_agent`."""

from cluster.launch.ray_parts import shrink_agent


def main() -> None:
    """Runs the command line's arguments."""
    shrink_agent()
    from ray.scripts.scripts import main as ray

    ray()


if __name__ == "__main__":
    main()
