from zs_nemo.cluster.silence import Silence


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_is_the_time_since_the_first_open_question_or_the_last_answer() -> None:
    clock = Clock()
    silence = Silence(clock)
    clock.now += 50
    assert silence.seconds == 0, "nobody asks"
    silence.asked()
    silence.asked()
    clock.now += 10
    assert silence.seconds == 10
    silence.answered()
    clock.now += 3
    assert silence.seconds == 3 and silence.is_asked
    silence.answered()
    clock.now += 1000
    assert silence.seconds == 0 and not silence.is_asked


def test_a_process_that_never_answers_is_found_out_by_callers_with_little_patience() -> None:
    clock = Clock()
    silence = Silence(clock)
    for _ in range(4):
        silence.asked()
        clock.now += 10
        silence.withdrawn()
        clock.now += 500
    silence.asked()
    assert silence.seconds == 40, "the time in which nobody asked does not count"
