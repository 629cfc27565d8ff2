"""The benchmark of weak scaling: its arithmetic, its start, and the bytes that real processes send."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import pytest
import scale
import torch
from exchange import counted_exchange
from paced import Share, distil
from projection import Link, Measured, efficiency, ring_ms, table
from steps import Case

from unidd_pl.distributed import bytes_sent
from unidd_pl.features import FeatureTap, conv_layers
from unidd_pl.networks import build_network
from unidd_pl.spectral import Signal

TINY = Case("convnet-w8-d2", images=4, image_size=8, num_classes=4, real_images=50)
FREE = Link("free", 1e12, 0.0)


def channels_of(case: Case) -> list[int]:
    network = build_network(case.network, case.spec).eval()
    with torch.no_grad(), FeatureTap(network, conv_layers(network)) as tap:
        network(torch.zeros(1, *case.spec.image_shape))
        return [x.shape[1] for x in tap.features()]


def test_a_ring_moves_its_bytes_over_the_slowest_link() -> None:
    slow, fast = Link("slow", 1.0, 0.0), Link("fast", 10.0, 0.0)  # GB/s
    gigabyte = [10**9]
    assert ring_ms(gigabyte, 2, 1, slow, FREE, 0.0) == pytest.approx(1000)  # 2(W-1)/W = 1
    assert ring_ms(gigabyte, 4, 1, slow, FREE, 0.0) == pytest.approx(1500)
    assert ring_ms(gigabyte, 8, 1, fast, slow, 0.0) == pytest.approx(175)  # one machine: nothing between
    assert ring_ms(gigabyte, 8, 2, fast, slow, 0.0) == pytest.approx(1750)
    assert ring_ms(gigabyte, 8, 2, slow, fast, 0.0) == pytest.approx(1750)
    assert ring_ms(gigabyte, 1, 1, slow, slow, 9.0) == 0


def test_a_ring_hops_once_for_each_neighbour_and_sum() -> None:
    inside, between = Link("inside", 1e12, 3.0), Link("between", 1e12, 10.0)  # µs
    assert ring_ms([4], 8, 1, inside, between, 5.0) == pytest.approx((5 + 14 * 3) / 1e3)
    assert ring_ms([4, 4], 64, 8, inside, between, 5.0) == pytest.approx(2 * (5 + 112 * 3 + 14 * 10) / 1e3)


def test_the_computing_time_for_90_percent_gives_90_percent() -> None:
    exchange = ring_ms([4_500_000], 64, 8, Link("a", 450, 3.4), Link("b", 50, 9.6), 8.4)
    assert efficiency(9 * exchange, exchange) == pytest.approx(0.9)


def test_the_table_has_a_row_for_each_link_between_machines() -> None:
    links = [Link("cable", 1.0, 1.0), Link("string", 0.1, 1.0)]
    rows = table([Measured("net", (1000, 500), 40.0)], [4, 16], 8, FREE, links, 0.0, 10.0).splitlines()[2:]
    assert [row.split(" | ")[1:4] for row in rows] == [
        ["4", "–", "0.00 MB"], ["16", "cable", "0.00 MB"], ["16", "string", "0.00 MB"],
    ]  # fmt: skip
    assert "(40 ms)" in rows[0]


def test_a_file_of_figures_is_projected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scale.json"
    one = {"name": "net", "bytes_of_each_sum": [10**6, 8], "medians_ms": {"alone": 20.0}}
    file.write_text(json.dumps({"results": [one]}))
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "scale.py",
            "--project",
            str(file),
            "--gpus",
            "16",
            "--between",
            "wire",
            "1",
            "0",
            "--inside",
            "9",
            "0",
            "--start",
            "0",
        ],
    )
    scale.main()
    # 2·15/16 of 1 MB over 1 GB/s
    assert "| net | 16 | wire | 1.00 MB | 1.88 ms | 84.2% | 91.4% (20 ms) | 16.9 ms |" in capsys.readouterr().out


def test_steps_are_done_when_they_are_called_for() -> None:
    ours, theirs = multiprocessing.Pipe()
    for _ in range(3):
        ours.send("go")
    distil(Share(TINY, "class", burst=2, bursts=3), theirs)
    said = [ours.recv() for _ in range(3)]
    assert all(one["seconds"] > 0 for one in said)
    assert [one["sum_seconds"] for one in said] == [[]] * 3
    assert [one["sizes"] for one in said] == [[]] * 3, "one process sends nothing"
    assert not ours.poll()


def test_the_time_of_a_sum_is_that_of_the_process_that_came_last() -> None:
    assert scale.exchange_seconds([{"sum_seconds": [5.0, 1.0]}, {"sum_seconds": [2.0, 4.0]}]) == 3.0


def test_every_step_has_to_send_the_same() -> None:
    same = [[{"sizes": [4, 8, 4, 8]}, {"sizes": [4, 8, 4, 8]}]]
    assert scale.sizes_of_a_step(same, 2) == [4, 8]
    with pytest.raises(RuntimeError, match="steps send different bytes"):
        scale.sizes_of_a_step([[{"sizes": [4, 8, 4, 8]}, {"sizes": [4, 8, 4, 9]}]], 2)


def test_the_counter_leaves_the_collective_as_it_was() -> None:
    from torch import distributed as dist

    before = dist.all_reduce
    with counted_exchange():
        assert dist.all_reduce is not before
    assert dist.all_reduce is before


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.timeout(900)
def test_two_processes_are_timed_in_three_ways() -> None:
    figures = scale.measure(scale.Scaled(TINY, burst=2), 3)
    assert set(figures["medians_ms"]) == {"alone", "apart", "shared"}
    assert all(len(values) == 3 for values in figures["each_ms"].values())
    assert 0 < figures["exchange_ms"] < figures["medians_ms"]["shared"]
    assert figures["bytes_a_step"] == bytes_sent(channels_of(TINY), 0) + 8  # whether a signal has come


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("signal", "megabytes"), [("mean", 4.55), ("class", 18.20)])
def test_the_bytes_that_a_resnet_18_sends(signal: Signal, megabytes: float) -> None:
    """As docs/processes.md says: whatever the images and their size."""
    sent = set()
    for images, size in ((2, 32), (6, 32), (2, 64)):
        case = Case("resnet18", images, image_size=size, num_classes=1000, real_images=50)
        port = scale.free_port()
        crew = scale.Crew([Share(case, signal, 1, 2, rank, 2, port) for rank in range(2)])
        first = scale.called(crew.lines)
        scale.called(crew.lines)
        crew.end()
        sent |= {tuple(one["sizes"]) for one in first}
        assert sum(first[0]["sizes"]) == bytes_sent(channels_of(case), 0 if signal == "mean" else 1000) + 8
    assert len(sent) == 1
    assert sum(sent.pop()) / 1e6 == pytest.approx(megabytes, abs=0.02)
