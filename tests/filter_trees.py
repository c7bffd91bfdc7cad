"""Filters of devices, as hypothesis draws them."""

import string
from datetime import datetime

from hypothesis import strategies as st

from server.fleet import filters
from server.fleet.filters import (
    FIELDS,
    NONE,
    OPS,
    Among,
    Compare,
    Filter,
    Not,
    Op,
    Sort,
    Value,
    value_of,
)


def _written(pattern: str, alphabet: str) -> st.SearchStrategy[str]:
    return st.from_regex(pattern, fullmatch=True, alphabet=string.digits + alphabet)


_ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_DAYS = st.datetimes(datetime(1990, 1, 2), datetime(2100, 1, 1))  # noqa: DTZ001
TEXTS: dict[Sort, st.SearchStrategy[str]] = {
    Sort.TEXT: st.text(_ANY, min_size=1, max_size=12),
    Sort.VERSION: _written(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}(-rc[0-9])?", ".-rc"),
    Sort.NUMBER: _written(r"-?[0-9]{1,4}(\.[0-9]{1,2})?", "-."),
    Sort.DURATION: _written(r"[0-9]{1,4}[smhd]", "smhd"),
    Sort.INSTANT: _DAYS.map(lambda at: at.isoformat() + "Z"),
}


def values(name: str) -> st.SearchStrategy[Value]:
    """Any value of a field."""
    field = FIELDS[name]
    texts = st.sampled_from(field.choices) if field.choices else TEXTS[field.sort]
    return texts.map(lambda text: value_of(field, text))


def leaves(name: str, value: st.SearchStrategy[Value]) -> st.SearchStrategy[Filter]:
    """Any comparison of a field with values."""
    ops, several = OPS[FIELDS[name].sort], st.lists(value, min_size=1, max_size=3)
    return st.one_of(
        st.builds(Compare, st.just(name), st.sampled_from(ops), value),
        st.sampled_from((Op.IS, Op.IS_NOT)).map(lambda op: Compare(name, op, NONE, none=True)),
        st.builds(Among, st.just(name), several.map(tuple), st.booleans()),
    )


def trees(leaf: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    """Any filter of such comparisons."""
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            inner.map(Not),
            st.lists(inner, min_size=2, max_size=3).map(filters.every),
            st.lists(inner, min_size=2, max_size=3).map(filters.either),
        ),
        max_leaves=8,
    )
