"""Other ways to do the same work find the same, as the benchmark itself demands before it compares times."""

import pytest

pytest.importorskip("nnsight", reason="install neuroscope[bench]")


@pytest.mark.slow
@pytest.mark.parametrize("job", ["LOCOGEN sweep", "recording"])
def test_all_ways_find_the_same_with_as_many_rows(job):
    from benchmarks import peers

    found = peers.compared("sd1/layer", job, steps=2, rounds=1)
    assert list(found) == list(peers.JOBS[job])
    assert len({rows for rows, _ in found.values()}) == 1
