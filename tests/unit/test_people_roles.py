"""Roles and scopes: who may what, where."""

from hypothesis import given
from hypothesis import strategies as st

from server.people.roles import EVERYWHERE, MAY, Grant, Permission, Place, Role, may, scopes

IDS = st.one_of(st.none(), st.integers(1, 3))
PLACES = st.builds(Place, st.integers(1, 3), IDS, IDS)
ROLES = st.sampled_from(list(Role))


def test_every_role_is_in_the_table_and_only_an_administrator_has_all() -> None:
    assert set(MAY) == set(Role)
    assert [role for role in Role if MAY[role] == frozenset(Permission)] == [Role.ADMINISTRATOR]


@given(st.lists(st.builds(Grant, ROLES, st.integers(1, 3), IDS, IDS)), PLACES)
def test_no_grant_reaches_another_organisation_region_or_site(
    grants: list[Grant], place: Place
) -> None:
    for permission in Permission:
        if may(grants, permission, place):
            assert any(
                permission in MAY[g.role]
                and g.organisation == place.organisation
                and g.region in (None, place.region)
                and g.site in (None, place.site)
                for g in grants
            )
        assert not may(grants, permission, EVERYWHERE)


@given(ROLES, PLACES)
def test_a_grant_over_everything_covers_every_place(role: Role, place: Place) -> None:
    grants = [Grant(role)]
    for permission in Permission:
        assert may(grants, permission, place) == (permission in MAY[role])
        assert scopes(grants, permission) == ([EVERYWHERE] if permission in MAY[role] else [])


def test_a_site_in_a_region_is_covered_by_its_region() -> None:
    grants = [Grant(Role.STORE_MANAGER, 1, 2)]
    assert may(grants, Permission.READ_NUMBERS, Place(1, 2, 3))
    assert not may(grants, Permission.READ_NUMBERS, Place(1, None, 3))
    assert not may(grants, Permission.READ_NUMBERS, Place(1))
    assert scopes(grants, Permission.READ_NUMBERS) == [Place(1, 2)]


def test_who_answers_for_a_shop_or_its_numbers_acts_on_feedback_and_no_one_else() -> None:
    acting = {role for role in Role if Permission.ACT_ON_FEEDBACK in MAY[role]}
    assert acting == {Role.ADMINISTRATOR, Role.ANALYST, Role.STORE_MANAGER}
    manager = [Grant(Role.STORE_MANAGER, 1, None, 3)]
    assert may(manager, Permission.ACT_ON_FEEDBACK, Place(1, 2, 3))
    assert not may(manager, Permission.ACT_ON_FEEDBACK, Place(1, 2, 4))
