"""Fuzz the decoder's C core under AddressSanitizer, then compare what was found to the reference.

    python -m ext.fuzz SECONDS [SEED]

Needs gcc (12 or later) alone. Builds into build/fuzz, seeds from tests/vectors, mutates guided by
coverage, keeps what reaches new code, replays those inputs through the reference and the compiled
decoder, and prints one closing line. Exit 1 on a crash or a difference.
"""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ext
from ext import reference
from ext.layout import Place

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fuzz"
CORPUS = BUILD / "corpus"
SAMPLE = 2_000  # kept inputs replayed through the reference, a few milliseconds each
MAX_FRAMES = 8
EDGES = (-(1 << 63), 1_760_000_000_000, 1_760_000_300_000, (1 << 63) - 1)
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def build() -> Path:
    """Compile target (sanitized, covered) and loop; return the program."""
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = [os.environ.get("CC", "gcc"), "-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror"]
    target, loop, program = BUILD / "target.o", BUILD / "loop.o", BUILD / "fuzz"
    covered = [*SANITIZE, "-O1", "-fsanitize-coverage=trace-pc"]
    subprocess.run([*compiler, *covered, "-c", HERE / "target.c", "-o", target], check=True)
    subprocess.run([*compiler, "-O2", "-c", HERE / "loop.c", "-o", loop], check=True)
    subprocess.run([*compiler, *SANITIZE, target, loop, "-o", program], check=True)
    return program


def seed() -> None:
    """Write each golden vector as an input, and all good ones as one stream."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    CORPUS.mkdir(parents=True)
    good = b""
    for path in sorted((ROOT / "tests" / "vectors").glob("v*/*.hex")):
        frame = bytes.fromhex(path.read_text())
        entry = len(frame).to_bytes(2, "little") + frame
        (CORPUS / path.stem).write_bytes(b"\0" + entry)
        good += b"" if path.stem.startswith("refused-") else entry
    (CORPUS / "all").write_bytes(b"\0" + good)


def frames_in(data: bytes) -> Iterator[bytes]:
    """Split an input as `target.c` does."""
    at = 1
    for _ in range(MAX_FRAMES):
        if at + 2 > len(data):
            return
        end = at + 2 + int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : end]
        at = end


def places_for(data: bytes, count: int) -> list[Place]:
    """Choose the places as `target.c` does."""
    choices = [data[0] >> at % 4 for at in range(count)]
    return [
        Place(5, 0 if choice & 1 else 9, EDGES[bool(choice & 2)], EDGES[2 if choice & 4 else 3])
        for choice in choices
    ]


def differences() -> tuple[int, list[str]]:
    """Replay kept inputs; return how many, and the names of those that decode differently."""
    paths = sorted(CORPUS.glob("found-*"))
    sample = paths[:: max(1, len(paths) // SAMPLE)]
    different = []
    for path in itertools.chain(sample, sorted(CORPUS.glob("[!f]*"))):
        data = path.read_bytes()
        frames = list(frames_in(data))
        places = places_for(data, len(frames))
        if ext.decode(frames, places) != reference.decode(frames, places):
            different.append(path.name)
    return len(sample), different


def main(arguments: list[str]) -> int:
    """Run; see the module."""
    if not 1 <= len(arguments) <= 2 or not all(text.isdigit() for text in arguments):
        sys.stderr.write("usage: python -m ext.fuzz SECONDS [SEED]\n")
        return 2
    if not ext.COMPILED:
        sys.stderr.write("the compiled decoder is not built: nothing to compare\n")
        return 2
    seconds, chance = arguments[0], arguments[1] if len(arguments) == 2 else "1"
    program = build()
    seed()
    done = subprocess.run(
        [program, seconds, chance, CORPUS], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.stderr.write(f"fuzz: CRASH; the input is {CORPUS / 'crash'}\n")
        return 1
    runs, edges, new, kept = (int(text) for text in done.stdout.split())
    compared, different = differences()
    sys.stdout.write(
        f"fuzz: {runs:,} executions in {seconds} s, {edges + new} edges ({new} new), "
        f"{kept} inputs kept, 0 crashes; {compared} compared to the reference, "
        f"{len(different)} different\n"
    )
    for name in different:
        sys.stderr.write(f"different: {CORPUS / name}\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
