"""What ingest is doing, for /ready, the metrics and people."""

from enum import Enum

from server import metrics


class State(Enum):
    """The worker's state; frames are stored in RUNNING only."""

    STARTING = "starting"
    RUNNING = "running"
    BROKER_AWAY = "broker away"
    DATABASE_AWAY = "database away"
    STOPPED = "stopped"


class Health:
    """The state as it follows from its two links."""

    def __init__(self) -> None:
        self._broker = False
        self._database = True
        self._started = False
        self._stopped = False
        self._show()

    @property
    def state(self) -> State:
        """The worst of what holds."""
        if self._stopped:
            return State.STOPPED
        if not self._started:
            return State.STARTING
        if not self._database:
            return State.DATABASE_AWAY
        return State.RUNNING if self._broker else State.BROKER_AWAY

    def broker(self, *, connected: bool) -> None:
        """Take note of the broker's link."""
        self._broker = connected
        self._started = True
        self._show()

    def database(self, *, away: bool) -> None:
        """Take note of whether the database answers."""
        if self._database == (not away):
            return
        self._database = not away
        self._show()

    def stopped(self) -> None:
        """Take note of the end."""
        self._stopped = True
        self._show()

    def _show(self) -> None:
        for state in State:
            metrics.INGEST_STATE.labels(state.value).set(state is self.state)
