import fuzz


def test_mutated_files_are_the_original_or_refused_with_a_reason():
    """Some here; `fuzz.py` is the same with as many as one likes."""
    outcomes, slowest, grown = fuzz.run(600, seed=1)
    refused = sum(number for (_, outcome), number in outcomes.items() if outcome == "refused")
    assert refused > 400 and ("as_bytes", "sound") not in outcomes and ("as_text", "sound") not in outcomes
    assert slowest < 5
    assert grown < 8 * (fuzz.LIMITS.file_bytes + fuzz.LIMITS.decoded_bytes) / 2**20
