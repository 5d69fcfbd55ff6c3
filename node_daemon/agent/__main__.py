"""Start the agent, as `python3 -m node_daemon.agent` or by the path of its folder: `python3 -I -S FOLDER`."""

import gc
import importlib
import importlib.util
import os
import sys

NAME = "magrathea_agent"  # of the package when it is run by its path, whatever the folder is called


def as_package(folder: str) -> str:
    """Make the folder a package from which nothing else is imported. Returns the package's name."""
    place = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location(NAME, place, submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != folder]
    return NAME


if __name__ == "__main__":
    gc.disable()  # imports make hardly any garbage, and collecting it takes a tenth of the start
    name = __package__ or as_package(os.path.dirname(os.path.abspath(__file__)))
    sys.exit(importlib.import_module(name + ".start").main())
