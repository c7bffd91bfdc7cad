"""The update machine's words: its stages, what it has done, what can happen, what is journalled."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from protocol.assignment import Assignment
from protocol.update import Attempt, Class, Phase, Step


class Stage(StrEnum):
    """Where the machine is."""

    IDLE = "idle"
    SYNC = "sync"
    DOWNLOAD = "download"
    WAIT = "wait"
    INSTALL = "install"
    REBOOT = "reboot"
    VERIFY_REBOOT = "verify_reboot"
    TRIAL = "trial"
    COMMIT = "commit"
    CLEANUP = "cleanup"
    ROLLBACK = "rollback"
    ROLLBACK_REBOOT = "rollback_reboot"
    VERIFY_ROLLBACK = "verify_rollback"
    FAILURE = "failure"


class Action(StrEnum):
    """What is to be done; each ends in one of the events named."""

    CHECK = "check"  # hold the offered assignment to its rules: Checked, Refused
    FETCH = "fetch"  # bytes into the spare slots: Progress, Fetched, Failed
    LOOK = "look"  # from now on, at window and idleness: Looked
    ARM = "arm"  # the spare slot for one try: Armed, Failed
    RESTART = "restart"  # end this process for the launcher: Started, in the next one
    VERIFY = "verify"  # which slot this process runs from: Verified
    PROVE = "prove"  # that what runs is well: Proved, Failed
    COMMIT = "commit"  # to the slots on trial: Committed, Failed
    ROLL_BACK = "roll_back"  # to the slots of before: RolledBack
    TELL = "tell"  # the log how it failed: Told
    CLEAN = "clean"  # remove what is left over: Cleaned


class Proof(StrEnum):
    """What a trial has to show."""

    HEALTH = "health"  # the process has worked for a while
    SELF_TEST = "self_test"  # its sensor tested itself, or its page was drawn
    SESSION = "session"  # its own session with the broker was answered
    SERVER = "server"  # the server acknowledged the trial


@dataclass(frozen=True, slots=True)
class Place:
    """Where a component is tried, and which slot it ran from before."""

    component: str
    new: str
    old: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    kind: Class
    code: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: its last step."""

    attempt: Attempt
    seq: int
    phase: Phase
    code: str = ""
    kind: Class | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """Where a device is; all of it is in the journal.

    `seq` numbers the attempt's last step; `steps` are those that the server has not heard. Waiting
    has lasted `waited_ms`, and began at `ready_ms` (UTC, 0 if that was not known). `booted`: the
    new code was started, so that there is something to revert.
    """

    stage: Stage = Stage.IDLE
    job: Assignment | None = None
    offer: Assignment | None = None  # that is being checked
    places: tuple[Place, ...] = ()
    waited_ms: int = 0
    ready_ms: int = 0
    later_ms: int = 0
    reason: Phase | None = None  # why it waits
    proofs: frozenset[Proof] = frozenset()
    booted: bool = False
    tries: int = 0
    failure: Failure | None = None
    seq: int = 0
    told_bytes: int = 0
    steps: tuple[Step, ...] = ()
    ended: tuple[Ended, ...] = ()
    tail: tuple[str, ...] = ()

    @property
    def attempt(self) -> Attempt | None:
        """The attempt that is under way."""
        return None if self.job is None else attempt_of(self.job)

    @property
    def place(self) -> Place | None:
        """Where the agent itself is tried; None if its part is not in this bundle."""
        return next((each for each in self.places if each.component == "agent"), None)

    @property
    def settled(self) -> bool:
        """True if nothing is under way."""
        return self.stage is Stage.IDLE


def attempt_of(job: Assignment) -> Attempt:
    """Return which try at which execution an assignment is."""
    return Attempt(job.execution, job.attempt)


# -- what can happen -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """This process has started, out of `slot`, perhaps as its one try.

    `fell_back` says why not out of the slot that is to be tried (`launch`); `attempt`, for which
    attempt the trial is, or was.
    """

    slot: str
    on_trial: bool = False
    fell_back: str = ""
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """The server has assigned something; nothing of it is checked."""

    job: Assignment


@dataclass(frozen=True, slots=True)
class Checked:
    """What was offered may be installed, there."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """What was offered is not installed; `known` False: it could not be told now."""

    failure: Failure
    known: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """So many bytes are here, of all."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """All is in the spare slots, verified."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Looked:
    """How it is now: `elapsed_ms` since what was counted last, and whether somebody is here."""

    elapsed_ms: int
    busy: bool


@dataclass(frozen=True, slots=True)
class Later:
    """Somebody has asked to be left alone for so long."""

    for_ms: int


@dataclass(frozen=True, slots=True)
class Armed:
    """The spare slots are ready for their one try."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What runs is what was meant to; `failure` None if so."""

    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Proved:
    """The trial has shown this."""

    proof: Proof


@dataclass(frozen=True, slots=True)
class Failed:
    """What was being done failed; `switched`: a commit failed that holds all the same."""

    failure: Failure
    switched: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """The slots on trial are the committed ones, on disk."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The slots of before are the committed ones; `running_new`: this process runs out of another.

    Where that can't be written the record of the trial is used up all the same.
    """

    running_new: bool


@dataclass(frozen=True, slots=True)
class Told:
    """The log has it."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was left over is gone."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The server takes these executions back."""

    executions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """The server has stored the steps of these attempts up to a number."""

    upto: Mapping[Attempt, int]


Event = (
    Started | Offered | Checked | Refused | Progress | Fetched | Looked | Later | Armed | Verified
    | Proved | Failed | Committed | RolledBack | Told | Cleaned | Cancelled | Heard
)  # fmt: skip
