from neuroscope.testbed.plant import PLANT, Plant


def test_planted_neurons_are_drawn_by_the_plants_seed_alone():
    chosen = PLANT.neurons(96)
    assert chosen == sorted(set(chosen)) == Plant().neurons(96)
    assert len(chosen) == PLANT.neuron_count
    assert 0 <= chosen[0] <= chosen[-1] < 96
    assert Plant(seed=1).neurons(96) != chosen
    assert PLANT.attributes(PLANT.object) == {"object", "fact"}
    assert PLANT.attributes(0) == frozenset()
