import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.training import batch_finder
from finetune.training.batch_finder import (
    attempt_step,
    available_bytes,
    extrapolate,
    find_batch_size,
    is_out_of_memory,
    largest_by_memory,
    peak_bytes,
    resident_bytes,
    round_down,
    smallest_fast,
)
from finetune.training.mixing import create_mix

OUT_OF_MEMORY = (torch.OutOfMemoryError("CUDA out of memory"), MemoryError())


def fails_above(limit, error=OUT_OF_MEMORY[0]):
    tried = []

    def attempt(size):
        tried.append(size)
        if size > limit:
            raise error

    return attempt, tried


# --- the search ---------------------------------------------------------------------------------


@given(
    limit=st.integers(0, 3000),
    start=st.integers(1, 200),
    largest=st.integers(1, 2000),
    error=st.sampled_from(OUT_OF_MEMORY),
)
def test_the_largest_that_fits_is_found(limit, start, largest, error):
    attempt, tried = fails_above(limit, error)
    found = find_batch_size(attempt, start=start, largest=largest)
    ours = [size for size in (1, 2, 4, *range(8, 2001, 8)) if size <= min(limit, largest)]
    assert found.largest == (ours[-1] if ours else None)
    assert max(tried) <= largest
    assert set(tried) <= {1, 2, 4, *range(8, 2001, 8)}
    assert [a.batch_size for a in found.attempts] == list(dict.fromkeys(tried))
    assert all((a.images_per_second is None) == (a.batch_size > limit) for a in found.attempts)
    assert len(found.attempts) <= 20
    if ours:
        assert found.suggestion in ours
    else:
        assert found.suggestion is None
    failed = [size for size in tried if size > limit]
    expected = f"{min(failed)} images do not fit" if failed else f"no more than {largest} were"
    assert found.reason.startswith(expected)


def test_it_doubles_first_and_then_halves_what_is_left():
    attempt, tried = fails_above(100)
    assert find_batch_size(attempt, start=8, largest=4096).largest == 96
    assert list(dict.fromkeys(tried)) == [8, 16, 32, 64, 128, 96, 112, 104]


def test_the_faster_of_two_times_counts():
    now = 0.0
    # Of each size, the first time and the second: 8, 16 and 32 images.
    seconds = iter([9.0, 1.0, 1.0, 2.0, 2.0, 2.0])

    def attempt(size):
        nonlocal now
        now += next(seconds)

    found = find_batch_size(attempt, start=8, largest=32, clock=lambda: now)
    assert [a.images_per_second for a in found.attempts] == [8.0, 16.0, 16.0]
    assert found.largest == 32
    assert found.suggestion == 16


def test_another_error_is_not_taken_for_full_memory():
    attempt, _ = fails_above(16, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        find_batch_size(attempt, start=8, largest=64)


@pytest.mark.parametrize("wrong", [{"start": 0, "largest": 8}, {"start": 8, "largest": 0}])
def test_sizes_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="expected both >= 1"):
        find_batch_size(lambda _: None, **wrong)


@given(st.lists(st.tuples(st.integers(1, 512), st.floats(0.1, 1e4)), min_size=1))
def test_the_smallest_of_the_fast_ones(speeds):
    size = smallest_fast(speeds)
    fastest = max(speed for _, speed in speeds)
    assert any(s == size and v >= 0.95 * fastest for s, v in speeds)
    assert not any(s < size and v >= 0.95 * fastest for s, v in speeds)


@given(st.integers(0, 5000))
def test_sizes_are_rounded_down_to_ours(size):
    ours = [0, 1, 2, 4, *range(8, 5001, 8)]
    assert round_down(size) == max(one for one in ours if one <= size)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((error, True) for error in OUT_OF_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDNN_STATUS_ALLOC_FAILED"), False),
    ],
)
def test_what_says_that_memory_is_full(error, expected):
    assert is_out_of_memory(error) is expected


def test_torch_says_so_on_this_machine_as_we_expect():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


# --- memory on a CPU ----------------------------------------------------------------------------


@given(
    base=st.integers(0, 10**9),
    per_image=st.integers(1, 10**8),
    fitting=st.integers(1, 10**4),
    small=st.integers(1, 64),
)
def test_a_line_through_two_peaks_meets_the_limit(base, per_image, fitting, small):
    def peak(images):
        return images, base + per_image * images

    limit = base + per_image * fitting + per_image // 2
    assert extrapolate(peak(small), peak(4 * small), limit_bytes=limit) == fitting


@pytest.mark.parametrize("second", [100, 90])
def test_peaks_that_do_not_rise_say_nothing(second):
    assert extrapolate((8, 100), (32, second), limit_bytes=10**9) is None


def test_one_image_is_always_worth_a_try():
    assert extrapolate((8, 100), (32, 400), limit_bytes=1) == 1


def test_half_of_the_memory_available_is_taken(monkeypatch):
    peaks = iter([1_000 + 8 * 10, 1_000 + 32 * 10])
    tried = []
    monkeypatch.setattr(batch_finder, "available_bytes", lambda: 4_000)
    monkeypatch.setattr(batch_finder, "resident_bytes", lambda: 1_000)
    monkeypatch.setattr(batch_finder, "peak_bytes", lambda: next(peaks))
    assert largest_by_memory(tried.append) == 200
    assert tried == [8, 8, 32]


@pytest.mark.parametrize("unknown", ["available_bytes", "peak_bytes"])
def test_a_system_that_does_not_say_has_no_estimate(monkeypatch, unknown):
    monkeypatch.setattr(batch_finder, unknown, lambda: None)
    assert largest_by_memory(lambda _: None) is None


def test_figures_of_this_process_are_plausible():
    peak, available, resident = peak_bytes(), available_bytes(), resident_bytes()
    if resident is None:
        pytest.skip("this system has no /proc")
    assert 10**7 < resident <= 1.1 * peak
    assert available is None or 0 < available < 2**46


def test_a_container_s_limit_counts(monkeypatch):
    texts = {
        "meminfo": "MemTotal: 99 kB\nMemAvailable:   5000 kB\n",
        "memory.max": "3000000\n",
        "memory.current": "1000000\n",
    }
    monkeypatch.setattr(batch_finder.Path, "read_text", lambda path, **_: texts[path.name])
    assert available_bytes() == 2_000_000
    texts["memory.max"] = "max\n"
    assert available_bytes() == 5_120_000


def test_real_memory_is_measured():
    held = resident_bytes()
    if held is None:
        pytest.skip("this system has no /proc")
    limit = largest_by_memory(lambda images: torch.ones(images, 2**20).sum().item(), small=8)
    expected = available_bytes() / 2 / (4 * 2**20)
    assert limit == pytest.approx(expected, rel=0.5)


# --- real steps ---------------------------------------------------------------------------------


def everything(module):
    values = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in values}


@pytest.mark.parametrize(
    ("task", "is_mixed", "dtype"),
    [
        ("multiclass", False, None),
        ("multiclass", True, torch.bfloat16),
        ("multilabel", False, None),
        ("multilabel", True, None),
    ],
)
def test_an_attempt_leaves_no_trace(make_module, task, is_mixed, dtype):
    mix = create_mix(mixup_alpha=0.4, cutmix_alpha=0.4, num_classes=3) if is_mixed else None
    metrics = ("mean_average_precision",) if task == "multilabel" else ("accuracy",)
    module = make_module("none", task=task, num_classes=3, mix=mix, dropout=0.2, metrics=metrics)
    before, drawn = everything(module), torch.get_rng_state()
    sizes, forward = [], module.classifier.forward

    def watched(images):
        sizes.append(tuple(images.shape))
        assert module.training
        return forward(images)

    module.classifier.forward = watched
    attempt_step(module, 32, dtype=dtype)(5)
    after = everything(module)
    assert sizes == [(5, 3, 32, 32)]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_an_attempt_goes_backward(make_module):
    module = make_module("backbone")
    seen = []
    module.classifier.head.linear.weight.register_hook(seen.append)
    attempt_step(module, 32)(2)
    assert len(seen) == 1


def test_a_module_finds_its_size(make_module):
    found = find_batch_size(attempt_step(make_module("none"), 32), start=8, largest=20)
    assert [a.batch_size for a in found.attempts] == [8, 16]
    assert found.largest == 16
    assert all(math.isfinite(a.images_per_second) for a in found.attempts)
    speeds = [a.images_per_second for a in found.attempts]
    assert found.suggestion in (8, 16)
    assert all(a < b * 1e6 for a, b in itertools.pairwise(speeds))
