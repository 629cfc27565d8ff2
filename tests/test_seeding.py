"""Seeds that are a pure function of the place of a draw."""

from __future__ import annotations

import itertools

import torch

from unidd_pl.seeding import generator_for, seed_for


def test_every_part_of_the_place_matters() -> None:
    places = [
        (0, "augment", 1, 2),
        (1, "augment", 1, 2),
        (0, "augment", 2, 1),
        (0, "augment", 12),
        (0, "start", 1, 2),
        (0, "augment", "1", 2),
        (0, "augment", 1, 2, 0),
        (0, "aug", "ment", 1, 2),
        (0,),
    ]
    seeds = {place: seed_for(*place) for place in places}
    assert len(set(seeds.values())) == len(places), seeds


def test_seeds_do_not_change_between_versions() -> None:
    # A resumed or repeated run draws the same numbers only as long as these values stay.
    assert seed_for(0, "augment", 1, 2, 3) == 3256905333940326606
    assert seed_for(7, "start", 0, 1) == 3873774422178545331


def test_seeds_fit_a_generator() -> None:
    seeds = [seed_for(seed, "x", place) for seed, place in itertools.product((0, 1, 2**62), range(50))]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62, "the upper half of the range is used"


def test_a_generator_starts_anew_at_its_place_and_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    first = torch.rand(4, generator=generator_for(0, "augment", 1))
    assert torch.equal(first, torch.rand(4, generator=generator_for(0, "augment", 1)))
    assert not torch.equal(first, torch.rand(4, generator=generator_for(0, "augment", 2)))
    assert torch.equal(torch.get_rng_state(), before)
