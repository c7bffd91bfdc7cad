"""Build the compiled decoder.

NO_EXT=1 skips it (the device's agent does not need it); REQUIRE_EXT=1 makes a failure an error.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

NO_EXT = os.environ.get("NO_EXT") == "1"
REQUIRE_EXT = os.environ.get("REQUIRE_EXT") == "1"
SANITIZE = os.environ.get("SANITIZE_EXT") == "1"

if NO_EXT and REQUIRE_EXT:
    raise SystemExit("NO_EXT=1 and REQUIRE_EXT=1 contradict each other")


def extensions() -> list[Extension]:
    """The compiled modules, or none where they are not wanted or cannot be translated."""
    if NO_EXT:
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        if REQUIRE_EXT:
            raise
        return []
    flags = ["-O1", "-g", "-fsanitize=address"] if SANITIZE else ["-O3"]
    built: list[Extension] = cythonize(
        [
            Extension(
                "ext._decoder",
                ["ext/_decoder.pyx"],
                depends=sorted(map(str, Path("ext").glob("*.h"))),
                extra_compile_args=flags,
                extra_link_args=["-fsanitize=address"] if SANITIZE else [],
            )
        ],
        language_level=3,
        force=SANITIZE,
    )
    for extension in built:  # cythonize() drops `optional`
        extension.optional = not REQUIRE_EXT
    return built


setup(ext_modules=extensions())
