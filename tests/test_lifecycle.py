"""Rules of `portico.lifecycle`."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import portico.lifecycle as rules
from portico.lifecycle import Lifecycle, State, Verb, transition

ENDING = {State.DRAINING, State.CLOSING, State.CLOSED}

# Every pair. "." is what cannot be, "=" what changes nothing.
TABLE = """
             start     get ready  be suspended  resume   end      drain     close    finish
new          starting  .          =             =        =        draining  closing  .
starting     .         serving    =             =        stopped  draining  closing  .
serving      .         .          suspended     =        stopped  draining  closing  .
suspended    .         .          =             serving  stopped  draining  closing  .
stopped      starting  .          =             =        =        draining  closing  .
draining     .         =          .             .        =        =         closing  .
closing      .         =          .             .        =        =         =        closed
closed       starting  =          .             .        =        =         =        =
"""
VERBS = [Verb.START, Verb.READY, Verb.SUSPEND, Verb.RESUME, Verb.END, Verb.DRAIN, Verb.CLOSE, Verb.FINISH]


def expected() -> dict[tuple[State, Verb], State | None]:
    table: dict[tuple[State, Verb], State | None] = {}
    for line in TABLE.strip().splitlines()[1:]:
        name, *cells = line.split()
        before = State(name)
        for verb, cell in zip(VERBS, cells, strict=True):
            table[before, verb] = None if cell == "." else before if cell == "=" else State(cell)
    return table


def after(state: State, verb: Verb) -> State | None:
    """The state that follows; None if that cannot be."""
    try:
        return transition(state, verb)
    except RuntimeError:
        return None


def test_every_pair_of_state_and_verb_is_decided() -> None:
    assert {(state, verb): after(state, verb) for state in State for verb in Verb} == expected()


def test_what_cannot_be_is_refused_in_words() -> None:
    for (state, verb), follows in expected().items():
        if follows is None:
            with pytest.raises(RuntimeError, match=f"^a {state.value} server cannot {verb.value}"):
                transition(state, verb)


def test_serving_twice_at_once_is_refused_in_words() -> None:
    with pytest.raises(RuntimeError, match="a serving server cannot start: its loop runs in another call"):
        transition(State.SERVING, Verb.START)


def test_what_has_ended_is_not_said_to_run() -> None:
    with pytest.raises(RuntimeError, match=r"^a draining server cannot start$"):
        transition(State.DRAINING, Verb.START)


def test_a_server_can_be_started_again_and_again() -> None:
    state = State.NEW
    for last in (Verb.END, Verb.END, Verb.DRAIN):
        state = transition(state, Verb.START)
        assert state is State.STARTING
        state = transition(state, Verb.READY)
        assert state is State.SERVING
        state = transition(state, last)
    assert state is State.DRAINING


@pytest.mark.parametrize("state", State)
def test_from_everywhere_a_server_comes_to_its_end_and_may_then_start_with_another_socket(state: State) -> None:
    for verb in (Verb.DRAIN, Verb.CLOSE, Verb.FINISH):
        state = transition(state, verb)
    assert state is State.CLOSED
    assert transition(state, Verb.START) is State.STARTING


@given(st.lists(st.sampled_from(Verb), max_size=40))
def test_drawn_steps_lead_where_the_rules_lead_and_are_told_one_by_one(verbs: list[Verb]) -> None:
    told: list[tuple[State, State]] = []
    lifecycle = Lifecycle(lambda before, after: told.append((before, after)))
    taken: list[tuple[State, Verb, State]] = []
    for verb in verbs:
        before, follows = lifecycle.state, after(lifecycle.state, verb)
        if follows is None:
            with pytest.raises(RuntimeError):
                lifecycle.move(verb)
            assert lifecycle.state is before
        else:
            lifecycle.move(verb)
            assert lifecycle.state is follows
            taken.append((before, verb, follows))
    assert told == [(before, follows) for before, _, follows in taken if before is not follows]
    for before, verb, follows in taken:
        if before in ENDING:  # only a new start leads out of the end
            assert follows in ENDING or (before, verb) == (State.CLOSED, Verb.START)
        if follows is State.CLOSED:  # which is come to in order, so that nobody is told of an end that is not there
            assert before in (State.CLOSING, State.CLOSED)
        if follows in (State.SERVING, State.SUSPENDED):
            assert before in (State.STARTING, State.SERVING, State.SUSPENDED)


STEPS = ("clear", "set", *Verb)


@given(st.lists(st.sampled_from(STEPS), max_size=40))
def test_drawn_lives_keep_what_shutdown_relies_on(steps: list[str | Verb]) -> None:
    """Whoever waits for the end of a run waits for one that comes: `run` and the event say so when none runs."""
    lifecycle = Lifecycle()
    running = False
    for step in steps:
        try:
            if isinstance(step, Verb):
                lifecycle.move(step)
            else:
                getattr(lifecycle, step)()
                running = step == "clear"
        except RuntimeError:
            assert step != "set"  # a loop may always end
        assert lifecycle.running == running
        assert lifecycle.runs_in_another_thread is False
        if running:
            assert not lifecycle.is_set()
            assert not lifecycle.run.is_set()
        if step == "set":
            assert lifecycle.is_set()
            assert lifecycle.run.is_set()
            assert not lifecycle.runs_here
        assert lifecycle.is_over == (not running and lifecycle.state is not State.NEW)


def test_a_loop_may_be_told_to_end_in_the_middle_of_its_beginning() -> None:
    """From another thread, by a signal handler, or here by whoever is told of the first step."""

    def tell(before: State, after: State) -> None:
        if after is State.STARTING:
            lifecycle.move(Verb.DRAIN)

    lifecycle = Lifecycle(tell)
    lifecycle.clear()
    assert lifecycle.state is State.DRAINING
    assert lifecycle.running
    lifecycle.set()
    assert lifecycle.is_over


def test_a_start_that_is_refused_leaves_the_loop_that_runs_alone() -> None:
    lifecycle = Lifecycle()
    lifecycle.clear()
    run = lifecycle.run
    for verb in (None, Verb.SUSPEND, Verb.DRAIN, Verb.CLOSE, Verb.FINISH):
        if verb is not None:
            lifecycle.move(verb)
        with pytest.raises(RuntimeError, match="its loop runs in another call"):
            lifecycle.clear()
        assert lifecycle.run is run
        assert lifecycle.runs_here


def test_a_copied_loop_moves_the_state_through_the_events_own_methods() -> None:
    told: list[State] = []
    lifecycle = Lifecycle(lambda _, after: told.append(after))
    assert not lifecycle.is_set()  # the stdlib's: not set until a loop has ended
    lifecycle.clear()
    assert told == [State.STARTING, State.SERVING]
    assert not lifecycle.runs_in_another_thread
    seen: list[bool] = []
    other = threading.Thread(target=lambda: seen.append(lifecycle.runs_in_another_thread))
    other.start()
    other.join()
    assert seen == [True]
    lifecycle.set()
    assert told == [State.STARTING, State.SERVING, State.STOPPED]
    assert lifecycle.is_set()


def test_setting_the_event_of_a_new_server_leaves_it_new() -> None:
    lifecycle = Lifecycle()
    lifecycle.set()
    assert lifecycle.state is State.NEW


# -- the telling


def test_steps_are_told_in_their_order_whoever_takes_them() -> None:
    """A second thread's step is told after the first one's, though that one's telling goes on; and nobody waits."""
    told: list[State] = []

    def tell(_: State, after: State) -> None:
        if after is State.STARTING:
            other = threading.Thread(target=lifecycle.move, args=(Verb.DRAIN,))
            other.start()
            other.join(10)
            assert not other.is_alive()
            assert lifecycle.state is State.DRAINING
        told.append(after)

    lifecycle = Lifecycle(tell)
    lifecycle.clear()
    assert told == [State.STARTING, State.DRAINING]


def test_a_step_taken_by_whoever_is_told_of_one_is_told_next() -> None:
    told: list[tuple[State, State]] = []

    def tell(before: State, after: State) -> None:
        if after is State.SERVING and State.SUSPENDED not in (before, *(step[1] for step in told)):
            lifecycle.move(Verb.SUSPEND)
            lifecycle.move(Verb.RESUME)
        told.append((before, after))

    lifecycle = Lifecycle(tell)
    lifecycle.clear()
    lives = [State.NEW, State.STARTING, State.SERVING, State.SUSPENDED, State.SERVING]
    assert told == list(pairwise(lives))


def test_what_a_listener_raises_does_not_stop_the_telling() -> None:
    told: list[State] = []

    def tell(_: State, after: State) -> None:
        told.append(after)
        if after is State.STARTING:
            lifecycle.move(Verb.DRAIN)
            raise KeyboardInterrupt

    lifecycle = Lifecycle(tell)
    with pytest.raises(KeyboardInterrupt):
        lifecycle.clear()
    lifecycle.move(Verb.CLOSE)
    assert told == [State.STARTING, State.DRAINING, State.CLOSING]


def test_a_signal_handlers_step_in_the_middle_of_another_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[State, State]] = []
    lifecycle = Lifecycle(lambda before, after: told.append((before, after)))
    lifecycle.clear()
    handlers = [lambda: lifecycle.move(Verb.DRAIN)]

    def interrupted(state: State, verb: Verb) -> State:
        found = transition(state, verb)
        if handlers:
            handlers.pop()()
        return found

    monkeypatch.setattr(rules, "transition", interrupted)
    with pytest.raises(RuntimeError, match="a draining server cannot be suspended"):
        lifecycle.move(Verb.SUSPEND)
    assert lifecycle.state is State.DRAINING
    assert told == list(pairwise([State.NEW, State.STARTING, State.SERVING, State.DRAINING]))


def test_what_is_suspended_before_it_starts_is_suspended_when_it_is_ready() -> None:
    told: list[State] = []
    lifecycle = Lifecycle(lambda _, after: told.append(after))
    for _ in range(2):
        told.clear()
        lifecycle.move(Verb.SUSPEND)
        lifecycle.clear()
        assert told == [State.STARTING, State.SERVING, State.SUSPENDED]
        lifecycle.set()
        lifecycle.clear()  # the next time nobody has asked for it
        assert lifecycle.state is State.SERVING
        lifecycle.set()
