"""What roots do: make themselves, their successor's bridge, and the authorities below them."""

from datetime import datetime
from pathlib import Path

from server.pki import profile
from server.pki.files import AuthorityError, Files, key_pem, logged, pem, write
from server.pki.signer import FileSigner, Signer, sign_with

LEAST_PASSWORD = 16  # PKCS#8 as OpenSSL writes it stretches little: the password must be long


def new_root(
    files: Files,
    name: str,
    *,
    keys: Path | None,
    password: bytes | None,
    now: datetime,
    bridge_from: Signer | None = None,
) -> FileSigner:
    """Make a root; its key goes to the folder `keys` under the password, or nowhere.

    `bridge_from`: the root before, which signs it too, for whoever trusts only that one.
    """
    if keys is not None and len(password or b"") < LEAST_PASSWORD:
        raise AuthorityError(f"the roots' password needs {LEAST_PASSWORD} characters at least")
    key, serial, title = profile.new_key(), profile.new_serial(), _title(name)
    with logged(files.directory, serial=serial, subject=name, authority=name, now=now):
        certificate = profile.self_signed(
            title,
            key=key.public_key(),
            sign=lambda content: sign_with(key, content),
            path_length=2,  # the next root's bridge, and an authority below that
            now=now,
            life=profile.ROOT_LIFE,
            serial=serial,
        )
    if keys is not None:
        keys.mkdir(mode=0o700, exist_ok=True)
        write(keys / f"{name}.key", key_pem(key, password=password), mode=0o600)
    if bridge_from is not None:
        _bridge(files, name, FileSigner(certificate, key), before=bridge_from, now=now)
    write(files.path(f"{name}.pem"), pem(certificate))
    return FileSigner(certificate, key)


def new_authority(files: Files, name: str, *, root: Signer, now: datetime) -> None:
    """Make an authority below a root, with its anchor; its key stays here."""
    key, serial = profile.new_key(), profile.new_serial()
    root_name = root.certificate.subject.rfc4514_string()
    with logged(files.directory, serial=serial, subject=name, authority=root_name, now=now):
        certificate = profile.signing_authority(
            _title(name), key=key.public_key(), root=root, now=now, serial=serial
        )
    serial = profile.new_serial()
    with logged(files.directory, serial=serial, subject=name, authority=name, now=now):
        anchor = profile.self_signed(
            _title(name),
            key=key.public_key(),
            sign=lambda content: sign_with(key, content),
            path_length=0,
            now=now,
            life=profile.CA_LIFE,
            serial=serial,
        )
    write(files.path(f"{name}.key"), key_pem(key), mode=0o600)
    write(files.path(f"{name}.anchor.pem"), pem(anchor))
    write(files.path(f"{name}.pem"), pem(certificate))


def _bridge(files: Files, name: str, root: Signer, *, before: Signer, now: datetime) -> None:
    serial = profile.new_serial()
    by = before.certificate.subject.rfc4514_string()
    with logged(files.directory, serial=serial, subject=name, authority=by, now=now):
        bridge = profile.signing_authority(
            _title(name),
            key=profile.key_of(root),
            root=before,
            now=now,
            serial=serial,
            path_length=1,
            life=profile.ROOT_LIFE,
        )
    write(files.path(f"{name}.cross.pem"), pem(bridge))


def _title(name: str) -> str:
    """Return the subject's common name: `device-2` is `Vestibule device authority 2`."""
    kind, _, number = name.partition("-")
    return f"Vestibule {kind if kind == 'root' else f'{kind} authority'} {number}"
