"""Move the fleet to new authorities, or to the next root: begin, switch, finish.

Each writes its files first and the list last, in one replacement: a crash leaves what was before,
and repeating the step is safe. Begin and finish change what the broker trusts, so each is followed
by an installation there; a switch only changes who signs, and what our services show.
"""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from server.pki import generations as rules
from server.pki.authority import Authority
from server.pki.files import Files, write
from server.pki.generations import Kind
from server.pki.roots import new_authority, new_root


def begin_rollover(files: Files, *, keys: Path, password: bytes, now: datetime) -> Authority:
    """Make authorities below the next root, and the root after it. Raises AuthorityError.

    `keys` is the folder with the next root's key; the new root's key is written there.
    """
    after = rules.with_rollover(files.generations)
    made = after[len(files.generations) :]
    root = files.root_signer(rules.next_root(files.generations).name, keys=keys, password=password)
    for generation in made:
        if generation.kind is Kind.ROOT:
            new_root(
                files, generation.name, keys=keys, password=password, now=now, bridge_from=root
            )
        else:
            new_authority(files, generation.name, root=root, now=now)
    return _changed(files, after, now=now)


def begin_authority(
    files: Files, kind: Kind, *, keys: Path, password: bytes, now: datetime
) -> Authority:
    """Make a further authority of a kind below the present root. Raises AuthorityError."""
    after = rules.with_authority(files.generations, kind)
    root = rules.signing(files.generations, Kind.ROOT).name
    signer = files.root_signer(root, keys=keys, password=password)
    new_authority(files, after[-1].name, root=signer, now=now)
    return _changed(files, after, now=now)


def switch(files: Files, *, now: datetime) -> Authority:
    """Let what was begun sign, and give our services certificates of it."""
    changed = _changed(files, rules.switched(files.generations), now=now)
    changed.ensure_services(now=now)
    return changed


def finish(files: Files, *, now: datetime) -> Authority:
    """Trust no longer what was leaving; its key is deleted."""
    changed = _changed(files, rules.finished(files.generations), now=now)
    changed.ensure_services(now=now)
    return changed


def _changed(files: Files, after: rules.Generations, *, now: datetime) -> Authority:
    """Write the list and what follows from it; the revocation list names every authority first."""
    serials = Authority(files).listed()
    coming = Authority(replace(files, generations=after))
    write(files.directory / "device.crl", coming.crl(serials, now=now))
    files.write_list(after).derive()
    return Authority.load(files.directory)
