import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfisher_jax.payload._packing import pack, packed_bytes, unpack


@settings(deadline=None)
@given(bits=st.integers(1, 32), codes=st.data())
def test_packing_is_lossless_and_without_gaps(bits, codes):
    values = codes.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack(np.array(values, np.int64), bits)
    assert packed.dtype == np.uint8 and packed.size == packed_bytes(len(values), bits) == -(-len(values) * bits // 8)
    written = "".join(f"{value:0{bits}b}" for value in values)
    assert "".join(f"{byte:08b}" for byte in packed).startswith(written)
    assert unpack(packed, len(values), bits).tolist() == values


@pytest.mark.parametrize("bits", [3, 9, 16])
def test_more_than_one_chunk(bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, 3 * 65536 + 5)
    np.testing.assert_array_equal(unpack(pack(codes, bits), codes.size, bits), codes)


def test_every_list_has_one_form():
    """A bit in the filling changes nothing that is decoded: it is refused, or two files would mean the same."""
    packed = pack(np.array([5, 6, 7]), 3)  # 9 bits of 16
    packed[-1] |= 1
    with pytest.raises(ValueError, match="filling"):
        unpack(packed, 3, 3)


@pytest.mark.parametrize(
    ("codes", "bits", "words"), [([8], 3, "codes"), ([-1], 3, "codes"), ([0], 0, "bits"), ([0], 33, "bits")]
)
def test_refusals(codes, bits, words):
    with pytest.raises(ValueError, match=words):
        pack(np.array(codes), bits)


def test_wrong_number_of_bytes():
    with pytest.raises(ValueError, match="bytes"):
        unpack(np.zeros(4, np.uint8), 3, 3)
