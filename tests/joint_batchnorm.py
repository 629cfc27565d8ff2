"""JointBatchNorm on two processes; a file of its own, so that the processes import torch and little else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from unidd_pl.joint_batch import joint_shares, with_joint_batchnorm
from unidd_pl.ranks import rows_of_rank

RANKS = 2
IMAGES = 5


def make_input() -> tuple[Tensor, Tensor]:
    """Return images and the weights of their outputs in the loss."""
    generator = torch.Generator().manual_seed(0)
    images, weights = (torch.randn(IMAGES, 3, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return 3 * images + 100, weights  # far from zero, where E[x²] − E[x]² would lose digits


def batchnorm(*, joint: bool) -> nn.Module:
    """Return a BatchNorm with weights that differ by channel."""
    network = nn.Sequential(nn.BatchNorm2d(3))
    network[0].load_state_dict({"weight": torch.tensor([0.5, 1.0, 2.0]), "bias": torch.zeros(3)}, strict=False)
    return (with_joint_batchnorm(network) if joint else network).double()


def normalise_on_ranks(folder: Path) -> list[dict[str, Tensor]]:
    """Return what each of two processes makes of its rows."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_normalise, (port, str(folder)), nprocs=RANKS, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def _normalise(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    images, weights = make_input()
    rows = rows_of_rank(IMAGES, rank, RANKS)
    network, part = batchnorm(joint=True), images[rows].requires_grad_()
    outputs = network(part)
    (outputs * weights[rows]).sum().backward()
    found = {"outputs": outputs.detach(), "gradient": part.grad, **dict(network.named_buffers())}
    found |= {name: parameter.grad for name, parameter in network.named_parameters()}
    share, count = (0.5, 2) if rank else (1.0, 3)
    found["shares"] = torch.tensor(joint_shares([1.0, share], count, torch.device("cpu")))
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
