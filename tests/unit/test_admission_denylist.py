"""What the deny-list's answers mean, and where a list is not what it should be."""

from __future__ import annotations

import pytest

from server.admission import denylist
from server.admission.denylist import REVOKED_ROLE, REVOKED_RULES, Difference, compare


def entry(name: str, *roles: str, disabled: bool = True, groups: int = 0) -> dict[str, object]:
    return {
        "username": name,
        "disabled": disabled,
        "roles": [{"rolename": role} for role in roles],
        "groups": [{"groupname": "g"}] * groups,
    }


def answer(client: dict[str, object]) -> dict[str, object]:
    return {"command": "getClient", "data": {"client": client}}


@pytest.mark.parametrize(
    ("client", "whole"),
    [
        (entry("a", REVOKED_ROLE), True),
        (entry("a", REVOKED_ROLE, disabled=False), False),
        (entry("a"), False),
        (entry("a", REVOKED_ROLE, "svc-ingest"), False),
        (entry("a", REVOKED_ROLE, groups=1), False),
        ({"username": "a"}, False),
    ],
)
def test_only_who_is_disabled_and_has_the_revoked_role_alone_is_denied(
    client: dict[str, object], whole: bool
) -> None:
    assert denylist.clients([{"command": "createClient"}, answer(client)]) == {"a": whole}


def test_who_is_not_known_is_not_on_the_list_and_any_other_answer_is_an_error() -> None:
    unknown = {"command": "getClient", "error": "Client not found"}
    assert denylist.clients([unknown]) == {}
    with pytest.raises(ValueError, match="Internal error"):
        denylist.clients([{"command": "getClient", "error": "Internal error"}])
    with pytest.raises(ValueError, match="expected an object"):
        denylist.clients([{"command": "getClient", "data": []}])


def test_services_are_no_entries() -> None:
    rows = [entry("svc-control", "svc-control", disabled=False), entry("a", REVOKED_ROLE)]
    response = {"command": "listClients", "data": {"totalCount": 2, "clients": rows}}
    assert denylist.page(response) == ({"a": True}, 2)
    no_answers: list[dict[str, object]] = [
        {"error": "no"},
        {"data": {"clients": []}},
        {"data": {"totalCount": 1}},
    ]
    for broken in no_answers:
        with pytest.raises(ValueError, match="listClients"):
            denylist.page(broken)


def test_a_role_that_denies_less_is_not_the_revoked_one() -> None:
    def stands(rules: object) -> bool | None:
        return denylist.role_stands({"data": {"role": {"rolename": "revoked", "acls": rules}}})

    assert stands(list(reversed(REVOKED_RULES)))
    assert not stands([])
    assert not stands(list(REVOKED_RULES[:2]))
    assert not stands([{**rule, "allow": True} for rule in REVOKED_RULES])
    assert denylist.role_stands({"error": "Role not found"}) is None


def test_a_list_differs_by_what_is_missing_weak_and_extra() -> None:
    found = {"kept": True, "weak": False, "extra": True, "strange": False}
    difference = compare(found, {"kept", "weak", "missing"})
    assert difference == Difference(("missing",), ("weak",), ("extra", "strange"))
    assert difference
    assert not compare({"kept": True}, ["kept"])


def test_denying_ends_with_a_question_and_leaves_no_moment_without_an_entry() -> None:
    names = [(c["command"], c["username"]) for c in denylist.deny(["a", "b"])]
    assert names == [
        (command, name)
        for name in ("a", "b")
        for command in ("deleteClient", "createClient", "disableClient", "getClient")
    ]
