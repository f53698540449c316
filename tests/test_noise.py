"""Keyed noise: Random123's known answers, a pure function of its key, and standard normal to the last test we know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch._inductor.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from adpm.noise import KeyedNoise, _box_muller, _fused, philox4x32

WORD = st.integers(0, 2**32 - 1)
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}


def words(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    return [int(w) for w in philox4x32([torch.tensor([c]) for c in counter], key)]


def philox_in_integers(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 once more, on Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def standardised(z: Tensor) -> np.ndarray:
    return z.double().numpy().ravel()


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(name):
    counter, key, answer = KNOWN_ANSWERS[name]
    assert " ".join(f"{w:08x}" for w in words(counter, key)) == answer


@settings(max_examples=60, deadline=None)
@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_philox_equals_integer_arithmetic(counter, key):
    assert words(counter, key) == philox_in_integers(counter, key)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 8, 8), (3, 5, 7)])
def test_noise_is_bitwise_the_same_for_any_batch_and_order(shape):
    noise = KeyedNoise(7, "sample")
    ids = torch.arange(150)
    whole = noise(ids, 11, shape)
    for size in (1, 7, 64, 149):
        assert torch.equal(torch.cat([noise(part, 11, shape) for part in ids.split(size)]), whole)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise(order, 11, shape), whole[order])


def test_an_element_depends_on_its_place_alone():
    noise = KeyedNoise(7, "sample")
    ids = torch.arange(5)
    long = noise(ids, 2, (40,))
    assert torch.equal(noise(ids, 2, (13,)), long[:, :13])
    assert torch.equal(noise(ids, 2, (2, 4, 5)).flatten(1), long)


def test_every_part_of_the_key_counts():
    ids = torch.arange(64)
    variants = {
        "base": KeyedNoise(1, "sample")(ids, 5, (16,)),
        "seed": KeyedNoise(2, "sample")(ids, 5, (16,)),
        "seed above 32 bits": KeyedNoise(1 + 2**32, "sample")(ids, 5, (16,)),
        "stream": KeyedNoise(1, "moments")(ids, 5, (16,)),
        "step": KeyedNoise(1, "sample")(ids, 6, (16,)),
        "sample": KeyedNoise(1, "sample")(ids + 64, 5, (16,)),
        "sample above 32 bits": KeyedNoise(1, "sample")(ids + 2**32, 5, (16,)),
    }
    flat = torch.stack([z.flatten() for z in variants.values()])
    distinct = {row.numpy().tobytes() for row in flat}
    assert len(distinct) == len(variants)
    # 21 pairs, and their squares: the largest of 42 correlations of 1024 independent numbers stays below 4/sqrt(1024)
    for z in (flat.double(), flat.double().square()):
        correlation = torch.corrcoef(z) - torch.eye(len(z))
        assert correlation.abs().max() < 4.0 / np.sqrt(flat.shape[1])


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(lambda ids, n: (KeyedNoise(0, "a")(ids, k, (256,)) for k in (1, 2)), id="steps"),
        pytest.param(lambda ids, n: (KeyedNoise(s, "a")(ids, 1, (256,)) for s in (0, 1)), id="seeds"),
        pytest.param(lambda ids, n: (KeyedNoise(0, s)(ids, 1, (256,)) for s in ("a", "b")), id="streams"),
        pytest.param(lambda ids, n: (KeyedNoise(0, "a")(ids + s, 1, (256,)) for s in (0, n)), id="samples"),
    ],
)
def test_neighbouring_keys_are_uncorrelated(pair):
    n = 1000
    a, b = (standardised(z) for z in pair(torch.arange(n), n))
    for f in (lambda z: z, np.square, np.sign):
        assert abs(np.corrcoef(f(a), f(b))[0, 1]) < 4.0 / np.sqrt(a.size)


def test_the_extreme_words_are_numbers():
    """The largest radius belongs to the word 0, sqrt(2 log 2^32); the word 2^32 - 1 has none."""
    low, high = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2**32 - 1)
    assert _box_muller(low, low)[0, 0] == pytest.approx((64 * np.log(2)) ** 0.5)
    assert _box_muller(high, low).abs().max() == 0.0


def test_noise_is_standard_normal():
    z = standardised(KeyedNoise(3, "sample")(torch.arange(4096), 0, (64,)))
    n = z.size
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.skew(z)) < 4 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(z)) < 4 * np.sqrt(24 / n)
    for edge in (3.0, 4.0):
        expected = n * 2 * stats.norm.sf(edge)
        assert abs((abs(z) > edge).sum() - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("power", [1, 2])
def test_elements_of_a_sample_are_independent(power):
    """Box-Muller makes elements in pairs from shared words: all 2016 correlations of 64 elements are noise."""
    n, d = 20000, 64
    z = KeyedNoise(4, "sample")(torch.arange(n), 9, (d,)).double() ** power
    r = torch.corrcoef(z.T).numpy()[np.triu_indices(d, 1)]
    assert abs(r).max() < 5.0 / np.sqrt(n)
    assert 1e-3 < stats.chi2.sf(n * (r**2).sum(), r.size) < 1 - 1e-3


def test_fused_noise_has_the_same_bits_and_is_compiled_once():
    """Other steps, seeds, batches and shapes are the same program; what is compiled are whole numbers alone."""
    _fused.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch._inductor.metrics.reset()
    for ids in (torch.arange(2, 9), torch.tensor([2**33 + 5, 7, 2**40]), torch.arange(150)):
        for shape in ((9,), (2, 8, 8), (3, 5, 7)):
            for seed, step in ((0, 0), (3, 1), (2**35 + 1, 999), (0, 2**20 + 7)):
                fused, plain = (KeyedNoise(seed, "sample", which)(ids, step, shape) for which in (True, False))
                assert torch.equal(fused, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch._inductor.metrics.generated_kernel_count <= 3


def test_noise_needs_no_compiler(monkeypatch):
    def refuse(*_: object, **__: object):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    _fused.cache_clear()
    noise, ids = KeyedNoise(5, "sample", fused=True), torch.arange(6)
    with pytest.warns(UserWarning, match=r"many kernels.*no compiler"):
        first = noise(ids, 3, (4, 4))
    _fused.cache_clear()
    assert torch.equal(first, KeyedNoise(5, "sample", fused=False)(ids, 3, (4, 4)))
