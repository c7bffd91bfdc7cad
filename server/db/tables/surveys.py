"""What visitors are asked on their own phones, by which token, and what they answered."""

from typing import Any

from sqlalchemy import ARRAY, BigInteger, Column, Integer, LargeBinary, Table, Text
from sqlalchemy.dialects.postgresql import JSONB, REAL

from server.db.tables.columns import INSTANT, metadata, organisation, ref, row_id, row_of


def _asked() -> list[Column[Any]]:
    """What was asked where, by which kiosk's code, in which round, and how the visitor came."""
    return [
        row_of("survey_id", "surveys"),
        row_of("site_id", "sites"),
        row_of("spot_id", "spots", nullable=True),
        row_of("round_id", "survey_rounds", nullable=True),
        *(Column(name, Text, nullable=False) for name in ("channel", "touchpoint", "delay")),
    ]


surveys = Table(
    "surveys",
    metadata,
    row_id(),
    organisation(),
    ref(),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("population", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("made_at", INSTANT, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("published_at", INSTANT),
    Column("closed_at", INSTANT),
)
survey_rounds = Table(
    "survey_rounds",
    metadata,
    row_id(),
    organisation(),
    ref(),
    row_of("survey_id", "surveys"),
    row_of("site_id", "sites"),
    Column("name", Text, nullable=False),
    Column("delay", Text, nullable=False),
    row_of("follows_id", "survey_rounds", nullable=True),
    Column("opened_at", INSTANT, nullable=False),
    Column("closed_at", INSTANT),
)
survey_tokens = Table(
    "survey_tokens",
    metadata,
    row_id(BigInteger),
    organisation(),
    *_asked(),
    Column("kept", LargeBinary, nullable=False),
    Column("kept_code", LargeBinary, nullable=False),
    Column("made_at", INSTANT, nullable=False),
    Column("expires_at", INSTANT, nullable=False),
    Column("used_at", INSTANT),
)
survey_offers = Table(
    "survey_offers",
    metadata,
    row_id(),
    organisation(),
    ref(),
    row_of("survey_id", "surveys"),
    row_of("site_id", "sites"),
    row_of("spot_id", "spots", nullable=True),
    Column("offered_at", INSTANT, nullable=False),
    Column("ended_at", INSTANT),
)
survey_answers = Table(
    "survey_answers",
    metadata,
    row_id(BigInteger),
    organisation(),
    *_asked(),
    Column("once", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("seen", ARRAY(Text), nullable=False),
    Column("answers", JSONB, nullable=False),
    Column("words", Text, nullable=False),
    Column("locale", Text, nullable=False),
    Column("seconds", REAL),
    Column("answered_at", INSTANT, nullable=False),
)
