"""The share of each process in an order: nothing left out, nothing twice but a known padding; in two gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from unidd_pl.data.images import TensorImages
from unidd_pl.data.order import Order, Shard
from unidd_pl.features import conv_layers
from unidd_pl.moment_pass import gather_moments
from unidd_pl.networks import build_network
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import Moments
from unidd_pl.teachers import Teacher, freeze

SPEC = DatasetSpec("noise", ("a", "b"), 3, 8, (0.5,) * 3, (0.25,) * 3)
COUNT = 11
TIMEOUT = 120  # seconds


class TestShard:
    @pytest.mark.parametrize("processes", [1, 2, 3, 4, 11, 20])
    @pytest.mark.parametrize("count", [0, 1, 11, 12])
    def test_without_padding_every_image_is_in_one_share(self, processes: int, count: int) -> None:
        shares = [Shard(rank, processes, pad=False) for rank in range(processes)]
        parts = [shard.of(np.arange(count)) for shard in shares]
        assert sorted(np.concatenate(parts).tolist()) == list(range(count))
        assert [len(part) for part in parts] == [shard.count(count) for shard in shares]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    @pytest.mark.parametrize("processes", [1, 2, 3, 4, 11, 20])
    def test_padding_is_the_first_images_once_more(self, processes: int) -> None:
        shares = [Shard(rank, processes) for rank in range(processes)]
        parts = [shard.of(np.arange(COUNT)) for shard in shares]
        length = -(-COUNT // processes)
        assert {len(part) for part in parts} == {length} == {shard.count(COUNT) for shard in shares}
        together = np.stack(parts, axis=1).flatten()
        assert together.tolist() == [position % COUNT for position in range(length * processes)]

    def test_ranks_out_of_range(self) -> None:
        for rank, processes in ((2, 2), (-1, 2), (0, 0)):
            with pytest.raises(ValueError, match=rf"shard: got rank {rank} of {processes}, expected 0 to"):
                Shard(rank, processes)

    def test_alone(self) -> None:
        assert Shard.of_this_process() == Shard(0, 1)


class TestOrder:
    def test_processes_draw_alike_epoch_by_epoch(self) -> None:
        orders = [Order(COUNT, torch.Generator().manual_seed(3), Shard(rank, 2, pad=False)) for rank in range(2)]
        epochs = [np.concatenate([order.draw() for order in orders]).tolist() for _ in range(2)]
        assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
        assert epochs[0] != epochs[1]

    def test_first_out_of_range(self) -> None:
        assert list(Order(COUNT, shard=Shard(1, 2, pad=False), first=5)) == []
        with pytest.raises(ValueError, match="order: got first 6, expected 0 to 5"):
            Order(COUNT, shard=Shard(1, 2, pad=False), first=6)


def noise() -> TensorImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (COUNT, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return TensorImages(pixels, torch.arange(COUNT) % 2)


def teacher() -> Teacher:
    torch.manual_seed(0)
    network = build_network("convnet-w4-d2", SPEC)
    freeze(network)
    return Teacher(network, "convnet-w4-d2", SPEC, None, Path("none"))


def moments_of(shard: Shard) -> tuple[Moments, ...]:
    one = teacher()
    batches = noise().loader(3, shard=shard)
    return gather_moments(one, batches, conv_layers(one.network), "class", SPEC)


def one_process(rank: int, place: str, results: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    shuffled = noise().loader(2, generator=torch.Generator().manual_seed(7), shard=Shard.of_this_process())
    labels = [int(label) for _, batch in shuffled for label in batch]
    mine = moments_of(Shard.of_this_process(pad=False))
    gathered: list[Any] = [None, None]
    distributed.all_gather_object(gathered, [[tensor.numpy() for tensor in one.tensors().values()] for one in mine])
    results.put((rank, labels, gathered))
    distributed.destroy_process_group()


def test_two_processes_see_every_image_once_and_their_moments_merge_to_the_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=one_process, args=(rank, str(tmp_path / "store"), results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = {rank: (labels, gathered) for rank, labels, gathered in (results.get(timeout=TIMEOUT) for _ in processes)}
    for process in processes:
        process.join(TIMEOUT)
        assert process.exitcode == 0
    order = Order(COUNT, torch.Generator().manual_seed(7)).draw()
    expected = (order % 2)[np.arange(12) % COUNT]  # padded to six each
    assert [found[rank][0] for rank in range(2)] == [expected[0::2].tolist(), expected[1::2].tolist()]
    layers = zip(*found[0][1], strict=True)
    merged = [Moments(*map(torch.tensor, a)).merge(Moments(*map(torch.tensor, b))) for a, b in layers]
    for got, whole in zip(merged, moments_of(Shard(0, 1)), strict=True):
        for name, value in whole.tensors().items():
            torch.testing.assert_close(got.tensors()[name], value, rtol=1e-6, atol=1e-7)
