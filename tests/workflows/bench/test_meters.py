import time

import torch

from workflows.bench.meters import cost


def test_peak_is_what_was_held_at_once_and_given_back() -> None:
    with cost("cpu") as nothing:
        pass
    with cost("cpu") as large:
        for _ in range(3):
            torch.ones(64 << 18)  # 64 MiB
    with cost("cpu") as after:
        pass
    assert 60 < large.peak_mib < 100
    assert nothing.peak_mib < 8
    assert after.peak_mib < 8


def test_seconds_are_of_the_processor_not_of_the_wall() -> None:
    with cost("cpu") as asleep:
        time.sleep(0.2)
    with cost("cpu") as busy:
        begun = time.process_time()
        while time.process_time() - begun < 0.1:
            pass
    assert asleep.seconds < 0.1 <= busy.seconds < 0.2
