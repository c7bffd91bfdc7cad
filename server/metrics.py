"""Every metric of the server, in one list. Names: vestibule_<part>_<what>_<unit>."""

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# ingest: what arrived and what became of it
FRAMES_STORED = Counter("vestibule_ingest_frames_stored", "Frames committed for the first time")
FRAMES_DROPPED = Counter(
    "vestibule_ingest_frames_dropped",
    "Frames not stored: repeat, hole, topic, unknown_device, revoked, rate, header, kind, retained",
    ["why"],
)
FRAMES_QUARANTINED = Counter(
    "vestibule_ingest_frames_quarantined", "Frames set aside unread", ["reason"]
)
FRAMES_HELD = Counter("vestibule_ingest_frames_held", "Frames stored undated", ["why"])
READING_BYTES = Counter("vestibule_ingest_copy_bytes", "COPY bytes sent to the database")
RECEIPTS = Counter("vestibule_ingest_receipts", "Receipts sent")
HELLOS = Counter("vestibule_ingest_hellos", "Hellos answered")
FINDINGS = Counter("vestibule_ingest_findings", "What should not have been seen", ["finding"])
BATCH_FRAMES = Histogram(
    "vestibule_ingest_batch_frames", "Frames in a batch", buckets=(1, 4, 16, 64, 256, 1024, 4096)
)
BATCH_SECONDS = Histogram(
    "vestibule_ingest_batch_seconds", "From a batch's first look to its commit", buckets=_FAST
)
BATCH_RETRIES = Counter(
    "vestibule_ingest_batch_retries", "Batches tried again", ["why"]
)  # why: system, cursor, data
INGEST_STATE = Gauge(
    "vestibule_ingest_state", "1 for the state that ingest is in, else 0", ["state"]
)
INGEST_WAITING = Gauge("vestibule_ingest_waiting_frames", "Frames received and not yet committed")
BROKER_CONNECTIONS = Counter("vestibule_broker_connections", "Connections made to the broker")

# health: how devices are
PRESENCE_LATENESS = Histogram(
    "vestibule_health_presence_lateness_seconds",
    "From when a device's state could be known to when it stands in its row",
    buckets=_FAST,
)
PRESENCES = Gauge("vestibule_health_devices", "Devices by state of presence", ["state"])
PRESENCE_CHANGES = Counter(
    "vestibule_health_presence_changes", "Changes of devices' states", ["state"]
)
WATERMARK_LAG = Gauge(
    "vestibule_health_watermark_lag_seconds", "How long ago all that was said had been stored"
)
TURNS_BROKEN = Counter(
    "vestibule_turns_broken", "Turns of workers that a fault of our own ended; they are tried again"
)
CHECKS_BROKEN = Counter(
    "vestibule_health_checks_broken", "Checks of a site or device that were put off as they broke"
)
CONDITIONS_FIRED = Counter(
    "vestibule_health_conditions_fired", "Truth conditions that began to fire", ["condition"]
)
PLATFORM_UNKNOWN = Gauge(
    "vestibule_health_platform_unknown",
    "1 while nobody can tell how devices are, by cause",
    ["cause"],
)
CANARIES = Counter("vestibule_health_canaries", "Canaries that the broker took")
INCIDENTS = Gauge("vestibule_health_incidents", "Open incidents by severity", ["severity"])
NOTICES_LATE = Gauge(
    "vestibule_health_notices_late_seconds", "For how long the oldest mail that is due has waited"
)
NOTICES = Counter(
    "vestibule_health_notices", "Tries to hand mail in: sent, put_off, dead", ["outcome"]
)

# admission: who is thrown out of the broker and let in again
ADMISSION_SECONDS = Histogram(
    "vestibule_admission_seconds",
    "From an order to the broker's word that it is done",
    buckets=_FAST,
)
ADMISSIONS_WAITING = Gauge("vestibule_admission_waiting_orders", "Orders not yet at the broker")
DENIED_DEVICES = Gauge("vestibule_admission_denied_devices", "Devices on the deny-list")
RECONCILED = Counter(
    "vestibule_admission_reconciled", "Where the broker's list was not ours", ["what"]
)  # what: missing, weak, extra, role

# firmware: what devices may install
FIRMWARE_METADATA_LEFT = Gauge(
    "vestibule_firmware_metadata_left_seconds",
    "For how long the releases' metadata is good: root, targets, snapshot, timestamp",
    ["role"],
)
FIRMWARE_SIGNINGS_FAILED = Counter(
    "vestibule_firmware_signings_failed", "Times that the releases could not be signed anew"
)

# firmware: rollouts
ROLLOUT_TRANSITIONS = Counter(
    "vestibule_rollout_transitions", "Transitions of rollouts and waves", ["transition"]
)
ROLLOUTS_HALTED = Counter("vestibule_rollouts_halted", "Rollouts halted, by guard", ["guard"])
EXECUTIONS_OFFERED = Counter("vestibule_rollout_offers", "Devices that a rollout was offered to")
EXECUTIONS_ENDED = Counter("vestibule_rollout_ends", "Executions that ended, by how", ["state"])
ROLLOUTS_LATE = Gauge(
    "vestibule_rollouts_late_seconds", "For how long the rollout has been due that waits longest"
)
CONDUCTED = Histogram(
    "vestibule_rollout_turn_seconds", "One turn of the conductor at one rollout", buckets=_FAST
)

# firmware: what devices run, and what they fetch
UPDATE_REPORTS = Counter(
    "vestibule_firmware_reports",
    "Reports of devices: quiet (nothing to do), heard, stale (a nonce of before)",
    ["what"],
)
ASSIGNMENTS = Counter("vestibule_firmware_assignments", "Assignments signed for devices")
TRIALS = Counter("vestibule_firmware_trials_acknowledged", "Trials that devices were told of")
MISMATCHES = Counter(
    "vestibule_firmware_mismatches", "Devices that run something else than they had confirmed"
)
ARTIFACT_BYTES = Counter("vestibule_firmware_artifact_bytes", "Bytes of artifacts sent")
ARTIFACTS_PUT_OFF = Counter(
    "vestibule_firmware_artifacts_put_off", "Downloads told to come later by their site's cap"
)
ARTIFACTS_MISSING = Counter(
    "vestibule_firmware_artifacts_missing", "Downloads of published bytes that are not here"
)

# database
TRANSACTION_SECONDS = Histogram(
    "vestibule_database_transaction_seconds", "Named transactions", ["name"], buckets=_FAST
)
TRANSACTION_FAILURES = Counter(
    "vestibule_database_transaction_failures", "Transactions rolled back", ["name", "sqlstate"]
)

# derived rollups
DIRTY_ROWS = Gauge("vestibule_rollup_dirty_rows", "Changes that days and hours do not show yet")
DERIVE_SECONDS = Histogram(
    "vestibule_rollup_derive_seconds", "One pass of deriving hours and days", buckets=_FAST
)

# people
SIGN_INS = Counter(
    "vestibule_sign_ins", "Tries to sign in: entered, wrong, too_many, busy", ["outcome"]
)

# HTTP
HTTP_SECONDS = Histogram(
    "vestibule_http_request_seconds",
    "Requests by route and status class",
    ["route", "status"],
    buckets=_FAST,
)
