"""How fast Comet may be sent to: a pure account of its quotas (comet_ml 3.58's documentation)."""

from collections import deque

MOST_PER_MINUTE = 8_000
"""Images and other items that an experiment takes in a minute."""

MOST_PER_HOUR = 15_000
"""Submissions over REST that an API key may make in an hour."""


class Pace:
    """Counts submissions over the last hour, and says how long the next has to wait."""

    def __init__(self, per_minute: int = MOST_PER_MINUTE, per_hour: int = MOST_PER_HOUR) -> None:
        self._limits = ((60.0, per_minute), (3600.0, per_hour))
        self._times: deque[float] = deque(maxlen=per_hour)

    def wait(self, now: float) -> float:
        """Seconds until one more submission keeps the quotas; 0 where it may be made at once."""
        waits = [
            self._times[-most] + seconds - now for seconds, most in self._limits if len(self._times) >= most
        ]
        return max(0.0, *waits) if waits else 0.0

    def take(self, now: float) -> None:
        """Note a submission."""
        self._times.append(now)


def seconds_for(submissions: int, per_minute: int = MOST_PER_MINUTE, per_hour: int = MOST_PER_HOUR) -> float:
    """The least time that so many submissions take within the quotas, were the server infinitely fast."""
    if submissions <= 0:
        return 0.0
    hours, rest = divmod(submissions - 1, per_hour)
    return 3600.0 * hours + 60.0 * (rest // per_minute)
