"""Stop this directory's services and delete what they kept: `make clean`."""

import shutil
from pathlib import Path

from ops.deployment import home
from ops.services.stack import Stack


def main() -> None:
    """Remove every stack below the home directory, then the directory itself."""
    root = home()
    for endpoints in [*root.glob("endpoints.json"), *root.glob("*/endpoints.json")]:
        Stack(Path(endpoints).parent).remove()
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
