"""What visitors are asked on their own phones, by which token, and what they answered."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, REAL

from server.db.tables import columns


def _asked() -> list[sa.Column[Any]]:
    """What was asked where, by which kiosk's code, in which round, and how the visitor came."""
    return [
        columns.row_of("survey_id", "surveys"),
        columns.row_of("site_id", "sites"),
        columns.row_of("spot_id", "spots", nullable=True),
        columns.row_of("round_id", "survey_rounds", nullable=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("channel", "touchpoint", "delay")),
    ]


surveys = sa.Table(
    "surveys",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("population", sa.Text, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("made_at", columns.INSTANT, nullable=False),
    sa.Column("made_by", sa.Text, nullable=False),
    sa.Column("published_at", columns.INSTANT),
    sa.Column("closed_at", columns.INSTANT),
)
survey_rounds = sa.Table(
    "survey_rounds",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    columns.row_of("survey_id", "surveys"),
    columns.row_of("site_id", "sites"),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("delay", sa.Text, nullable=False),
    columns.row_of("follows_id", "survey_rounds", nullable=True),
    sa.Column("opened_at", columns.INSTANT, nullable=False),
    sa.Column("closed_at", columns.INSTANT),
)
survey_tokens = sa.Table(
    "survey_tokens",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    *_asked(),
    sa.Column("kept", sa.LargeBinary, nullable=False),
    sa.Column("kept_code", sa.LargeBinary, nullable=False),
    sa.Column("made_at", columns.INSTANT, nullable=False),
    sa.Column("expires_at", columns.INSTANT, nullable=False),
    sa.Column("used_at", columns.INSTANT),
)
survey_offers = sa.Table(
    "survey_offers",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    columns.row_of("survey_id", "surveys"),
    columns.row_of("site_id", "sites"),
    columns.row_of("spot_id", "spots", nullable=True),
    sa.Column("offered_at", columns.INSTANT, nullable=False),
    sa.Column("ended_at", columns.INSTANT),
)
survey_answers = sa.Table(
    "survey_answers",
    columns.metadata,
    columns.row_id(sa.BigInteger),
    columns.organisation(),
    *_asked(),
    sa.Column("once", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("seen", sa.ARRAY(sa.Text), nullable=False),
    sa.Column("answers", JSONB, nullable=False),
    sa.Column("words", sa.Text, nullable=False),
    sa.Column("locale", sa.Text, nullable=False),
    sa.Column("seconds", REAL),
    sa.Column("answered_at", columns.INSTANT, nullable=False),
)
