"""Data-parallel training with two processes, as ``torchrun`` would start them."""

import socket

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import irevnet
from networks import SMALL

NAME = "irevnet_digits_bijective"


def network(streams):
    torch.manual_seed(0)
    model = irevnet.create_model(NAME, **SMALL[NAME], backward="reversible", streams=streams)
    # Evaluation mode: batch statistics of half a batch are not those of the whole.
    return model.eval()


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(8, 1, 8, 8, generator=generator), torch.arange(8)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def train_half(rank, port, streams, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = DistributedDataParallel(network(streams))
    images, labels = (half.chunk(2)[rank] for half in batch())
    for _ in range(2):  # the second pass fails if the first left a gradient unreduced
        model.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
    torch.save(gradients(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("streams", ["float", "fixed"])
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(streams, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(train_half, (port, streams, str(tmp_path)), nprocs=2)
    model = network(streams)
    images, labels = batch()
    functional.cross_entropy(model(images), labels).backward()
    expected = gradients(model)
    for rank in range(2):
        actual = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
