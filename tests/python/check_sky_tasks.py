"""Reads SkyPilot tasks as `sky jobs launch` does, and their commands as its command line does; starts nothing and needs no network.

usage: check_sky_tasks.py FOLDER HOME

FOLDER has N.yaml, and N.json with {"command": [...], "cloud": ..., "accelerators": {...} or null, "nodes": ...}. HOME is an
empty folder for SkyPilot's own files. Its catalog of accelerators, which it would download, is written there with the two that
the tasks name: whether a cloud has them today is not what is checked. Prints {"tasks": N} or ends with the first failure; exit
code 3: this SkyPilot is too old.
"""

import json
import os
import sys
from pathlib import Path


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, home = Path(sys.argv[1]), Path(sys.argv[2]).absolute()
    os.environ["HOME"] = str(home)
    os.environ["SKYPILOT_DISABLE_USAGE_COLLECTION"] = "1"
    import sky
    from sky.skylet import constants

    if not hasattr(constants, "CATALOG_SCHEMA_VERSION"):
        print(f"skypilot {sky.__version__} is too old: expected 0.14 or newer", file=sys.stderr)
        sys.exit(3)
    catalog = home / ".sky/catalogs" / constants.CATALOG_SCHEMA_VERSION / "common"
    catalog.mkdir(parents=True)
    clouds = "['Nebius', 'GCP', 'AWS', 'RunPod', 'Lambda', 'Kubernetes']"
    lines = [f'{name},"{clouds}"' for name in ("H100", "H200")]
    (catalog / "accelerators.csv").write_text("\n".join(["AcceleratorName,Clouds", *lines, ""]))

    from sky.client.cli import command as cli

    launch = cli.cli.commands["jobs"].commands["launch"]
    files = sorted(folder.glob("*.yaml"))
    for file in files:
        expected = json.loads(file.with_suffix(".json").read_text())
        try:
            task = sky.Task.from_yaml(str(file))
            task.validate()
            (resources,) = task.resources
            assert str(resources.cloud).lower() == expected["cloud"], resources.cloud
            assert resources.accelerators == expected["accelerators"], resources.accelerators
            assert (task.num_nodes or 1) == expected["nodes"], task.num_nodes
            assert resources.disk_size >= 100, resources.disk_size
            words = expected["command"]
            assert words[:3] == ["sky", "jobs", "launch"], words
            context = launch.make_context("launch", words[3:])
            assert context.params["name"] == task.name, (context.params["name"], task.name)
            assert context.params["yes"] and len(context.params["entrypoint"]) == 1, context.params
        except Exception as error:
            sys.exit(f"{file}: {type(error).__name__}: {error}\n{file.read_text()}")
    print(json.dumps({"tasks": len(files)}))


if __name__ == "__main__":
    main()
