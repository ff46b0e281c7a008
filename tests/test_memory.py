"""Peak memory of real sizes against the bounds that the docs promise; `python -m benchmarks.memory` measures all."""

import pytest

from benchmarks import memory


def test_a_broken_bound_is_an_error():
    memory.check({memory.SITES: 2000.0, memory.FEW: 500.0, memory.MANY: 510.0})
    with pytest.raises(AssertionError, match="listing the sites, without weights: 2,100 MiB, and 2,048 are allowed"):
        memory.check({memory.SITES: 2100.0})
    with pytest.raises(AssertionError, match="10,000 prompts: 600 MiB, against 500 for 64 prompts"):
        memory.check({memory.FEW: 500.0, memory.MANY: 600.0})


@pytest.mark.slow
def test_sites_of_sdxl_rankings_of_real_size_and_many_prompts_stay_within():
    memory.check({name: memory.peak_of(name) for name in (memory.SITES, memory.KEYS, memory.FEW, memory.MANY)})
