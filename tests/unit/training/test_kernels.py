from types import SimpleNamespace

import pytest
import torch

from zs_nemo.training import kernels
from zs_nemo.training.kernels import RmsNorm, SwiGlu, rotary

CONFIG = SimpleNamespace(params_dtype=torch.float32, gated_linear_unit=True, sequence_parallel=False)


def compare(function, oracle, *leaves):
    results = []
    for call in (function, oracle):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        out = call(*inputs)
        out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape))
        results.append([out.detach(), *(x.grad for x in inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_the_norm_and_its_gradients_equal_pytorchs():
    norm, oracle = RmsNorm(CONFIG, 24, eps=1e-3), torch.nn.RMSNorm(24, eps=1e-3)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(24))
        oracle.weight.copy_(norm.weight)
    compare(norm, oracle, torch.randn(5, 1, 24))
    torch.testing.assert_close(norm.weight.grad, oracle.weight.grad)


def test_the_gated_unit_and_its_gradient_equal_silu_times_up():
    compare(
        SwiGlu(CONFIG),
        lambda x: torch.nn.functional.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        torch.randn(5, 1, 24),
    )


def test_rotation_equals_multiplication_by_a_complex_number():
    angles = torch.rand(5, 1, 4) * 6

    def oracle(x):
        rotated = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([rotated.real, rotated.imag], -1)

    compare(lambda x: rotary(x, angles.cos(), angles.sin()), oracle, torch.randn(5, 3, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_same_bits_with_and_without_gradients(dtype):
    x = torch.randn(7, 1, 24, dtype=dtype)
    norm = RmsNorm(SimpleNamespace(params_dtype=dtype, sequence_parallel=False), 24)
    with torch.no_grad():
        without = SwiGlu(CONFIG)(norm(x))
    assert torch.equal(without, SwiGlu(CONFIG)(norm(x.requires_grad_())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_compiled_for_a_gpu_computes_what_a_cpu_does(dtype):
    x, grad = torch.randn(5, 2, 24, dtype=dtype), torch.randn(5, 2, 12, dtype=dtype)
    near = {"atol": 1e-6, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 0.02, "rtol": 0.02}
    leaf = x.clone().requires_grad_()
    out = SwiGlu(CONFIG)(leaf)
    out.backward(grad)
    torch.testing.assert_close(kernels.gated(x), out.detach(), **near)
    torch.testing.assert_close(kernels.gated_grad(grad, x), leaf.grad, **near)
    angles = torch.rand(5, 1, 12)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    torch.testing.assert_close(kernels.rotated(x, cos, sin), rotary(x, cos, sin), **near)
