import fuzz
import pytest


@pytest.mark.slow
def test_mutated_files_are_the_original_or_refused_with_a_reason():
    """Some here, in seconds and MiB of this process; `fuzz.py` is the same with as many as one likes."""
    outcomes, slowest, grown = fuzz.run(2000, seed=1)
    refused = sum(number for (_, outcome), number in outcomes.items() if outcome == "refused")
    assert refused > 1300 and ("as_bytes", "sound") not in outcomes and ("as_text", "sound") not in outcomes
    assert {way for way, _ in outcomes} == {way.__name__ for way in fuzz.WAYS}
    assert outcomes["announcing", "sound"] and outcomes["recoded", "sound"]  # not all is refused for its form
    assert slowest < 2 and grown < 200
