"""What kiosks ask, in versions that are never edited, and which kiosks ask it when."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables import columns

questionnaires = sa.Table(
    "questionnaires",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    sa.Column("hash", sa.BigInteger, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("definition", JSONB, nullable=False),
    sa.Column(
        "ref",
        sa.Text,
        nullable=False,
        server_default=sa.text("('questionnaire-'::text || substr(md5((random())::text), 1, 8))"),
    ),
    sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.Column("content", sa.LargeBinary),
    columns.stamped("made_at"),
    columns.or_empty("made_by"),
    sa.Column("retired_at", columns.INSTANT),
)
publications = sa.Table(
    "publications",
    columns.metadata,
    columns.row_id(),
    columns.organisation(),
    columns.ref(),
    columns.row_of("questionnaire_id", "questionnaires"),
    columns.row_of("site_id", "sites"),
    columns.row_of("spot_id", "spots", nullable=True),
    sa.Column("from_day", sa.Date),
    sa.Column("until_day", sa.Date),
    sa.Column(
        "weekdays",
        sa.ARRAY(sa.SmallInteger),
        nullable=False,
        server_default=sa.text("'{}'::smallint[]"),
    ),
    sa.Column("opens", sa.SmallInteger),
    sa.Column("closes", sa.SmallInteger),
    columns.stamped("published_at"),
    sa.Column("ended_at", columns.INSTANT),
)
