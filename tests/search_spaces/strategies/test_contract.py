"""What every strategy keeps to, whatever order the outcomes come in and wherever a session was cut off."""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from search_spaces.domains import Domain, FloatRange, IntRange
from search_spaces.models import ModelDescription
from search_spaces.objectives import Direction
from search_spaces.requests import Failed, Outcome, Scored, Settings
from search_spaces.space import Judge, Space, survey
from search_spaces.strategies import Assignment, PastTrial, Report, Strategy
from search_spaces.strategies.grid import Grid
from search_spaces.strategies.optuna_sampler import OptunaSampler
from search_spaces.strategies.racing import has_lost
from search_spaces.strategies.trials import Trials
from tests.search_spaces.examples import INPAINTING, SDXL, TEXT_TO_IMAGE, UNKNOWN, space

ALL = 10**6
"""A budget beyond every space of these tests."""


@dataclass(frozen=True)
class Case:
    """A space, what judges it, and the instances."""

    space: Space
    model: ModelDescription = INPAINTING
    instances: int = 3

    @property
    def judge(self) -> Judge:
        return Judge({"num_inference_steps": 10, "strength": 1.0, "negative_prompt": ""}, self.model)

    @property
    def candidates(self) -> set[str]:
        """Every candidate of the lattice."""
        return {self.judge.candidate(settings) for settings in survey(self.space, self.judge).candidates}


CASES = {
    # 36 cells, of which 12 cannot run and 15 are twins of others
    "mixed": Case(
        space(
            num_inference_steps=[1, 10],
            strength=[1.0, 0.5, 0.55],
            guidance_scale=[5, 0.5, 1],
            negative_prompt=["", "cartoon"],
        )
    ),
    "sdxl": Case(space(guidance_scale=[1, 7.5], negative_prompt=[None, "", "cartoon"]), SDXL, 2),
    "ranges": Case(
        space(
            guidance_scale=FloatRange(low=0.5, high=2.0, step=0.5),
            num_inference_steps=IntRange(low=2, high=9, step=3),
        ),
        TEXT_TO_IMAGE,
        1,
    ),
    "unknown family": Case(space(strength=[0.01, 1], guidance_scale=[3, 1, 0]), UNKNOWN, 4),
    "one cell": Case(space(guidance_scale=[3])),
    "all twins": Case(space(negative_prompt=["a", "b", "c"], guidance_scale=[1]), instances=2),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
schedules = pytest.mark.parametrize("seed", range(2))

Judgement = Callable[[Settings, int], Outcome]


def score(settings: Settings, instance: int) -> Outcome:
    """A score that depends on nothing but the settings and the instance."""
    chance = random.Random(json.dumps([sorted(settings.items()), instance]))
    return Scored({"clip_score": chance.uniform(15, 35)})


@dataclass
class Played:
    """What one session with a strategy came to."""

    dealt: list[Assignment] = field(default_factory=list)
    journal: list[Report] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(a.trial.number, a.instance) for a in self.dealt]

    @property
    def settings(self) -> dict[int, Settings]:
        return {a.trial.number: a.trial.settings for a in self.dealt}

    def past(self, reports: int | None = None, before: Sequence[PastTrial] = ()) -> list[PastTrial]:
        """The trials as the catalog gives them back after so many reports, those of earlier sessions included."""
        trials: dict[int, tuple[Settings, dict[int, Outcome]]] = {
            trial.number: (trial.settings, dict(trial.outcomes)) for trial in before
        }
        for report in self.journal[:reports]:
            settings = json.loads(json.dumps(dict(self.settings[report.trial])))
            trials.setdefault(report.trial, (settings, {}))[1][report.instance] = report.outcome
        return [PastTrial(number, *trials[number]) for number in sorted(trials)]


def play(
    strategy: Strategy, seed: int = 0, judgement: Judgement = score, past: Sequence[PastTrial] = ()
) -> Played:
    """Ask and report in a random order until the strategy has done.

    What holds of every session is asserted here.
    """
    chance, played = random.Random(seed), Played()
    judged = {(trial.number, instance) for trial in past for instance in trial.outcomes}
    under_way: list[Assignment] = []
    for _ in range(5000):
        free = chance.choice([0, 1, 1, 2, 3, 7, 40])
        asked = list(strategy.ask(free))
        assert len(asked) <= free
        for assignment in asked:
            pair = (assignment.trial.number, assignment.instance)
            assert pair not in judged, "a pair is dealt once, over all sessions"
            assert assignment.trial.number not in played.dropped, "a dropped trial is not dealt"
            judged.add(pair)
        played.dealt += asked
        under_way += asked
        if free and not asked and not under_way:
            return played
        chance.shuffle(under_way)
        back = under_way[: chance.randint(0, len(under_way))]
        under_way = under_way[len(back) :]
        reports = [Report(a.trial.number, a.instance, judgement(a.trial.settings, a.instance)) for a in back]
        dropped = list(strategy.report(reports))
        played.journal += reports
        assert not set(dropped) & set(played.dropped), "a trial is dropped once"
        assert set(dropped) <= {a.trial.number for a in played.dealt}
        played.dropped += dropped
        # Of what was under way some is taken back and some cannot be and is reported all the same.
        under_way = [a for a in under_way if a.trial.number not in dropped or chance.random() < 0.3]
    raise AssertionError("the strategy does not end")


def assert_trials_suit(played: Played, case: Case, past: Sequence[PastTrial] = ()) -> None:
    """Every trial lies in the space, can run, has one number, and no twin with another."""
    numbers = {case.judge.candidate(trial.settings): trial.number for trial in past}
    assert len(numbers) == len(past)
    for assignment in played.dealt:
        trial = assignment.trial
        assert set(trial.settings) == set(case.space.axes)
        for name, value in trial.settings.items():
            assert lies_in(value, case.space.axes[name]), (name, value)
        assert case.judge.obstacle(trial.settings) is None
        assert 0 <= assignment.instance < case.instances
        assert assignment.stop_after is None
        assert numbers.setdefault(case.judge.candidate(trial.settings), trial.number) == trial.number
    assert len(set(numbers.values())) == len(numbers)
    assert all(number >= 0 for number in numbers.values())


def lies_in(value: object, domain: Domain) -> bool:
    points = domain.points()
    if points is not None:
        return any(value == point and type(value) is type(point) for point in points)
    assert isinstance(domain, FloatRange)
    return isinstance(value, float) and domain.low <= value <= domain.high


class StrategyContract:
    """Subclass it with `make`; `counts_trials` says whether the strategy keeps to a budget of trials."""

    counts_trials = False

    def make(self, case: Case, past: Sequence[PastTrial] = (), trials: int = ALL) -> Strategy:
        raise NotImplementedError

    def expected(self, case: Case, trials: int) -> int:
        """How many trials a whole study has."""
        return min(trials, len(case.candidates)) if self.counts_trials else len(case.candidates)

    @cases
    @schedules
    def test_every_candidate_is_dealt_once_on_every_instance(self, case: Case, seed: int) -> None:
        played = play(self.make(case), seed)
        assert_trials_suit(played, case)
        assert len(played.settings) == self.expected(case, ALL)
        assert {case.judge.candidate(settings) for settings in played.settings.values()} == case.candidates
        assert sorted(played.pairs) == [
            (n, i) for n in sorted(played.settings) for i in range(case.instances)
        ]
        assert not played.dropped
        assert sorted(played.settings) == list(range(len(played.settings)))

    @cases
    @pytest.mark.parametrize("trials", [1, 4])
    def test_the_budget_holds(self, case: Case, trials: int) -> None:
        played = play(self.make(case, trials=trials), trials)
        assert_trials_suit(played, case)
        assert len(played.settings) == self.expected(case, trials)
        assert len(played.dealt) == len(played.settings) * case.instances

    def test_nothing_is_dealt_where_nothing_is_free(self) -> None:
        strategy = self.make(CASES["mixed"])
        assert list(strategy.ask(0)) == []
        assert list(strategy.ask(-3)) == []
        assert len(strategy.ask(2)) == 2

    def test_it_has_done_once_and_for_all(self) -> None:
        strategy = self.make(CASES["mixed"])
        play(strategy)
        assert list(strategy.ask(10)) == []
        assert list(strategy.report([])) == []
        assert list(strategy.ask(10)) == []

    def test_a_space_where_nothing_can_run_ends_at_once(self) -> None:
        nothing = Case(space(num_inference_steps=[1, 2], strength=[0.1, 0.2]))
        assert play(self.make(nothing)).dealt == []

    @schedules
    def test_an_infeasible_instance_drops_its_trial(self, seed: int) -> None:
        case = CASES["mixed"]
        bad = set(sorted(case.candidates)[::3])

        def judgement(settings: Settings, instance: int) -> Outcome:
            if case.judge.candidate(settings) in bad and instance >= 1:
                return Failed("infeasible", "all black")
            return score(settings, instance)

        played = play(self.make(case), seed, judgement)
        assert_trials_suit(played, case)
        assert {case.judge.candidate(played.settings[number]) for number in played.dropped} == bad
        good = {
            n: s for n, s in played.settings.items() if case.judge.candidate(s) not in bad
        }  # the others are judged in full
        assert len(good) == len(case.candidates - bad)
        dealt = Counter(number for number, _ in played.pairs)
        assert all(dealt[number] == case.instances for number in good)

    def test_the_rest_of_a_dropped_trial_is_not_dealt(self) -> None:
        case = Case(space(guidance_scale=[3, 5]), instances=5)
        strategy = self.make(case)
        first, second = strategy.ask(2)
        assert first.trial == second.trial
        assert list(strategy.report([Report(first.trial.number, 0, Failed("infeasible", "NaN"))])) == [
            first.trial.number
        ]
        late = Report(first.trial.number, second.instance, Failed("infeasible", "NaN"))
        assert list(strategy.report([late])) == []
        rest = strategy.ask(100)
        assert first.trial.number not in {a.trial.number for a in rest}
        assert len(rest) == case.instances

    @schedules
    def test_a_lost_instance_does_not_hold_up_its_trial(self, seed: int) -> None:
        case = CASES["mixed"]

        def judgement(settings: Settings, instance: int) -> Outcome:
            return Failed("lost", "a machine went away") if instance == 1 else score(settings, instance)

        played = play(self.make(case), seed, judgement)
        assert not played.dropped
        assert len(played.dealt) == len(case.candidates) * case.instances
        # A later session finds everything judged, and asks for none of it again.
        past = played.past()
        assert play(self.make(case, past), seed, past=past).dealt == []

    @cases
    @schedules
    def test_a_study_goes_on_from_wherever_it_was_cut_off(self, case: Case, seed: int) -> None:
        chance, trials = random.Random(seed), 7
        past: list[PastTrial] = []
        for session in range(4):
            played = play(self.make(case, past, trials), seed + session, past=past)
            assert_trials_suit(played, case, past)
            together = played.past(before=past)
            assert len(together) == self.expected(case, trials)
            judged = {(trial.number, instance) for trial in past for instance in trial.outcomes}
            whole = {(trial.number, instance) for trial in together for instance in range(case.instances)}
            assert set(played.pairs) == whole - judged, "only what is missing is dealt"
            past = played.past(chance.randint(0, len(played.journal)), before=past)

    @schedules
    def test_every_prefix_of_a_session_can_be_gone_on_from(self, seed: int) -> None:
        case, trials = CASES["sdxl"], 4
        played = play(self.make(case, trials=trials), seed)
        for reports in range(len(played.journal) + 1):
            past = played.past(reports)
            rest = play(self.make(case, past, trials), seed, past=past)
            assert_trials_suit(rest, case, past)
            assert len(rest.past(before=past)) == self.expected(case, trials)
            assert len(rest.dealt) == self.expected(case, trials) * case.instances - reports

    def test_an_infeasible_trial_of_an_earlier_session_stays_dropped(self) -> None:
        case = CASES["mixed"]
        bad = min(case.candidates)

        def judgement(settings: Settings, instance: int) -> Outcome:
            if case.judge.candidate(settings) == bad:
                return Failed("infeasible", "flagged")
            return score(settings, instance)

        played = play(self.make(case), 1, judgement)
        cut = next(n for n, r in enumerate(played.journal) if isinstance(r.outcome, Failed))
        past = played.past(cut + 1)
        rest = play(self.make(case, past), 2, judgement, past)
        assert played.dropped[0] not in rest.settings
        assert len(rest.past(before=past)) == len(case.candidates)

    def test_numbers_of_earlier_trials_are_kept_where_an_axis_grows(self) -> None:
        small = Case(space(guidance_scale=[3, 5], num_inference_steps=[10, 4]))
        played = play(self.make(small, trials=4), 3)
        past = played.past()
        large = Case(space(guidance_scale=[9, 3, 1, 5], num_inference_steps=[20, 10, 4]))
        grown = play(self.make(large, past), 4, past=past)
        assert_trials_suit(grown, large, past)
        assert min(grown.settings) == 4, "new trials have new numbers"
        assert not set(grown.pairs) & set(played.pairs)
        assert len(grown.past(before=past)) == len(large.candidates)

    def test_trials_that_have_left_the_space_are_not_dealt_and_keep_their_numbers(self) -> None:
        old = Case(space(guidance_scale=[3, 5]))
        past = play(self.make(old), 3).past(4)
        new = Case(space(guidance_scale=[7, 9]))
        played = play(self.make(new, past), 4, past=past)
        assert set(played.settings) == {2, 3}
        assert len(played.dealt) == 2 * new.instances

    def test_twins_of_earlier_trials_have_their_numbers(self) -> None:
        old = Case(space(strength=[0.5]))
        past = play(self.make(old), 3).past(1)
        new = Case(space(strength=[0.55, 0.9]))
        played = play(self.make(new, past), 4, past=past)
        by_strength = {s["strength"]: n for n, s in played.settings.items()}
        assert by_strength == {0.55: 0, 0.9: 1}
        assert len(played.dealt) == 2 * new.instances - 1

    def test_more_instances_deal_only_the_new_ones(self) -> None:
        case = Case(space(guidance_scale=[3, 5, 9]), instances=2)
        past = play(self.make(case, trials=3), 5).past()
        more = Case(case.space, instances=5)
        played = play(self.make(more, past, trials=3), 6, past=past)
        assert sorted(played.pairs) == [(n, i) for n in range(3) for i in (2, 3, 4)]
        assert {n: dict(s) for n, s in played.settings.items()} == {t.number: t.settings for t in past}

    def test_lost_instances_that_were_forgotten_are_dealt_again(self) -> None:
        case = Case(space(guidance_scale=[3, 5]), instances=3)
        past = [
            PastTrial(0, {"guidance_scale": 3.0}, {}),
            PastTrial(
                1, {"guidance_scale": 5.0}, {0: Scored({"clip_score": 1.0}), 2: Scored({"clip_score": 1.0})}
            ),
        ]
        played = play(self.make(case, past), 0, past=past)
        assert sorted(played.pairs) == [(0, 0), (0, 1), (0, 2), (1, 1)]

    def test_gaps_in_the_numbers_are_left_alone(self) -> None:
        case = Case(space(guidance_scale=[3, 5]), instances=1)
        past = [PastTrial(7, {"guidance_scale": 3.0}, {0: Scored({"clip_score": 1.0})})]
        assert set(play(self.make(case, past), 0, past=past).pairs) == {(8, 0)}


class TestGrid(StrategyContract):
    def make(self, case: Case, past: Sequence[PastTrial] = (), trials: int = ALL) -> Strategy:
        return Grid(Trials(case.judge, "clip_score", past), case.space.lattice(), case.instances)


class SamplerContract(StrategyContract):
    counts_trials = True
    racing = False

    def sampler(self, seed: int) -> BaseSampler:
        raise NotImplementedError

    def make(self, case: Case, past: Sequence[PastTrial] = (), trials: int = ALL) -> Strategy:
        sampler = self.sampler(len(past))
        objectives: Mapping[str, Direction] = {"clip_score": "maximize"}
        return OptunaSampler(
            case.space,
            case.judge,
            case.instances,
            objectives,
            trials,
            sampler,
            seed=1,
            past=past,
            racing=self.racing,
        )

    @schedules
    def test_continuous_ranges_are_searched_up_to_the_budget(self, seed: int) -> None:
        case = Case(
            space(
                guidance_scale=FloatRange(low=0, high=15),
                num_inference_steps=IntRange(low=1, high=64, log=True),
                strength=FloatRange(low=0.01, high=1, log=True),
                negative_prompt=["", "cartoon"],
            )
        )
        played = play(self.make(case, trials=12), seed)
        assert_trials_suit(played, case)
        assert len(played.settings) == 12
        past = played.past(20)
        assert_trials_suit(play(self.make(case, past, 12), seed, past=past), case, past)

    def test_a_continuous_space_of_few_pictures_ends(self) -> None:
        case = Case(space(num_inference_steps=[3], strength=FloatRange(low=0, high=1)))
        played = play(self.make(case, trials=50), 0)
        assert {case.judge.candidate(s) for s in played.settings.values()} <= {
            case.judge.candidate({"num_inference_steps": 3, "strength": strength})
            for strength in (0.4, 0.7, 1.0)
        }
        assert len(played.settings) >= 2

    def test_a_continuous_space_where_nothing_can_run_ends(self) -> None:
        case = Case(space(num_inference_steps=[3], strength=FloatRange(low=0, high=0.3)))
        assert play(self.make(case, trials=5)).dealt == []


class TestTpe(SamplerContract):
    def sampler(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed)


class TestNsga2(SamplerContract):
    def sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(seed=seed, population_size=4)


class TestRacedTpe(SamplerContract):
    """With so few instances as the contract's cases have, no trial can lose before it is complete."""

    racing = True

    def sampler(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed)

    def test_the_rest_of_a_dropped_trial_is_not_dealt(self) -> None:
        strategy = self.make(Case(space(guidance_scale=[3, 5]), instances=9))
        first = strategy.ask(2)[0]
        infeasible = [Report(first.trial.number, i, Failed("infeasible", "NaN")) for i in (0, 1)]
        assert list(strategy.report(infeasible[:1])) == [first.trial.number]
        assert list(strategy.report(infeasible[1:])) == []
        assert {(a.trial.number, a.instance) for a in strategy.ask(100)} == {(1, i) for i in range(4)}


class TestRandomSampler(SamplerContract):
    def sampler(self, seed: int) -> BaseSampler:
        return RandomSampler(seed=seed)


class RaceContract:
    """What holds of a sampler that races: not every pair is dealt, and it is known why."""

    case = Case(
        space(
            guidance_scale=[1, 3, 5, 7, 9],
            num_inference_steps=[4, 10, 20],
            negative_prompt=["", "cartoon"],
        ),
        instances=16,
    )

    def sampler(self, seed: int) -> BaseSampler:
        raise NotImplementedError

    def make(self, past: Sequence[PastTrial] = (), trials: int = ALL) -> Strategy:
        objectives: Mapping[str, Direction] = {"clip_score": "maximize"}
        sampler = self.sampler(len(past))
        case = self.case
        return OptunaSampler(
            case.space, case.judge, case.instances, objectives, trials, sampler, past=past, racing=True
        )

    def judgement(self, settings: Settings, instance: int) -> Outcome:
        """Guidance and steps matter, and each picture has its luck."""
        luck = random.Random(json.dumps([sorted(settings.items()), instance])).gauss(0, 4)
        guidance, steps = settings["guidance_scale"], settings["num_inference_steps"]
        assert isinstance(guidance, int | float)
        assert isinstance(steps, int)
        return Scored({"clip_score": 30 - 2 * abs(guidance - 7) + steps / 5 + 3 * (instance % 4) + luck})

    def assert_fair(self, together: Sequence[PastTrial], dropped: Sequence[int] = ()) -> None:
        """Every trial is complete or was dropped, or has lost against a complete one on their instances.

        Of one that was dropped, late reports may have changed what the pairs say.
        """
        complete = [trial for trial in together if len(trial.outcomes) == self.case.instances]
        for trial in together:
            if trial not in complete and trial.number not in dropped:
                assert any(has_lost(gains(trial, better)) for better in complete), trial.number

    @pytest.mark.parametrize("seed", range(3))
    def test_losers_are_dropped_and_all_others_judged_on_every_instance(self, seed: int) -> None:
        played = play(self.make(), seed, self.judgement)
        assert_trials_suit(played, self.case)
        together = played.past()
        assert {self.case.judge.candidate(trial.settings) for trial in together} == self.case.candidates
        whole = [trial for trial in together if len(trial.outcomes) == self.case.instances]
        assert len(played.dropped) >= len(together) / 2
        assert {trial.number for trial in together} - {t.number for t in whole} <= set(played.dropped)
        unheard = set(played.pairs) - {(r.trial, r.instance) for r in played.journal}
        assert {number for number, _ in unheard} <= set(played.dropped)
        best = max(whole, key=total)
        assert best.settings["guidance_scale"] == 7

    @schedules
    def test_the_budget_of_trials_holds(self, seed: int) -> None:
        played = play(self.make(trials=5), seed, self.judgement)
        assert len(played.settings) == 5

    @pytest.mark.parametrize("seed", range(3))
    def test_every_trial_has_the_first_instances_in_order(self, seed: int) -> None:
        played = play(self.make(), seed, self.judgement)
        for number in played.settings:
            dealt = [instance for trial, instance in played.pairs if trial == number]
            assert dealt == list(range(len(dealt)))

    @schedules
    def test_a_race_goes_on_from_any_prefix(self, seed: int) -> None:
        played = play(self.make(), seed, self.judgement)
        for reports in range(0, len(played.journal), 41):
            past = played.past(reports)
            rest = play(self.make(past), seed, self.judgement, past)  # where no pair is dealt twice
            together = rest.past(before=past)
            assert {self.case.judge.candidate(t.settings) for t in together} == self.case.candidates
            self.assert_fair(together, rest.dropped)

    def test_a_race_that_was_over_stays_over(self) -> None:
        strategy, journal = self.make(), Played()
        while dealt := strategy.ask(
            1
        ):  # one after the other: the order in which trials led is that of their numbers
            journal.dealt += dealt
            reports = [
                Report(a.trial.number, a.instance, self.judgement(a.trial.settings, a.instance))
                for a in dealt
            ]
            strategy.report(reports)
            journal.journal += reports
        past = journal.past()
        assert any(len(trial.outcomes) < self.case.instances for trial in past)
        assert list(self.make(past).ask(100)) == []

    @schedules
    def test_what_was_lost_holds_nothing_up(self, seed: int) -> None:
        def judgement(settings: Settings, instance: int) -> Outcome:
            gone = settings["num_inference_steps"] == 4 and instance in (1, 9)
            return Failed("lost", "a machine went away") if gone else self.judgement(settings, instance)

        played = play(self.make(), seed, judgement)
        assert len(played.settings) == len(self.case.candidates)
        self.assert_fair(played.past(), played.dropped)

    def test_an_infeasible_trial_leaves_the_race(self) -> None:
        def judgement(settings: Settings, instance: int) -> Outcome:
            black = settings["guidance_scale"] == 7 and instance == 2
            return Failed("infeasible", "all black") if black else self.judgement(settings, instance)

        played = play(self.make(), 0, judgement)
        bad = {number for number, settings in played.settings.items() if settings["guidance_scale"] == 7}
        assert bad <= set(played.dropped)
        whole = {trial.number for trial in played.past() if len(trial.outcomes) == self.case.instances}
        assert whole | set(played.dropped) == set(played.settings)


def gains(trial: PastTrial, other: PastTrial) -> list[float]:
    """Paired differences on the instances that both were scored on."""
    mine, theirs = scores(trial), scores(other)
    return [mine[instance] - theirs[instance] for instance in mine if instance in theirs]


def scores(trial: PastTrial) -> dict[int, float]:
    return {i: o.scores["clip_score"] for i, o in trial.outcomes.items() if isinstance(o, Scored)}


def total(trial: PastTrial) -> float:
    return sum(scores(trial).values())


class TestTpeRace(RaceContract):
    def sampler(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed)


class TestRandomRace(RaceContract):
    def sampler(self, seed: int) -> BaseSampler:
        return RandomSampler(seed=seed)


def test_the_contract_speaks_of_twins_and_of_cells_that_cannot_run() -> None:
    found = survey(CASES["mixed"].space, CASES["mixed"].judge)
    assert sum(found.infeasible.values()) == 12
    assert sum(found.inert.values()) == 15
    assert len(found.candidates) == 9
    outcomes: Mapping[int, Outcome] = {0: score({"a": 1}, 0)}
    assert outcomes == {0: score({"a": 1}, 0)} != {0: score({"a": 1}, 1)}
