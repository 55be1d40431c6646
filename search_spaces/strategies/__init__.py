"""The seam `Strategy`: what to try next. Strategies decide, purely, from what they are told; they write nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from search_spaces.requests import Looked, Outcome, Role, Settings, Trial


@dataclass(frozen=True)
class Assignment:
    """One trial on one instance; `stop_after` asks for an early look after that many UNet calls.

    With the role `validate`, the instance is one of the study's validation instances.
    """

    trial: Trial
    instance: int
    stop_after: int | None = None
    role: Role = "search"


@dataclass(frozen=True)
class Report:
    """What became of an assignment."""

    trial: int
    instance: int
    outcome: Outcome
    role: Role = "search"


@dataclass(frozen=True)
class PastTrial:
    """A trial of an earlier session, from the catalog's trials table: it keeps its number.

    `outcomes` are of the search's instances, `validation` of the fresh ones; `looks` are the early looks at
    each instance. `dealt_by` names, by instance, the strategy that dealt it, where that is known.
    """

    number: int
    settings: Settings
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    looks: Mapping[int, Sequence[Looked]] = field(default_factory=dict)
    validation: Mapping[int, Outcome] = field(default_factory=dict)
    dealt_by: Mapping[int, str] = field(default_factory=dict)


class Strategy(Protocol):
    """Deals trials over shared instances and learns from their outcomes.

    Every pair (trial, instance) is dealt at most once to its end by one strategy object, and before that for
    early looks, one after the other; trials that draw the same pixels are one trial, and a strategy made with
    the trials of an earlier session deals only what those have not been judged on.
    """

    def ask(self, free: int) -> Sequence[Assignment]:
        """At most `free` new assignments; none while nothing is under way means: the study is done."""
        ...

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Take outcomes in any order; the numbers of trials whose remaining work is to be dropped."""
        ...
