"""`python -m ops.assets [FOLDER]`: put the pages' third-party files where the server looks."""

import argparse
import sys
from pathlib import Path

from ops.assets.fetch import DEFAULT_FOLDER, fetch
from ops.services.errors import ServicesError


def main(argv: list[str]) -> int:
    """Run the command; exit code 0 done, 1 failed (offline, or a package changed its files)."""
    parser = argparse.ArgumentParser(prog="python -m ops.assets", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    folder: Path = parser.parse_args(argv).folder
    try:
        for name in fetch(folder):
            print(f"  {folder / name}", file=sys.stderr)
    except ServicesError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
