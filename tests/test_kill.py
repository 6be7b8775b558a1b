import kill


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """Six here; `kill.py` kills the commands themselves, too, as often as one likes."""
    assert sum(kill.killed_writers(tmp_path, 6).values()) == 6
