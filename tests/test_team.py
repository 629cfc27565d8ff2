"""Processes before their process group: who goes first, and statistics that all of them gather together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import DistNetworkError, DistStoreError

from unidd_pl import statistics, statistics_cache
from unidd_pl.console import ProcessLost
from unidd_pl.data.folder import ImageFolderData
from unidd_pl.statistics import Statistics, gather_statistics
from unidd_pl.statistics_cache import StatisticsRecipe, obtain_statistics
from unidd_pl.teachers import Teacher
from unidd_pl.team import ALONE, Team

LAYERS = ("layers.conv.0", "layers.conv.1")


class Notes:
    """A board within one process, for threads that stand for processes."""

    def __init__(self, patience: float) -> None:
        self.patience = patience  # seconds
        self.left: dict[str, bytes] = {}
        self.since: dict[str, float] = {}  # first looks for notes that were not there
        self.changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self.changed:
            self.left[key] = value.encode()
            self.changed.notify_all()

    def get(self, key: str) -> bytes:
        return self.left[key]

    def check(self, keys: list[str]) -> bool:
        now = time.monotonic()
        with self.changed:
            missing = [key for key in keys if key not in self.left]
            if any(now - self.since.setdefault(key, now) > self.patience for key in missing):
                raise DistNetworkError("Connection reset by peer")
        return not missing

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: all(key in self.left for key in keys), timeout=self.patience):
                raise DistStoreError("wait timeout")


def in_each(size: int, work: Callable[[Team], Any], patience: float = 60.0) -> list[Any]:
    """Return what a function gives in each process of a team, or what it raises."""
    notes, results = Notes(patience), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Team(rank, size, notes))
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_first_goes_first_each_time() -> None:
    order: list[tuple[int, int]] = []

    def work(team: Team) -> None:
        for turn in range(2):
            with team.first_alone("a block"):
                if team.is_first:
                    time.sleep(0.05)
                order.append((turn, team.rank))

    in_each(3, work)
    assert next(rank for turn, rank in order if turn == 0) == 0
    assert next(rank for turn, rank in order if turn == 1) == 0
    assert len(order) == 6


def test_all_do_what_the_first_decides() -> None:
    assert in_each(3, lambda team: team.decided_by_first(team.rank == 0, "a question")) == [True] * 3
    assert in_each(3, lambda team: team.decided_by_first(team.rank == 1, "a question")) == [False] * 3


def test_the_others_end_when_the_first_has_ended_its_work() -> None:
    ended: list[int] = []

    def work(team: Team) -> None:
        with team.first_ends_last("results"):
            if team.is_first:
                time.sleep(0.1)
                ended.append(0)
        ended.append(10 + team.rank)

    assert in_each(3, work) == [None] * 3
    assert ended[0] == 0
    assert ended[-1] == 10  # once the others have read that it is done
    assert sorted(ended) == [0, 10, 11, 12]


def test_the_others_miss_a_first_that_fails_in_its_work() -> None:
    def work(team: Team) -> None:
        with team.first_ends_last("results"):
            if team.is_first:
                raise ValueError("no space left")

    failed, missed = in_each(2, work, patience=0.5)
    assert str(failed) == "no space left"
    assert isinstance(missed, ProcessLost)
    assert "the first process has ended in the stage results" in str(missed)


def test_the_first_does_not_wait_for_ever_for_one_that_is_lost() -> None:
    def work(team: Team) -> None:
        if not team.is_first:
            return
        with team.first_ends_last("results"):
            pass

    assert in_each(2, work, patience=0.5) == [None, None]


def test_a_single_process_waits_for_nobody() -> None:
    with ALONE.first_ends_last("results"):
        pass
    with ALONE.first_alone("a block"):
        ALONE.gathered_by_first("a block")
    assert ALONE.decided_by_first(True, "a question")


def test_a_process_that_is_lost_is_named() -> None:
    class Gone(Notes):
        def check(self, keys: list[str]) -> bool:
            raise DistNetworkError("Connection reset by peer")

    with pytest.raises(ProcessLost, match=r"the first process has ended in the stage teacher \(Connection reset"):
        Team(1, 2, Gone(0)).first_alone("teacher").__enter__()
    with pytest.raises(ProcessLost, match="process 1 has ended in the stage shares"):
        Team(0, 2, Gone(0)).gathered_by_first("shares")


def obtained(size: int, teacher: Teacher, data: ImageFolderData, cache: Path, patience: float = 60.0) -> list[Any]:
    """Return what `obtain_statistics` gives in each process of a team."""
    recipe = StatisticsRecipe(batch_size=4)
    networks = [deepcopy(teacher.network) for _ in range(size)]  # each process has its own

    def work(team: Team) -> tuple[Statistics, Path, bool]:
        mine = replace(teacher, network=networks[team.rank])
        return obtain_statistics(recipe, mine, data, LAYERS, "class", cache, team=team)

    return in_each(size, work, patience)


@pytest.mark.parametrize("size", [2, 3, 40])  # forty processes for thirty images: some have none
def test_statistics_of_several_processes_are_those_of_one(
    size: int, tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    whole = gather_statistics(tiny_teacher, folder_data, LAYERS, "class", batch_size=16)
    for found, path, gathered in obtained(size, tiny_teacher, folder_data, tmp_path):
        assert gathered
        assert found.made_from == whole.made_from
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        for one, other in zip(found.moments, whole.moments, strict=True):
            torch.testing.assert_close(one.tensors(), other.tensors(), rtol=1e-5, atol=1e-6)  # features are float32
    again = obtained(size, tiny_teacher, folder_data, tmp_path)
    assert [gathered for *_, gathered in again] == [False] * size


def test_each_process_reads_its_share_alone(
    tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[tuple[int, int]] = []
    totals = statistics.running_totals

    def counted(teacher: Teacher, batches: Any, *rest: Any) -> Any:
        images = [images for images, _ in batches]
        shares.append((len(images), sum(len(one) for one in images)))
        return totals(teacher, batches, *rest)

    monkeypatch.setattr(statistics, "running_totals", counted)
    obtained(2, tiny_teacher, folder_data, tmp_path)
    assert shares == [(4, 15)] * 2


def test_a_share_that_was_done_is_not_done_again(
    tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*_: Any) -> None:
        raise ValueError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(statistics_cache, "save_statistics", full)
        full_disk, lost = obtained(2, tiny_teacher, folder_data, tmp_path, patience=1)
    assert str(full_disk) == "no space left"
    assert isinstance(lost, ProcessLost)
    assert sorted(path.name[16:] for path in tmp_path.glob("*.safetensors")) == [
        ".part-0-of-2.safetensors",
        ".part-1-of-2.safetensors",
    ]
    capsys.readouterr()
    obtained(2, tiny_teacher, folder_data, tmp_path)
    assert capsys.readouterr().out.count("15 images were done before") == 2
    assert not list(tmp_path.glob("*.part*"))


def test_processes_without_a_common_disk_are_told(
    tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    networks = [deepcopy(tiny_teacher.network) for _ in range(2)]

    def work(team: Team) -> Any:
        mine = replace(tiny_teacher, network=networks[team.rank])
        cache = tmp_path / f"disk {team.rank}"
        with pytest.raises((ValueError, ProcessLost)) as refused:
            obtain_statistics(StatisticsRecipe(), mine, folder_data, LAYERS, "mean", cache, team=team)
        return str(refused.value)

    first, _ = in_each(2, work, patience=1)
    assert "no statistics of process 1 at" in first
    assert "expected a cache_dir on a disk that all machines share; give one with --cache_dir" in first
