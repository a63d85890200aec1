# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What the losses refuse, how many products they make, and in what the head's gradient is summed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trl_tempkd import chunked_kd_loss, kd_loss
from trl_tempkd.errors import UsageError, UsageTypeError


N, V, H = 12, 40, 8


def operands(dtype=torch.float64, n=N, v=V):
    generator = torch.Generator().manual_seed(0)
    sizes = {"student_hidden": (n, H), "student_weight": (v, H), "teacher_hidden": (n, H), "teacher_weight": (v, H)}
    return {
        name: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype) for name, size in sizes.items()
    }


def labels(*values):
    return torch.tensor([*values, *range(N - len(values))])


class Products(TorchDispatchMode):
    """Counts the matmuls, and what is allocated in the head's shape."""

    def __init__(self):
        super().__init__()
        self.count, self.of_the_head = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.count += 1
        if function.overloadpacket in (torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten.empty):
            self.of_the_head += result.shape == (V, H)
        return result


class TestProducts:
    def count(self, grad: bool, **options):
        given = operands(torch.float32)
        for name in ("student_hidden", "student_weight"):
            given[name].requires_grad_()  # as a parameter does, under `no_grad` too
        with torch.set_grad_enabled(grad), Products() as products:
            chunked_kd_loss(**given, labels=labels(), compile=False, **options)
        return products

    def test_four_with_a_gradient(self):
        found = self.count(True)
        assert (found.count, found.of_the_head) == (4, 1)

    @pytest.mark.parametrize("options", [{}, {"metrics": True}, {"divergence": "tvd", "metrics": ["kl_tau1"]}])
    def test_two_without(self, options):
        found = self.count(False, **options)
        assert found.count == 2 and found.of_the_head == 0


class TestSums:
    def test_a_head_in_bf16(self):
        """Many chunks are as exact as one: what they add up is summed in fp32."""
        errors = {}
        for chunk in (4096, 16):
            given = operands(torch.bfloat16, n=4096)
            given["student_weight"].requires_grad_()
            chunked_kd_loss(**given, chunk_size=chunk).loss.backward()
            exact = {name: value.detach().double() for name, value in given.items()}
            exact["student_weight"].requires_grad_()
            chunked_kd_loss(**exact).loss.backward()
            gradient, expected = given["student_weight"].grad, exact["student_weight"].grad
            assert gradient.dtype == torch.bfloat16
            errors[chunk] = ((gradient.double() - expected).norm() / expected.norm()).item()
        assert errors[16] < 1.5 * errors[4096] and errors[4096] < 0.03, errors


class TestSecondDerivative:
    def test_create_graph(self):
        given = operands()
        given["student_hidden"].requires_grad_()
        loss = chunked_kd_loss(**given).loss
        with pytest.raises(UsageError, match="has no second derivative, which `create_graph=True` asks for"):
            torch.autograd.grad(loss, given["student_hidden"], create_graph=True)

    def test_transforms(self):
        given = operands()
        hidden = given.pop("student_hidden")
        with pytest.raises(UsageError, match="can't be transformed by"):
            torch.func.grad(lambda x: chunked_kd_loss(student_hidden=x, **given).loss)(hidden)

    def test_the_dense_loss_has_one(self):
        z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        v = torch.randn(3, 5, dtype=torch.float64)
        assert torch.autograd.gradgradcheck(lambda x: kd_loss(x, v, reduction="sum"), z)


class TestShapes:
    logits = torch.randn(2, 3, 5)

    @pytest.mark.parametrize(
        "teacher, options",
        [
            (torch.randn(1, 3, 5), {}),
            (torch.randn(3, 5), {}),
            (torch.randn(2, 1, 5), {"reduction": "mean"}),
            (torch.randn(2, 3, 5), {"labels": torch.zeros(3, dtype=torch.long), "reduction": "mean"}),
            (torch.randn(2, 3, 5), {"labels": torch.zeros(2, 1, dtype=torch.long), "reduction": "mean"}),
            (torch.randn(2, 3, 5), {"student_temperature": torch.ones(2, 4)}),
        ],
    )
    def test_another_number_of_tokens(self, teacher, options):
        with pytest.raises(UsageError, match="shape"):
            kd_loss(self.logits, teacher, **options)

    def test_of_the_chunked_loss(self):
        given = operands()
        with pytest.raises(UsageError, match="shape"):
            chunked_kd_loss(**{**given, "teacher_hidden": given["teacher_hidden"][:-1]})
        with pytest.raises(UsageError, match="shape"):
            chunked_kd_loss(**given, labels=labels()[:-1])


class TestLabels:
    @pytest.mark.parametrize("wrong", [V, 10_000, -1, -99])
    def test_beyond_the_common_vocabulary(self, wrong):
        """One error on both paths, whether or not anything looks at the target."""
        message = f"`labels` has {wrong}, but {V} tokens are compared.*from 0 to {V - 1}.*-100"
        logits = torch.randn(N, V), torch.randn(N, V + 3)
        wider = {**operands(), "teacher_weight": operands(v=V + 3)["teacher_weight"]}
        for divergence in ("forward_kl", "decoupled_kl"):
            with pytest.raises(UsageError, match=message):
                kd_loss(*logits, divergence=divergence, labels=labels(wrong))
            with pytest.raises(UsageError, match=message):
                chunked_kd_loss(**wider, divergence=divergence, labels=labels(wrong))

    def test_ignored_ones_count_for_nothing(self):
        given, ignored = operands(), torch.full((N,), -100)
        assert chunked_kd_loss(**given, labels=ignored).loss == 0
        assert kd_loss(torch.randn(N, V), torch.randn(N, V), labels=ignored, reduction="mean") == 0


class TestTypes:
    """What isn't a tensor or a number is named, where Python would say what it hasn't got."""

    @pytest.mark.parametrize("name", ["student_hidden", "student_weight", "teacher_hidden", "teacher_weight"])
    @pytest.mark.parametrize(
        ("value", "said"),
        [([1.0], "a tensor, got list"), (torch.ones(N, H).long(), "floating-point numbers, got torch.int64")],
    )
    def test_of_states(self, name, value, said):
        with pytest.raises(UsageTypeError, match=f"`{name}` must .*{said}"):
            chunked_kd_loss(**{**operands(), name: value}, labels=labels())

    @pytest.mark.parametrize("name", ["student_logits", "teacher_logits"])
    @pytest.mark.parametrize(
        ("value", "said"),
        [([1.0], "a tensor, got list"), (torch.ones(2, V).long(), "floating-point numbers, got torch.int64")],
    )
    def test_of_logits(self, name, value, said):
        given = {"student_logits": torch.ones(2, V), "teacher_logits": torch.ones(2, V)}
        with pytest.raises(UsageTypeError, match=f"`{name}` must .*{said}"):
            kd_loss(**{**given, name: value})

    def test_of_labels_and_shares(self):
        with pytest.raises(UsageTypeError, match="`labels` must be a tensor, got list"):
            chunked_kd_loss(**operands(), labels=[1] * N)
        with pytest.raises(UsageTypeError, match="`labels` must be a tensor, got list"):
            kd_loss(torch.ones(2, V), torch.ones(2, V), labels=[1, 2])
        with pytest.raises(UsageTypeError, match=r"`kd_ratio` must be a number, got 'half' \(str\)"):
            chunked_kd_loss(**operands(), labels=labels(), kd_ratio="half")

    @pytest.mark.parametrize("side", ["student", "teacher"])
    @pytest.mark.parametrize("value", ["2", None, True, [2.0]])
    def test_of_temperatures(self, side, value):
        with pytest.raises(UsageTypeError, match=f"`{side}_temperature` must be a number or a tensor, got "):
            kd_loss(torch.ones(2, V), torch.ones(2, V), **{f"{side}_temperature": value})
