"""The first numbers of many generators at once: those of NumPy's PCG64, whose set-up takes 20 µs each.

What is drawn for an image is a function of its own seed, so a batch has a generator for each image, of which it
needs a few numbers. Here the arithmetic of all of them is NumPy's on arrays.

Sources: O'Neill 2014 (PCG, XSL-RR of 128 bits), and numpy/random/bit_generator.pyx (`SeedSequence`).
Letters: N seeds, K numbers of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Longs = NDArray[np.uint64]

POOL = 4
"""Words of 32 bits that a seed sequence mixes."""
SHIFT = np.uint32(16)
INIT_A, MULT_A = 0x43B0D7E5, 0x931E8875
INIT_B, MULT_B = 0x8B51F9DD, 0x58F38DED
MIX_LEFT, MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
MULTIPLIER = (np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645))
"""Of the generator's 128-bit state, high and low half."""
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def derive_seeds(parts: Sequence[int | str], keys: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """Return `rng.derive_seed(*parts, *key)` of each key, [N]; the hash of `parts` is computed once."""
    texts = (f"{'str' if isinstance(part, str) else 'int'}:{part}\x1f" for part in parts)
    common = blake2b("".join(texts).encode(), digest_size=8)

    def derive(key: Sequence[int]) -> int:
        digest = common.copy()
        digest.update("\x1f".join([f"int:{number}" for number in key]).encode())
        return int.from_bytes(digest.digest(), "little") >> 1

    return np.array([derive(key) for key in keys], np.int64)


def draw_raw(seeds: NDArray[np.int64], count: int) -> Longs:
    """Return the first 64-bit numbers of `np.random.PCG64(seed)` of each seed, [N,K].

    Args:
        seeds: 0 or more, [N].
        count: K.
    """
    state, increment = _seed(_mix_seeds(seeds))
    numbers = np.empty((len(seeds), count), np.uint64)
    for column in range(count):
        state = _step(state, increment)
        high, low = state
        turn, word = high >> np.uint64(58), high ^ low
        numbers[:, column] = (word >> turn) | (word << ((np.uint64(64) - turn) & np.uint64(63)))
    return numbers


def to_doubles(raw: Longs) -> NDArray[np.float64]:
    """Return what `Generator.random()` makes of raw numbers, 0 to 1."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_permutations(seeds: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return `np.random.Generator(np.random.PCG64(seed)).permutation(length)` of each seed, [N,`length`]."""
    orders, every = np.tile(np.arange(length), (len(seeds), 1)), np.arange(len(seeds))
    raw = draw_raw(seeds, length)
    # Each of 64 bits is two of 32: two for each place, because NumPy rejects less than half of them.
    words = np.stack([raw & LOW, raw >> HALF], axis=2).reshape(len(seeds), 2 * length)
    cursor = np.zeros(len(seeds), np.int64)
    for last in range(length - 1, 0, -1):  # Fisher and Yates
        other = np.full(len(seeds), length)
        pending = every
        while len(pending):
            mask = np.uint64((1 << last.bit_length()) - 1)
            other[pending] = words[pending, cursor[pending]] & mask
            cursor[pending] += 1
            pending = pending[(other[pending] > last) & (cursor[pending] < words.shape[1])]
        other = np.minimum(other, last)
        taken = orders[every, other]
        orders[every, other] = orders[:, last]
        orders[:, last] = taken
        cursor = np.minimum(cursor, words.shape[1] - 1)
    for row in np.flatnonzero(cursor == words.shape[1] - 1).tolist():  # it may need more
        orders[row] = np.random.Generator(np.random.PCG64(seeds[row])).permutation(length)
    return orders


def _mix_seeds(seeds: NDArray[np.int64]) -> Longs:
    """Return `SeedSequence(seed).generate_state(4, np.uint64)` of each seed, [4,N]."""
    own = seeds.astype(np.uint64)
    zeros = np.zeros(len(seeds), np.uint32)
    constant = INIT_A

    def hash_word(value: Words) -> Words:
        nonlocal constant
        value = value ^ np.uint32(constant)
        constant = constant * MULT_A & 0xFFFFFFFF
        value = value * np.uint32(constant)
        return value ^ (value >> SHIFT)

    words = [(own & LOW).astype(np.uint32), (own >> HALF).astype(np.uint32), zeros, zeros]
    pool = [hash_word(word) for word in words]
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                mixed = MIX_LEFT * pool[target] - MIX_RIGHT * hash_word(pool[source])
                pool[target] = mixed ^ (mixed >> SHIFT)
    constant, state = INIT_B, list[Longs]()
    for place in range(2 * POOL):
        value = pool[place % POOL] ^ np.uint32(constant)
        constant = constant * MULT_B & 0xFFFFFFFF
        value = value * np.uint32(constant)
        state.append((value ^ (value >> SHIFT)).astype(np.uint64))
    return np.stack([state[n] | (state[n + 1] << HALF) for n in range(0, 2 * POOL, 2)])


def _seed(entropy: Longs) -> tuple[tuple[Longs, Longs], tuple[Longs, Longs]]:
    """Return state and increment of generators, each as high and low half [N] (`pcg_setseq_128_srandom_r`)."""
    high, low, inc_high, inc_low = entropy
    one, top = np.uint64(1), np.uint64(63)
    increment = ((inc_high << one) | (inc_low >> top), (inc_low << one) | one)
    state = _step(
        _add(increment, (high, low)), increment
    )  # of a state of 0 the first step leaves it
    return state, increment


def _step(state: tuple[Longs, Longs], increment: tuple[Longs, Longs]) -> tuple[Longs, Longs]:
    """Return the next state of a linear congruential generator modulo 2^128."""
    (high, low), (m_high, m_low) = state, MULTIPLIER
    # The high half of low * m_low, by 32-bit parts.
    a, b = low >> HALF, low & LOW
    c, d = m_low >> HALF, m_low & LOW
    middle = a * d + (b * d >> HALF)
    carry = b * c + (middle & LOW)
    product = (a * c + (middle >> HALF) + (carry >> HALF), low * m_low)
    return _add((product[0] + high * m_low + low * m_high, product[1]), increment)


def _add(a: tuple[Longs, Longs], b: tuple[Longs, Longs]) -> tuple[Longs, Longs]:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < b[1]), low
