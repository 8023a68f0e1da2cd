import torch

from zs_nemo.training.platform import Platform


def test_cuda_means_cpu_inside_the_context_and_nothing_stays_changed_outside():
    before = torch.cuda.current_device, torch.cuda.synchronize, torch.Tensor.cuda
    with Platform(use_gpu=False, rank=0).active():
        tensor = torch.zeros(2, device="cuda")
        assert tensor.device.type == "cpu"
        assert torch.empty(1, device=torch.cuda.current_device()).device.type == "cpu"
        assert tensor.type() == "torch.cuda.FloatTensor"
        assert tensor.type(torch.float64).dtype is torch.float64
        assert tensor.cuda() is tensor
        torch.cuda.synchronize()
    assert (torch.cuda.current_device, torch.cuda.synchronize, torch.Tensor.cuda) == before
    assert torch.zeros(1).type() == "torch.FloatTensor"


def test_an_error_inside_the_context_also_restores():
    before = torch.Tensor.cuda
    try:
        with Platform(use_gpu=False, rank=0).active():
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.Tensor.cuda is before
