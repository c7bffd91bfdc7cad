"""What people sign: packed alike, said in words that are true, and kept from one alone."""

import os
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ops import archive
from ops.drafts import Folder
from protocol.release import Release
from server.errors import ConflictError, NotFoundError, RefusedError
from server.firmware.keys import KeyFileError, make_key, read_public, read_signer

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RELEASE = Release("agent", "1.2.0", "1.0.0", None, ("DC2",), "Counts dogs no more")


class People:
    """Anna and Bo and their folder."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.folder = Folder(top / "approvals")

    def public(self, name: str) -> Any:
        path = self.top / f"{name}.pem"
        if not path.exists():
            make_key(path, password=None)
        return read_public(path.with_suffix(".pub"))

    def begin(self, threshold: int = 2, root: tuple[str, ...] = ("anna", "bo", "cleo")) -> None:
        self.folder.begin(
            root=[self.public(name) for name in root],
            targets=[self.public(name) for name in ("anna", "bo")],
            snapshot=self.public("snapshot"),
            timestamp=self.public("timestamp"),
            threshold=threshold,
            now=NOW,
        )

    def sign(self, *names: str) -> None:
        for name in names:
            drafts = self.folder.to_sign(self.public(name).keyid)
            assert drafts
            self.folder.sign(drafts, read_signer(self.top / f"{name}.pem", password=None))

    def build(self, release: Release = RELEASE) -> Path:
        for package in ("agent", "protocol"):
            (self.top / "tree" / package).mkdir(parents=True, exist_ok=True)
            (self.top / "tree" / package / "__init__.py").write_text("")
        out = self.top / f"{release.version}.tar"
        tree = self.top / "tree"
        archive.build(tree, out, component=release.component, version=release.version)
        return out


@pytest.fixture
def people(tmp_path: Path) -> People:
    made = People(tmp_path)
    made.begin()
    made.sign("anna", "bo")
    return made


# -- an archive ----------------------------------------------------------------------------------


def tree(top: Path, *, again: bool = False) -> Path:
    names = ["agent/__init__.py", "agent/screen/page.html", "protocol/frame.py"]
    for name in reversed(names) if again else names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
        path.chmod(0o755 if again else 0o600)
        os.utime(path, (1, 1) if again else None)
    for junk in ("agent/__pycache__/x.pyc", "agent/.DS_Store", "agent/fast.so", "server/secret.py"):
        (top / junk).parent.mkdir(parents=True, exist_ok=True)
        (top / junk).write_text("junk")
    return top


def test_the_same_files_make_the_same_bytes_whoever_builds_them(tmp_path: Path) -> None:
    made = [
        archive.build(
            tree(tmp_path / name, again=name == "two"),
            tmp_path / f"{name}.tar",
            component="agent",
            version="1.2.0",
        )
        for name in ("one", "two")
    ]
    assert made[0] == made[1]
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        members = tar.getmembers()
    assert [each.name for each in members] == [
        *("release.json", "agent/__init__.py", "agent/screen/page.html", "protocol/frame.py")
    ]
    assert {(each.mtime, each.uid, each.uname, each.mode) for each in members} == {
        (0, 0, "", 0o644)
    }


def test_what_is_no_tree_and_what_is_no_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is no folder"):
        archive.build(tmp_path, tmp_path / "x.tar", component="agent", version="1.2.0")
    top = tree(tmp_path / "tree")
    (top / "agent" / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(RefusedError, match="files alone"):
        archive.build(top, tmp_path / "x.tar", component="agent", version="1.2.0")
    plain = tmp_path / "plain.tar"
    with tarfile.open(plain, "w") as tar:
        tar.add(top / "agent" / "__init__.py", "agent/__init__.py")
    for content in (b"", b"junk" * 500, plain.read_bytes()):
        plain.write_bytes(content)
        with pytest.raises(RefusedError, match="was not made by"):
            archive.inspect(plain)


# -- keys ----------------------------------------------------------------------------------------


def test_a_key_opens_by_its_password_alone_and_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "anna.pem"
    public = make_key(path, password=b"a password that is long")
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    assert read_signer(path, password=b"a password that is long").public_key.keyid == public.keyid
    for password in (None, b"another"):
        with pytest.raises(KeyFileError):
            read_signer(path, password=password)
    kept = path.read_bytes()
    with pytest.raises(KeyFileError, match="new file"):
        make_key(path, password=None)
    assert path.read_bytes() == kept
    with pytest.raises(KeyFileError, match="no public key"):
        read_public(path)


# -- the folder ----------------------------------------------------------------------------------


def test_a_draft_that_is_changed_loses_its_signatures(people: People) -> None:
    people.folder.add(people.build(), RELEASE, now=NOW)
    people.sign("anna")
    assert people.folder.standings()[1].signed == ("anna",)
    other = Release("agent", "1.3.0", "1.0.0", None, ("DC2",))
    people.folder.add(people.build(other), other, now=NOW)
    standing = people.folder.standings()[1]
    assert (standing.version, standing.signed, standing.missing) == (2, (), 2)
    people.sign("anna", "bo")
    assert [each.release.version for each in people.folder.approved()] == ["1.2.0", "1.3.0"]
    with pytest.raises(ConflictError):
        people.folder.add(people.build(), RELEASE, now=NOW)


def test_a_file_that_is_not_what_the_draft_says_is_not_signed(people: People) -> None:
    with pytest.raises(RefusedError, match="not agent"):
        people.folder.add(
            people.build(), Release("agent", "1.2.1", "1.0.0", None, ("DC2",)), now=NOW
        )
    target = people.folder.add(people.build(), RELEASE, now=NOW)
    kept = people.folder.artifact(target.sha256)
    assert kept is not None
    kept.write_bytes(kept.read_bytes()[:-1] + b"\1")
    with pytest.raises(RefusedError, match="not what the draft says"):
        people.sign("anna")
    kept.unlink()
    assert "ITS BYTES ARE NOT HERE" in "\n".join(people.folder.words(people.folder.targets()))
    people.sign("anna")


def test_whoever_names_himself_in_a_draft_hides_nothing_from_who_signs_next(
    people: People,
) -> None:
    """An insider drafts a root that trusts him alone, and approves by it what he wants."""
    evil = Release("agent", "6.6.6", "6.6.6", None, ("DC2",))
    people.folder.rotate("targets", add=[], remove=["bo"], threshold=1, now=NOW)
    people.folder.add(people.build(evil), evil, now=NOW)
    people.sign("anna")  # by her root's draft she is enough
    good = Release("agent", "1.3.0", "1.0.0", None, ("DC2",))
    people.folder.add(people.build(good), good, now=NOW)
    said = "\n".join(people.folder.words(people.folder.targets()))
    assert "APPROVE agent 6.6.6" in said
    assert "APPROVE agent 1.3.0" in said
    assert people.folder.approved() == ()


def test_a_key_that_was_put_under_anothers_id_is_found_before_anybody_signs(
    people: People,
) -> None:
    """An insider edits the draft: his key where Bo's was, so that nothing seems to change."""
    people.folder.renew(now=NOW)
    draft = people.folder.metadata / "2.root.json"
    mine, bos = people.public("mallory"), people.public("bo")
    kept = draft.read_text()
    for was, now in (
        (bos.keyval["public"], mine.keyval["public"]),
        (f'"{bos.keyid}":', f'"{"ab" * 32}":'),
        ('"scheme": "ed25519"', '"scheme": "ed25519ph"'),
        ('"consistent_snapshot": true', '"consistent_snapshot": false'),
        (bos.keyval["public"], "zz"),
    ):
        text = kept.replace(was, now).replace(was.replace(": ", ":"), now.replace(": ", ":"))
        assert text != kept
        draft.write_text(text)
        with pytest.raises((KeyFileError, RefusedError)):
            people.folder.to_sign(people.public("anna").keyid)
    draft.write_text(kept)
    people.sign("anna")


def test_words_say_what_cannot_be_undone(people: People) -> None:
    people.folder.add(people.build(), RELEASE, now=NOW)
    people.sign("anna", "bo")
    raised = Release("agent", "1.3.0", "1.2.1", "1.2.0", ("DC2", "DC3"))
    people.folder.add(people.build(raised), raised, now=NOW)
    said = "\n".join(people.folder.words(people.folder.targets()))
    assert "RAISES THE FLOOR from 1.0.0 to 1.2.1" in said
    assert "cannot be reversed below 1.2.1" in said
    assert "from 1.2.0 on" in said
    people.folder.remove("agent", "1.2.0", now=NOW)
    assert "WITHDRAW agent 1.2.0" in "\n".join(people.folder.words(people.folder.targets()))
    with pytest.raises(NotFoundError):
        people.folder.remove("agent", "1.2.0", now=NOW)


def test_releases_are_signed_anew_where_too_few_who_signed_are_left(people: People) -> None:
    people.folder.add(people.build(), RELEASE, now=NOW)
    people.sign("anna", "bo")
    dora = people.public("dora")
    people.folder.rotate("targets", add=[dora], remove=["bo"], threshold=None, now=NOW)
    root, targets = people.folder.standings()
    assert (root.version, root.missing) == (2, 2)
    assert (targets.version, targets.missing) == (3, 2)
    assert [each.release.version for each in people.folder.approved()] == ["1.2.0"]
    people.sign("anna", "cleo", "dora")
    assert all(each.complete for each in people.folder.standings())
    with pytest.raises(NotFoundError, match="no one key"):
        people.folder.rotate("targets", add=[], remove=["bo"], threshold=None, now=NOW)


def test_keys_that_would_lock_everybody_out_or_let_the_server_approve_are_refused(
    tmp_path: Path,
) -> None:
    people = People(tmp_path)
    with pytest.raises(RefusedError, match="4 of 3"):
        people.begin(threshold=4)
    with pytest.raises(RefusedError, match="approve nothing"):
        people.begin(root=("anna", "bo", "snapshot"))
    people.begin()
    with pytest.raises(ConflictError):
        people.begin()
    with pytest.raises(RefusedError, match="two new keys"):
        people.folder.rotate("online", add=[], remove=[], threshold=None, now=NOW)
    with pytest.raises(NotFoundError, match="init"):
        Folder(tmp_path / "elsewhere").targets()
