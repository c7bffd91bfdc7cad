"""What is stored, by kind: whom it is about, how long it is kept. Held to the schema by a test.

Every table belongs to exactly one kind; a new table fails the test until somebody has said here
what it holds about people. How long follows from what is really purged (`server.db.purge`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from server.db import purge


class About(StrEnum):
    """Whom rows may be about."""

    NOBODY = "nobody"
    VISITORS = "visitors"  # as numbers, or in words of their own that are masked
    STAFF = "staff"


@dataclass(frozen=True, slots=True)
class Kind:
    """Tables that hold the same kind of thing; pages name it by `key`."""

    key: str
    about: About
    tables: tuple[str, ...]

    @property
    def purged(self) -> tuple[str, ...]:
        """Those of its tables whose rows are deleted once they are over."""
        return tuple(table for table in self.tables if table in purge.OVER)


KINDS = (
    Kind(
        "counts",
        About.NOBODY,
        (
            *("readings", "rollup_15m", "rollup_hour", "rollup_day", "rollup_dirty"),
            *("rollup_stale", "masks", "gaps", "undated_frames", "quarantine", "findings"),
        ),
    ),
    Kind(
        "presses",
        About.NOBODY,
        (
            *("presses", "presses_15m", "presses_day", "responses_15m", "responses_day"),
            "responses_dirty",
        ),
    ),
    Kind("surveys", About.VISITORS, ("survey_answers", "survey_tokens")),
    Kind(
        "questions",
        About.NOBODY,
        (
            *("questionnaires", "publications", "surveys", "survey_rounds", "survey_offers"),
            *("touchpoints", "opinion_alerts", "alarm_settings", "alarm_watch"),
        ),
    ),
    Kind("actions", About.STAFF, ("actions",)),
    Kind("sales", About.NOBODY, ("transactions",)),
    Kind("rosters", About.STAFF, ("staff_shifts",)),
    Kind(
        "business",
        About.NOBODY,
        (
            *("campaigns", "campaign_sites", "exchange_rates", "kpi_targets", "experiments"),
            "experiment_pairs",
        ),
    ),
    Kind("recounts", About.STAFF, ("recounts", "recount_blocks")),
    Kind(
        "register",
        About.NOBODY,
        (
            *("organisations", "regions", "sites", "opening_hours", "opening_exceptions"),
            *("doors", "spots", "mountings", "calibrations", "segments", "segment_devices"),
        ),
    ),
    Kind(
        "devices",
        About.NOBODY,
        (
            *("devices", "assignments", "backfill_grants", "claims", "certificates", "boots"),
            *("closed_boots", "metric_names", "device_metrics", "unknown_devices", "authorities"),
            *("issuance_log", "trust_proofs", "admissions", "presences", "device_events"),
            *("settings_layers", "device_settings", "command_batches", "commands"),
            "command_files",
            *("health_checks", "judgements"),
        ),
    ),
    Kind(
        "people",
        About.STAFF,
        (
            *("users", "grants", "sessions", "one_time_links", "technician_claims", "vouchers"),
            *("digest_subscriptions", "digests"),
        ),
    ),
    Kind(
        "incidents",
        About.STAFF,
        (
            *("standings", "episodes", "incidents", "incident_decisions", "incident_comments"),
            *("health_rules", "health_windows", "health_contacts", "notices", "usual_visits"),
        ),
    ),
    Kind(
        "rollouts",
        About.STAFF,
        (
            *("releases", "bundles", "rollouts", "rollout_events", "waves", "executions"),
            *("execution_reports", "device_firmware", "freezes"),
        ),
    ),
    Kind("audit", About.STAFF, ("audit", "api_keys", "bi_logins")),
    Kind(
        "technical",
        About.NOBODY,
        (
            "phone_acts",
            "idempotency_keys",
            "changes",
            "webhooks",
            "deliveries",
            "dataset",
            "platform",
            "platform_unknown",
            "schema_compatibility",
        ),
    ),
)


def missing(tables: Mapping[str, object]) -> tuple[set[str], set[str]]:
    """Return which tables no kind has, and which a kind has that are not there."""
    told = {table for kind in KINDS for table in kind.tables}
    return set(tables) - told, told - set(tables)
