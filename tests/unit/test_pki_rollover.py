"""The steps of a rollover: what trusts what at each, and what a power cut in between leaves."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from server.pki import generations as rules
from server.pki import rollover
from server.pki.authority import Authority, AuthorityError
from server.pki.files import Files, write
from server.pki.generations import Generations, Kind, RolloverError, State
from server.pki.revocations import listed_serials, split_crls

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PASSWORD = b"a long enough password"


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "pki", now=NOW, password=PASSWORD)
    authority.ensure_services(now=NOW)
    write(tmp_path / "pki/device.crl", authority.crl([7], now=NOW))
    return tmp_path / "pki"


def begin(pki: Path) -> Authority:
    return rollover.begin_rollover(
        Files.read(pki), keys=pki / "offline", password=PASSWORD, now=NOW
    )


def switch(pki: Path) -> Authority:
    return rollover.switch(Files.read(pki), now=NOW)


def finish(pki: Path) -> Authority:
    return rollover.finish(Files.read(pki), now=NOW)


def states(pki: Path) -> dict[str, State]:
    return {g.name: g.state for g in Files.read(pki).generations}


def root(pki: Path, name: str) -> x509.Certificate:
    return Files.read(pki).certificate(name)


def device(authority: Authority) -> list[x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    chain = authority.issue_device(csr, device="door-4f9a21", now=NOW).chain_pem
    return x509.load_pem_x509_certificates(chain)


def trusts_broker(pki: Path, *roots: x509.Certificate) -> bool:
    """Whether a device that trusts these roots accepts what the broker shows."""
    leaf, *between = x509.load_pem_x509_certificates((pki / "broker.pem").read_bytes())
    policy = PolicyBuilder().store(Store(list(roots))).time(NOW + timedelta(minutes=1))
    try:
        policy.build_server_verifier(x509.DNSName("localhost")).verify(leaf, between)
    except VerificationError:
        return False
    return True


def test_the_roots_keys_are_encrypted_and_apart(pki: Path) -> None:
    keys = sorted((pki / "offline").iterdir())
    assert [key.name for key in keys] == ["root-1.key", "root-2.key"]
    for key in keys:
        assert key.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.parametrize("password", [b"a wrong but long password", b""])
def test_without_the_password_nothing_begins(pki: Path, password: bytes) -> None:
    before = states(pki)
    with pytest.raises(AuthorityError):
        rollover.begin_rollover(Files.read(pki), keys=pki / "offline", password=password, now=NOW)
    assert states(pki) == before


def test_a_short_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="16"):
        Authority.create(tmp_path / "pki", now=NOW, password=b"too short")
    assert not (tmp_path / "pki").exists()


def test_a_fleet_moves_to_the_next_root_and_both_are_trusted_in_between(pki: Path) -> None:
    one, two = root(pki, "root-1"), root(pki, "root-2")
    old = device(Authority.load(pki))

    begin(pki)
    assert device(Authority.load(pki))[1] == old[1], "nothing new signs before the switch"
    assert trusts_broker(pki, one)
    assert len(x509.load_pem_x509_certificates((pki / "device-anchor.pem").read_bytes())) == 2
    assert len(x509.load_pem_x509_certificates((pki / "bundle.pem").read_bytes())) == 3

    after = switch(pki)
    assert device(after)[1] != old[1]
    assert trusts_broker(pki, two)
    assert trusts_broker(pki, one), "who knows only the old root follows the bridge"
    assert (pki / "root.pem").read_bytes() == two.public_bytes(Encoding.PEM)

    finish(pki)
    assert trusts_broker(pki, two)
    assert not trusts_broker(pki, one)
    assert len(x509.load_pem_x509_certificates((pki / "device-anchor.pem").read_bytes())) == 1
    bundle = x509.load_pem_x509_certificates((pki / "bundle.pem").read_bytes())
    assert bundle == [two, root(pki, "root-3")]
    assert not (pki / "authorities/device-1.key").exists()
    assert states(pki) == {
        "root-1": State.GONE,
        "device-1": State.GONE,
        "service-1": State.GONE,
        "root-2": State.SIGNING,
        "root-3": State.TRUSTED,
        "device-2": State.SIGNING,
        "service-2": State.SIGNING,
    }


def test_every_trusted_authority_has_a_revocation_list_with_every_serial(pki: Path) -> None:
    for step, lists in ((begin, 2), (switch, 2), (finish, 1)):
        authority = step(pki)
        content = (pki / "device.crl").read_bytes()
        assert len(split_crls(content)) == lists
        assert listed_serials(content) == {7}
        authority.verify_crl(content, [7], now=NOW)


def test_the_root_after_the_next_can_follow_in_turn(pki: Path) -> None:
    for _ in range(3):
        begin(pki)
        switch(pki)
        finish(pki)
    assert trusts_broker(pki, root(pki, "root-4"))
    assert states(pki)["root-5"] is State.TRUSTED


def test_one_authority_changes_below_the_same_root(pki: Path) -> None:
    files = Files.read(pki)
    rollover.begin_authority(files, Kind.DEVICE, keys=pki / "offline", password=PASSWORD, now=NOW)
    assert not rules.moves_root(Files.read(pki).generations)
    switch(pki)
    assert states(pki) == {
        "root-1": State.SIGNING,
        "root-2": State.TRUSTED,
        "device-1": State.LEAVING,
        "service-1": State.SIGNING,
        "device-2": State.SIGNING,
    }
    with pytest.raises(RolloverError, match="still leaving"):
        begin(pki)


def test_a_running_server_signs_with_the_new_authority_at_once(pki: Path) -> None:
    running = Authority.load(pki)
    assert running.current() is running
    begin(pki)
    switch(pki)
    assert device(running.current())[1] == root(pki, "device-2")


def test_our_services_keep_their_names(pki: Path) -> None:
    Authority.load(pki).issue_service(
        "broker", dns=["localhost", "mqtt.example.org"], ips=["192.0.2.7"], server=True, now=NOW
    )
    begin(pki)
    switch(pki)
    leaf = x509.load_pem_x509_certificate((pki / "broker.pem").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "mqtt.example.org"]
    assert str(names.get_values_for_type(x509.IPAddress)[0]) == "192.0.2.7"


class PowerCutError(Exception):
    """Here the power went."""


def test_a_power_cut_at_any_write_leaves_a_fleet_that_works_and_a_step_to_repeat(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (begin, switch, finish):
        for at in range(100):
            with monkeypatch.context() as patched:
                if not _cut(patched, pki, step, at):
                    break  # it ended before the cut
            Files.read(pki).derive()  # as at each start
            works(pki)
        else:
            raise AssertionError("never ended")
        works(pki)
    assert states(pki)["root-2"] is State.SIGNING


def _cut(patched: pytest.MonkeyPatch, pki: Path, step: object, at: int) -> bool:
    """Run a step until its write number `at`; returns whether the power went."""
    left = at

    def counted(path: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise PowerCutError
        left -= 1
        return replace(path, target)

    replace = Path.replace
    patched.setattr(Path, "replace", counted)
    try:
        step(pki)  # type: ignore[operator]
    except PowerCutError:
        return True
    except RolloverError:
        return False  # the list was written before the cut; only what follows was left
    return False


def works(pki: Path) -> None:
    """The authority opens, signs, revokes, and the broker can be trusted by a root in force."""
    authority = Authority.load(pki)
    authority.ensure_services(now=NOW)
    authority.refresh_crl(now=NOW)
    assert authority.listed() == {7}
    bundle = x509.load_pem_x509_certificates((pki / "bundle.pem").read_bytes())
    assert trusts_broker(pki, *bundle)
    anchors = x509.load_pem_x509_certificates((pki / "device-anchor.pem").read_bytes())
    assert device(authority)[1].public_key() in [anchor.public_key() for anchor in anchors]


@given(steps=st.lists(st.sampled_from(["rollover", "device", "service", "switch", "finish"])))
def test_in_any_order_of_steps_one_of_each_kind_signs_and_two_roots_are_trusted(
    steps: list[str],
) -> None:
    generations = rules.first()
    for step in steps:
        try:
            generations = _step(generations, step)
        except RolloverError:
            continue
        present = rules.signing(generations, Kind.ROOT)
        waiting = rules.next_root(generations)
        assert waiting.number > present.number
        for kind in (Kind.DEVICE, Kind.SERVICE):
            signing = rules.signing(generations, kind)
            assert signing.root == present.name
            assert len(rules.of(generations, kind)) <= 2
        assert len(rules.of(generations, Kind.ROOT)) <= 3
        assert len({g.name for g in generations}) == len(generations)


def _step(generations: Generations, step: str) -> Generations:
    match step:
        case "rollover":
            return rules.with_rollover(generations)
        case "switch":
            return rules.switched(generations)
        case "finish":
            return rules.finished(generations)
        case kind:
            return rules.with_authority(generations, Kind(kind))
