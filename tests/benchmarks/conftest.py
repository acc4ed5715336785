import pytest
import torch


@pytest.fixture(scope="package")
def one_thread():
    """Both sides on one thread, so that their CPU times compare."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
