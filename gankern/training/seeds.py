"""Random numbers without a state: what a lane of a phase draws follows from where it stands, so that a checkpoint holds
none and the number of ranks changes none.

A lane is a micro-batch of the whole job: of k lanes, lane l holds the images l, l + k, l + 2k, ... of the batch.
"""

import zlib

_MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    """A bijection of 64-bit numbers that scatters neighbours. Steele et al. 2014 (doi:10.1145/2714064.2660195)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def lane_seed(seed: int, step: int, phase: str, lane: int) -> int:
    """The seed, in [0, 2^64), of one lane of a phase of a step."""
    mixed = 0
    for number in (seed, step, zlib.crc32(phase.encode()), lane):
        mixed = splitmix64(mixed ^ splitmix64(number))
    return mixed
