"""What kiosks ask, in versions that are never edited, and which kiosks ask it when."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Date,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from server.db.tables.columns import (
    INSTANT,
    metadata,
    or_empty,
    organisation,
    ref,
    row_id,
    row_of,
    stamped,
)

questionnaires = Table(
    "questionnaires",
    metadata,
    row_id(),
    organisation(),
    Column("hash", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("definition", JSONB, nullable=False),
    Column(
        "ref",
        Text,
        nullable=False,
        server_default=text("('questionnaire-'::text || substr(md5((random())::text), 1, 8))"),
    ),
    Column("version", Integer, nullable=False, server_default=text("1")),
    Column("content", LargeBinary),
    stamped("made_at"),
    or_empty("made_by"),
    Column("retired_at", INSTANT),
)
publications = Table(
    "publications",
    metadata,
    row_id(),
    organisation(),
    ref(),
    row_of("questionnaire_id", "questionnaires"),
    row_of("site_id", "sites"),
    row_of("spot_id", "spots", nullable=True),
    Column("from_day", Date),
    Column("until_day", Date),
    Column(
        "weekdays", ARRAY(SmallInteger), nullable=False, server_default=text("'{}'::smallint[]")
    ),
    Column("opens", SmallInteger),
    Column("closes", SmallInteger),
    stamped("published_at"),
    Column("ended_at", INSTANT),
)
