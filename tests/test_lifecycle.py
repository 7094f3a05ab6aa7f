"""Rules of `portico.lifecycle`."""

from __future__ import annotations

import threading

import pytest

from portico.lifecycle import Lifecycle, State, Verb, transition


def test_a_server_can_be_started_again_and_again() -> None:
    state = State.NEW
    for _ in range(3):
        state = transition(state, Verb.START)
        assert state is State.SERVING
        state = transition(state, Verb.END)
        assert state is State.STOPPED


def test_serving_twice_at_once_is_refused_in_words() -> None:
    with pytest.raises(RuntimeError, match="a serving server cannot start"):
        transition(State.SERVING, Verb.START)


def test_every_pair_of_state_and_verb_is_decided() -> None:
    undecided = []
    for state in State:
        for verb in Verb:
            try:
                transition(state, verb)
            except RuntimeError:
                undecided.append((state, verb))
    assert undecided == [(State.SERVING, Verb.START)]


def test_a_copied_loop_moves_the_state_through_the_events_own_methods() -> None:
    lifecycle = Lifecycle()
    assert not lifecycle.is_set()  # the stdlib's: not set until a loop has ended
    lifecycle.clear()
    assert lifecycle.state is State.SERVING
    assert not lifecycle.runs_in_another_thread
    seen: list[bool] = []
    other = threading.Thread(target=lambda: seen.append(lifecycle.runs_in_another_thread))
    other.start()
    other.join()
    assert seen == [True]
    lifecycle.set()
    assert lifecycle.state is State.STOPPED
    assert lifecycle.is_set()


def test_setting_the_event_of_a_new_server_leaves_it_new() -> None:
    lifecycle = Lifecycle()
    lifecycle.set()
    assert lifecycle.state is State.NEW
