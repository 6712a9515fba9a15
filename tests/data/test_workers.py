import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from finetune.data.workers import start_worker


class Processes(Dataset):
    """Gives the number of the process that is asked."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.tensor(os.getpid())


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_the_group_does_not_end_the_workers(name):
    loader = DataLoader(Processes(), num_workers=2, worker_init_fn=start_worker)
    shown = []
    for process in loader:
        if not shown:
            assert process.item() != os.getpid()
            killer = os.fork()  # the parent's own SIGTERM would be obeyed
            if killer == 0:
                os.kill(process.item(), getattr(signal, name))
                os._exit(0)
            os.waitpid(killer, 0)
        shown.append(process.item())
    assert len(shown) == 40
    assert len(set(shown)) == 2


def test_a_worker_ends_when_its_parent_says_so():
    loader = DataLoader(Processes(), num_workers=1, worker_init_fn=start_worker)
    iterator = iter(loader)
    worker = next(iterator).item()
    process = iterator._workers[0]
    assert process.pid == worker
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(iterator)
