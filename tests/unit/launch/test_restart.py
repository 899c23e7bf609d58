from hypothesis import given
from hypothesis import strategies as st

from minedraft.errors import EXIT_CONFIG
from minedraft.launch.restart import ESSENTIAL, LOADING, OPTIONAL, GiveUp, ProcessEnd, Restart, next_action

CODES = st.sampled_from([-9, -6, 0, 1, 70, 137])
GAPS = st.lists(st.floats(0.0, 400.0), min_size=1, max_size=20)
RULES = st.sampled_from([ESSENTIAL, OPTIONAL, LOADING])


def history(gaps: list[float], code: int = 70) -> list[ProcessEnd]:
    """Ends with these seconds before each."""
    at_s, ends = 0.0, []
    for gap in gaps:
        at_s += gap
        ends.append(ProcessEnd(at_s, code))
    return ends


def test_the_pause_doubles_until_the_budget_is_spent():
    actions = [next_action(history([1.0] * n), float(n)) for n in range(1, 7)]
    assert [action.after_s for action in actions[:5]] == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert actions[5] == GiveUp("it has ended 6 times within 300 s, the limit is 5 restarts")


def test_what_only_accelerates_is_tried_again_slowly_for_good():
    for num_ends in (6, 7, 30):
        assert next_action(history([1.0] * num_ends), float(num_ends), OPTIONAL) == Restart(30.0, num_ends)


def test_a_process_that_was_never_ready_gets_two_more_tries():
    assert [type(next_action(history([1.0] * n), float(n), LOADING)) for n in (1, 2, 3)] == [Restart, Restart, GiveUp]


@given(gaps=GAPS, rules=RULES)
def test_a_wrong_configuration_is_never_retried(gaps, rules):
    ends = [*history(gaps)[:-1], ProcessEnd(sum(gaps), EXIT_CONFIG)]
    assert isinstance(next_action(ends, ends[-1].at_s, rules), GiveUp)


@given(gaps=GAPS, code=CODES, rules=RULES)
def test_a_pause_is_within_its_bounds_and_only_the_budget_ends_restarts(gaps, code, rules):
    ends = history(gaps, code)
    now_s = ends[-1].at_s
    in_window = sum(1 for end in ends if now_s - end.at_s <= rules.window_s)
    match next_action(ends, now_s, rules):
        case Restart(after_s, number):
            assert rules.first_backoff_s <= after_s <= rules.last_backoff_s
            assert number == in_window
            assert rules.is_optional or in_window <= rules.budget
        case GiveUp():
            assert not rules.is_optional
            assert in_window > rules.budget


@given(gaps=GAPS, code=CODES, rules=RULES)
def test_what_happened_before_the_window_changes_nothing(gaps, code, rules):
    ends = history(gaps, code)
    now_s = ends[-1].at_s
    recent = [end for end in ends if now_s - end.at_s <= rules.window_s]
    assert next_action(ends, now_s, rules) == next_action(recent, now_s, rules)


@given(
    codes=st.lists(CODES, min_size=1, max_size=300), lives=st.lists(st.floats(0.0, 20.0), min_size=300, max_size=300)
)
def test_no_history_makes_a_hot_loop(codes, lives):
    """Followed as the launcher does, in any window there are at most so many starts as the backoff allows."""
    now_s, ends, starts = 0.0, [], [0.0]
    for code, life_s in zip(codes, lives, strict=False):
        now_s += life_s
        ends.append(ProcessEnd(now_s, code))
        action = next_action(ends, now_s, OPTIONAL)
        assert isinstance(action, Restart)
        now_s += action.after_s
        starts.append(now_s)
    for start_s in starts:
        in_window = [other for other in starts if start_s <= other < start_s + 300.0]
        assert len(in_window) <= 2 * OPTIONAL.budget + 300.0 / OPTIONAL.last_backoff_s
