"""The rules of the time limits, on made-up figures and times: no socket, no clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico._meters import Traffic
from portico.deadlines import Marks, TimeLimits, verdict
from portico.lifecycle import EndReason

NEVER = float("inf")
LIMITS = ("idle_timeout", "connection_timeout", "min_read_rate", "send_timeout")
some_seconds = st.floats(0.01, 1000)


def limits(**values: Any) -> TimeLimits:
    defaults = {**dict.fromkeys(LIMITS), "connection_jitter": 0.1, "read_grace": 10.0}
    return TimeLimits(SimpleNamespace(**defaults | values))


def traffic(
    received: int = 0,
    sent: int = 0,
    *,
    waiting: int = 0,
    gone: int | None = None,
    glimpsed: bool = False,
    heard: float = 0.0,
    said: float = 0.0,
) -> Traffic:
    made = Traffic(received, sent, taken=sent - waiting, waiting=waiting, heard=heard, said=said)
    made.gone = sent if gone is None else gone
    made.glimpsed = glimpsed
    return made


class Asked:
    """What is asked of a connection: the numbers of `traffic`, and these."""

    def __init__(self, *, uncounted: int = 0, unread: int = 0, takes: tuple[int, ...] | None = None) -> None:
        self._uncounted, self._unread, self._takes = uncounted, unread, takes

    def uncounted(self) -> int:
        return self._uncounted

    def unread(self) -> int:
        return self._unread

    def peer_takes(self, traffic: Traffic) -> tuple[int, ...]:
        return (traffic.taken,) if self._takes is None else self._takes


NOTHING = Asked()


class Life:
    """One connection that began at 0, and is looked at as often as the verdicts ask for."""

    def __init__(self, rules: TimeLimits, luck: float = 0.0) -> None:
        self.rules = rules
        self.marks = Marks(0.0, luck)
        self.looks = 0

    def look(self, now: float, **figures: Any) -> tuple[EndReason | None, float]:
        self.looks += 1
        return verdict(self.rules, self.marks, traffic(**figures), now, NOTHING)

    def run(self, until: float, figures_at: Any, asked_at: Any = lambda now: NOTHING) -> tuple[EndReason | None, float]:
        """The first reason to end it, and when it was found; None, and `until`, if there was none."""
        now = 0.0
        while now <= until:
            reason, again = verdict(self.rules, self.marks, figures_at(now), now, asked_at(now))
            self.looks += 1
            if reason is not None:
                return reason, now
            assert again > now
            now = again
        return None, until


# -- none, and nothing known


@given(now=some_seconds, received=st.integers(0, 100), waiting=st.integers(0, 100))
def test_without_limits_nothing_ends_and_nobody_looks_again(now: float, received: int, waiting: int) -> None:
    assert Life(limits()).look(now, received=received, sent=100, waiting=waiting) == (None, NEVER)


def test_without_figures_the_age_alone_counts() -> None:
    rules = limits(idle_timeout=1, min_read_rate=1e9, read_grace=1, send_timeout=1, connection_timeout=100)
    marks = Marks(0.0, 0.0)
    assert verdict(rules, marks, None, 50.0, NOTHING) == (None, 100.0)
    assert verdict(rules, marks, None, 100.0, NOTHING)[0] is EndReason.CONNECTION_TIMEOUT
    assert verdict(limits(idle_timeout=1), Marks(0.0, 0.0), None, 50.0, NOTHING) == (None, NEVER)


# -- idle


@pytest.mark.parametrize("which", ["heard", "said"])
def test_the_last_byte_either_way_counts(which: str) -> None:
    life = Life(limits(idle_timeout=10))
    assert life.look(12.0, received=5, sent=5, **{which: 3.0}) == (None, 13.0)
    assert life.look(12.9, received=5, sent=5, **{which: 3.0}) == (None, 13.0)
    assert life.look(13.0, received=5, sent=5, **{which: 3.0})[0] is EndReason.IDLE_TIMEOUT


def test_who_never_says_a_word_is_idle_from_the_beginning() -> None:
    life = Life(limits(idle_timeout=10))
    assert life.look(0.0) == (None, 10.0)
    assert life.look(10.0)[0] is EndReason.IDLE_TIMEOUT


def test_what_is_sent_again_keeps_nobody() -> None:
    """Nothing else has left, so that the kernel's own "last sent" is of something sent again."""
    life = Life(limits(idle_timeout=10))
    assert life.look(1.0, sent=100, gone=50, waiting=50, said=1.0) == (None, 11.0)
    assert life.look(8.0, sent=100, gone=50, waiting=50, said=7.9) == (None, 11.0)
    assert life.look(11.0, sent=100, gone=50, waiting=50, said=10.9)[0] is EndReason.IDLE_TIMEOUT


def test_what_has_just_been_sent_counts_before_the_peer_has_taken_it() -> None:
    life = Life(limits(idle_timeout=10))
    assert life.look(1.0, sent=50, said=1.0) == (None, 11.0)
    assert life.look(11.0, sent=100, waiting=50, said=10.9) == (None, 20.9)


def test_of_what_is_only_glimpsed_there_are_more_looks() -> None:
    """That something has moved is known at the next look, not when; so the limit is overstepped by a look at most."""
    life = Life(limits(idle_timeout=10))

    def figures_at(now: float) -> Traffic:
        moved = min(now, 30.0)
        return traffic(glimpsed=True, heard=moved, said=moved)

    reason, when = life.run(100.0, figures_at)
    assert reason is EndReason.IDLE_TIMEOUT
    assert 40.0 <= when <= 42.5


@given(limit=some_seconds, gaps=st.lists(st.floats(0.01, 0.95), min_size=1, max_size=20))
def test_one_is_cut_the_limit_after_the_last_byte_whatever_came_before(limit: float, gaps: list[float]) -> None:
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap * limit)

    def figures_at(now: float) -> Traffic:
        done = [time for time in times if time <= now]
        return traffic(len(done), heard=done[-1])

    life = Life(limits(idle_timeout=limit))
    reason, when = life.run(1e9, figures_at)
    assert reason is EndReason.IDLE_TIMEOUT
    assert when == pytest.approx(times[-1] + limit)
    assert life.looks <= sum(gaps) + len(gaps) + 2  # a look a timeout, not one a message


# -- age


@given(limit=some_seconds, jitter=st.floats(0, 1), luck=st.floats(0, 1))
def test_jitter_shortens_a_life_by_its_fraction_at_most(limit: float, jitter: float, luck: float) -> None:
    life = Life(limits(connection_timeout=limit, connection_jitter=jitter), luck)
    if jitter * luck < 1:
        reason, due = life.look(0.0)
        assert reason is None
        assert limit * (1 - jitter) <= due * (1 + 1e-9)
        assert due <= limit
        assert life.look(due, received=1000, heard=due)[0] is EndReason.CONNECTION_TIMEOUT
    else:
        assert life.look(0.0)[0] is EndReason.CONNECTION_TIMEOUT


def test_without_jitter_a_life_is_as_long_as_allowed() -> None:
    assert Life(limits(connection_timeout=10, connection_jitter=0.0), luck=0.9).look(9.99) == (None, 10.0)


# -- stalled


def test_a_peer_that_takes_nothing_is_cut() -> None:
    life = Life(limits(send_timeout=10))
    reason, when = life.run(100.0, lambda now: traffic(sent=1000, waiting=1000, said=now))
    assert reason is EndReason.SEND_TIMEOUT
    assert 10 <= when <= 12.5


@given(patience=st.floats(0.1, 100), rate=st.floats(1, 1e5))
def test_a_handler_that_sends_on_does_not_make_up_for_a_peer_that_takes_nothing(patience: float, rate: float) -> None:
    """What waits grows with each look."""
    life = Life(limits(send_timeout=patience))
    reason, when = life.run(
        patience * 20, lambda now: traffic(sent=1 + int(now * rate), waiting=1 + int(now * rate), said=now)
    )
    assert reason is EndReason.SEND_TIMEOUT
    assert patience <= when <= patience * 1.26


@given(patience=st.floats(0.1, 100), more=st.integers(0, 1000))
def test_a_peer_that_takes_a_little_now_and_then_is_not_cut(patience: float, more: int) -> None:
    """Each time a byte, within the limit, however much is sent meanwhile."""
    life = Life(limits(send_timeout=patience))

    def figures_at(now: float) -> Traffic:
        taken, sent = int(now / patience * 2), 1000 + int(now / patience * more)
        return traffic(sent=sent, waiting=sent - taken)

    assert life.run(patience * 20, figures_at) == (None, patience * 20)


@pytest.mark.parametrize("which", [0, 1])
def test_either_of_two_signs_that_the_peer_takes_something_will_do(which: int) -> None:
    """More has been taken of what was sent; or less waits than did at the last look. The other may fall meanwhile."""
    life = Life(limits(send_timeout=10))

    def asked_at(now: float) -> Asked:
        signs = [-int(now), -int(now)]
        signs[which] = int(now / 5)
        return Asked(takes=tuple(signs))

    assert life.run(200.0, lambda now: traffic(sent=1000, waiting=1000), asked_at)[0] is None
    gone = Life(limits(send_timeout=10))
    falls = lambda now: Asked(takes=(-int(now), -int(now)))  # noqa: E731
    assert gone.run(200.0, lambda now: traffic(sent=1000, waiting=1000), falls)[0] is EndReason.SEND_TIMEOUT


def test_nobody_is_cut_for_whom_nothing_waits() -> None:
    assert Life(limits(send_timeout=10)).run(1000.0, lambda now: traffic(sent=1000))[0] is None


def test_what_waited_before_and_was_taken_does_not_count_again() -> None:
    life = Life(limits(send_timeout=10))
    assert life.look(0.0, sent=100, waiting=100) == (None, 10.0)
    assert life.look(9.0, sent=100)[0] is None
    assert life.look(9.5, sent=200, waiting=100) == (None, 19.5)
    assert life.look(19.5, sent=200, waiting=100)[0] is EndReason.SEND_TIMEOUT


# -- slow


def test_a_trickle_is_cut_after_the_grace() -> None:
    life = Life(limits(min_read_rate=100, read_grace=10))
    reason, when = life.run(1000.0, lambda now: traffic(int(now * 10) + 1, heard=now))
    assert reason is EndReason.MIN_READ_RATE
    assert 10 <= when <= 15


@given(rate=st.floats(1, 1e6), factor=st.floats(1.5, 1000), grace=st.floats(1, 100))
def test_a_steady_upload_above_the_rate_is_not(rate: float, factor: float, grace: float) -> None:
    life = Life(limits(min_read_rate=rate, read_grace=grace))
    upload = rate * factor + 2 / grace  # bytes are whole ones
    assert life.run(grace * 30, lambda now: traffic(int(now * upload), heard=now))[0] is None


@given(rate=st.floats(10, 1e6), factor=st.floats(0.01, 0.9), grace=st.floats(1, 100))
def test_a_steady_upload_below_the_rate_is(rate: float, factor: float, grace: float) -> None:
    life = Life(limits(min_read_rate=rate, read_grace=grace))
    upload = max(rate * factor, 3 / grace)  # what sends nothing at all is idle, not slow
    if upload < rate * 0.95:
        reason, when = life.run(grace * 30, lambda now: traffic(1 + int(now * upload), heard=now))
        assert reason is EndReason.MIN_READ_RATE
        assert when <= grace * 2


@given(pieces=st.lists(st.floats(0, 0.9), min_size=1, max_size=5), thinks=st.floats(0.01, 20), grace=some_seconds)
def test_a_short_request_that_waits_for_its_answer_is_never_too_slow(
    pieces: list[float], thinks: float, grace: float
) -> None:
    """In whatever pieces it came within the grace."""
    life = Life(limits(min_read_rate=1e9, read_grace=grace))
    times = sorted((0.3 + piece) * grace for piece in pieces)
    answer = times[-1] + thinks * grace

    def figures_at(now: float) -> Traffic:
        done = [time for time in times if time <= now]
        said = now >= answer
        heard = done[-1] if done else 0.0
        return traffic(len(done), 5 if said else 0, heard=heard, said=answer if said else 0)

    assert life.run(answer + grace * 3, figures_at)[0] is None


def test_one_answer_begins_the_measuring_anew() -> None:
    """Question and answer at leisure: slow, but nobody waits for the rest of anything."""
    life = Life(limits(min_read_rate=100, read_grace=10))
    assert life.run(1000.0, lambda now: traffic(int(now), int(now), heard=now, said=now))[0] is None


def test_who_pauses_longer_than_the_grace_is_measured_anew() -> None:
    life = Life(limits(min_read_rate=100, read_grace=10))

    def figures_at(now: float) -> Traffic:
        return traffic(1 if now < 100 else 2 if now < 200 else 3)  # a byte now and then is the idle timeout's

    assert life.run(300.0, figures_at)[0] is None


def test_a_trickle_after_a_fast_start_is_cut_as_well() -> None:
    life = Life(limits(min_read_rate=100, read_grace=10))
    reason, when = life.run(1000.0, lambda now: traffic(int(min(now, 30) * 1000 + max(0, now - 30)), heard=now))
    assert reason is EndReason.MIN_READ_RATE
    assert 40 <= when <= 60


def test_one_whose_handler_reads_late_is_not_too_slow() -> None:
    """All has come at once, and counts when it is read: not as over TCP."""
    life = Life(limits(min_read_rate=100, read_grace=10))

    def read(now: float) -> int:
        return min(400, int(now / 4) * 20)

    answer = life.run(
        200.0,
        lambda now: traffic(read(now), heard=now // 4 * 4),
        lambda now: Asked(uncounted=400 - read(now), unread=400 - read(now)),
    )
    assert answer[0] is None


@pytest.mark.parametrize("counted", [True, False])
def test_who_sends_on_while_its_handler_reads_nothing_is_not_measured(counted: bool) -> None:
    """Short requests one after the other, the first of which takes long; all the others are read at once then."""
    life = Life(limits(min_read_rate=100, read_grace=10))

    def unread(now: float) -> int:
        return min(20, int(now)) if now < 60 else 0

    def figures_at(now: float) -> Traffic:
        return traffic(10 + (min(20, int(now)) if counted else 20 - unread(now)), heard=min(20.0, now))

    def asked_at(now: float) -> Asked:
        return Asked(unread=unread(now), uncounted=0 if counted else unread(now))

    assert life.run(200.0, figures_at, asked_at)[0] is None


def test_a_trickle_is_cut_though_more_lay_there_before_it_was_read() -> None:
    """A handshake, which is not counted when it is read; and what is encrypted is more than what is read."""
    life = Life(limits(min_read_rate=100, read_grace=10))

    def asked_at(now: float) -> Asked:
        return Asked(uncounted=5000, unread=5000) if now < 3 else NOTHING

    reason, when = life.run(1000.0, lambda now: traffic(int(max(0, now - 3) * 10), heard=now), asked_at)
    assert reason is EndReason.MIN_READ_RATE
    assert when <= 25


@given(handler_lags=st.floats(0, 0.9))
def test_a_trickle_is_cut_though_now_and_then_a_look_finds_a_byte_unread(handler_lags: float) -> None:
    """The handler reads on, only not at once: the window goes on, and its end is seen at the next look."""
    life = Life(limits(min_read_rate=100, read_grace=10))
    late = iter([int(handler_lags * 10 * number) % 10 < handler_lags * 10 - 5 for number in range(1000)])
    reason, when = life.run(
        1000.0, lambda now: traffic(int(now * 10) + 1, heard=now), lambda now: Asked(unread=int(next(late)))
    )
    assert reason is EndReason.MIN_READ_RATE
    assert when <= 100


# -- the next look


@st.composite
def lives(draw: Any) -> tuple[TimeLimits, list[tuple[float, Traffic]]]:
    """Any limits, and what is seen at any times, growing as such figures do."""
    maybe = st.none() | some_seconds
    rules = limits(**{name: draw(maybe) for name in LIMITS}, read_grace=draw(some_seconds))
    now = received = sent = 0.0
    heard = said = 0.0
    seen = []
    for _ in range(draw(st.integers(1, 8))):
        now += draw(st.floats(0.001, 500))
        if draw(st.booleans()):
            received, heard = received + draw(st.integers(1, 1000)), now
        if draw(st.booleans()):
            sent, said = sent + draw(st.integers(1, 1000)), now
        waiting = draw(st.integers(0, int(sent)))
        seen.append((now, traffic(int(received), int(sent), waiting=waiting, heard=heard, said=said)))
    return rules, seen


@given(lives(), st.floats(0, 1))
def test_the_next_look_is_in_the_future_and_in_time(
    life: tuple[TimeLimits, list[tuple[float, Traffic]]], luck: float
) -> None:
    rules, seen = life
    marks = Marks(0.0, luck)
    for now, figures in seen:
        reason, again = verdict(rules, marks, figures, now, NOTHING)
        if reason is not None:
            return
        assert again > now
        if rules.age is not None:
            assert again <= rules.age
        if rules.idle is not None:
            assert again <= max(figures.heard, figures.said) + rules.idle
        if rules.send is not None:
            assert again <= now + rules.send
        if rules.rate is not None:
            assert again <= now + rules.grace
        if (rules.age, rules.idle, rules.send, rules.rate) == (None,) * 4:
            assert again == NEVER


@given(lives(), st.floats(0, 1))
def test_a_reason_is_always_one_of_a_limit_that_is_set(
    life: tuple[TimeLimits, list[tuple[float, Traffic]]], luck: float
) -> None:
    rules, seen = life
    marks = Marks(0.0, luck)
    limit_of = {
        EndReason.IDLE_TIMEOUT: rules.idle, EndReason.CONNECTION_TIMEOUT: rules.age,
        EndReason.MIN_READ_RATE: rules.rate, EndReason.SEND_TIMEOUT: rules.send,
    }  # fmt: skip
    for now, figures in seen:
        reason, _ = verdict(rules, marks, figures, now, NOTHING)
        assert reason is None or limit_of[reason] is not None
