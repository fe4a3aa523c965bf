"""The header parser either returns tensors that exist or raises InvalidAdapter, for arbitrary bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.peft_format import tensors
from graftwork.adapters.peft_format.tensors import TensorFile, same_numbers
from graftwork.adapters.storage.strict_json import parse_object
from tests.adapters.adapter_files import Arrays, layout, packed, safetensors

GOOD: Arrays = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5, dtype=np.float16),
    "c": np.arange(6, dtype=np.uint16).reshape(6, 1),
}


def opened(folder: Path, raw: bytes) -> TensorFile:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(raw)
    return TensorFile(path, max_header_bytes=10_000)


def refused(folder: Path, raw: bytes) -> str:
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors") as refusal, opened(folder, raw) as file:
        file.hash_and_check_finite(lambda chunk: None)
    assert len(refusal.value.message) < 1000
    return refusal.value.message


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save

    arrays = {name: GOOD[name] for name in ("a", "b")}
    with opened(tmp_path, save(arrays, metadata={"format": "pt"})) as file:
        assert set(file.tensors) == {"a", "b"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.read(file.tensors[name]).ravel(), array.ravel().astype(np.float32))
        np.testing.assert_array_equal(file.read(file.tensors["a"], 1, 3), arrays["a"][1:3])


def test_scan_hands_over_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_CHUNK_BYTES", 8)
    raw = safetensors(GOOD)
    digest = hashlib.sha256()
    with opened(tmp_path, raw) as file:
        file.hash_and_check_finite(digest.update)
    assert digest.digest() == hashlib.sha256(raw).digest()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "-inf"])
@pytest.mark.parametrize("place", [0, 7, 4999])
def test_no_number_escapes_the_scan(
    dtype: str, number: str, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_CHUNK_BYTES", 1024)
    wide = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    wide[place] = float(number)
    array = (wide.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else wide.astype(dtype)
    assert "'odd' holds NaN" in refused(tmp_path, safetensors({"even": np.ones(3, np.float16), "odd": array}))


def test_largest_numbers_are_fine(tmp_path: Path) -> None:
    arrays: Arrays = {
        "f16": np.array([65504, -65504, 6e-8], np.float16),
        "f32": np.array([3.4e38, -3.4e38, 1e-45], np.float32),
        "bf16": np.array([0x7F7F, 0xFF7F, 1], np.uint16),
    }
    with opened(tmp_path, safetensors(arrays)) as file:
        file.hash_and_check_finite(lambda chunk: None)


def test_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_CHUNK_BYTES", 64)
    wide = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    wide[0] = [1e9, -1e9, 1e-8, 0, -0.0, 70000]
    near = wide.copy()
    near[33, 2] = np.nextafter(near[33, 2], np.float32(9))
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
    with opened(tmp_path, safetensors({"wide": wide, "near": near, "half": half, "flat": wide.ravel()})) as file:
        assert same_numbers(file, "wide", file, "wide")
        assert same_numbers(file, "half", file, "wide")
        assert same_numbers(file, "half", file, "near")
        assert not same_numbers(file, "near", file, "wide")
        assert not same_numbers(file, "wide", file, "half")
        assert not same_numbers(file, "wide", file, "flat")


def entry(**fields: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | fields


DATA = bytes(24)

HEADERS: list[tuple[str, dict[str, Any], bytes]] = [
    ("dtype unknown", {"t": entry(dtype="F64", shape=[3])}, DATA),
    ("dtype integers", {"t": entry(dtype="I32")}, DATA),
    ("dtype number", {"t": entry(dtype=32)}, DATA),
    ("dtype list", {"t": entry(dtype=["F32"])}, DATA),
    ("shape null", {"t": entry(shape=None)}, DATA),
    ("shape text", {"t": entry(shape="23")}, DATA),
    ("shape negative", {"t": entry(shape=[-2, -3])}, DATA),
    ("shape zero", {"t": entry(shape=[0, 3], data_offsets=[0, 0])}, b""),
    ("shape float", {"t": entry(shape=[2.0, 3])}, DATA),
    ("shape true", {"t": entry(shape=[True, 6])}, DATA),
    ("shape nested", {"t": entry(shape=[[2], 3])}, DATA),
    ("shape huge", {"t": entry(shape=[2**62, 2**62])}, DATA),
    ("shape overflowing", {"t": entry(shape=[2**32, 2**32], data_offsets=[0, 0])}, b""),
    ("shape of many ones", {"t": entry(shape=[6] + [1] * 20)}, DATA),
    ("offsets missing", {"t": {"dtype": "F32", "shape": [6]}}, DATA),
    ("offsets reversed", {"t": entry(data_offsets=[24, 0])}, DATA),
    ("offsets negative", {"t": entry(data_offsets=[-24, 0])}, DATA),
    ("offsets too small", {"t": entry(data_offsets=[0, 20])}, DATA),
    ("offsets three", {"t": entry(data_offsets=[0, 24, 24])}, DATA),
    ("offsets outside", {"t": entry(data_offsets=[24, 48])}, DATA),
    ("offsets huge", {"t": entry(data_offsets=[2**63, 2**63 + 24])}, DATA),
    ("extra field", {"t": entry(scale=2)}, DATA),
    ("not an object", {"t": [1, 2]}, DATA),
    ("overlap", {"t": entry(), "u": entry(data_offsets=[12, 36])}, bytes(36)),
    ("shared", {"t": entry(), "u": entry()}, DATA),
    ("hole", {"t": entry(), "u": entry(data_offsets=[28, 52])}, bytes(52)),
    ("hole at the start", {"t": entry(data_offsets=[4, 28])}, bytes(28)),
    ("left over", {"t": entry()}, bytes(28)),
    ("no tensors but data", {}, DATA),
    ("metadata list", {"__metadata__": [], "t": entry()}, DATA),
    ("metadata numbers", {"__metadata__": {"a": 1}, "t": entry()}, DATA),
]

RAW: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("seven bytes", b"\0" * 7),
    ("no header", b"\0" * 8),
    ("length beyond the file", (100).to_bytes(8, "little") + b"{}"),
    ("length beyond memory", b"\xff" * 8 + b"{}"),
    ("length beyond the limit", (10_001).to_bytes(8, "little") + b"{}".ljust(10_001)),
    ("a pickle", b"\x80\x04\x95" + bytes(100)),
    ("a zip", b"PK\x03\x04" + bytes(100)),
    ("not UTF-8", packed(b'{"\xff\xfe": {}}', b"")),
    ("not JSON", packed(b"{'a': 1}", b"")),
    ("a list", packed(b"[]", b"")),
    ("two values", packed(b"{}{}", b"")),
    ("name twice", packed(b'{"t": %b, "t": %b}' % ((json.dumps(entry()).encode(),) * 2), DATA)),
    ("field twice", packed(b'{"t": {"dtype": "F32", "dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}', DATA)),
    ("NaN", packed(b'{"t": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 24]}}', DATA)),
    ("deep", packed(b'{"a":' * 1600 + b"1" + b"}" * 1600, b"")),
    ("deep shape", packed(b'{"t": {"dtype": "F32", "shape": ' + b"[" * 900 + b"]" * 900 + b"}}", b"")),
    ("long number", packed(b'{"t": ' + b"9" * 9000 + b"}", b"")),
    ("cut off", safetensors(GOOD)[:-1]),
    ("added to", safetensors(GOOD) + b"\0"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "data"), [pytest.param(h, d, id=name) for name, h, d in HEADERS])
def test_refused_headers(header: dict[str, Any], data: bytes, tmp_path: Path) -> None:
    refused(tmp_path, packed(header, data))


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in RAW])
def test_refused_files(raw: bytes, tmp_path: Path) -> None:
    refused(tmp_path, raw)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16", "dtype"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
sizes = st.integers(-1, 30) | st.sampled_from([2**31, 2**63, 2**64]) | json_values
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8"]) | json_values,
        "shape": st.lists(sizes, max_size=4) | json_values,
        "data_offsets": st.lists(sizes, max_size=3) | json_values,
    }
)
headers = st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), entries | json_values, max_size=4)


def answers(folder: Path, raw: bytes) -> None:
    """Tensors that are there, or InvalidAdapter; nothing else."""
    try:
        with opened(folder, raw) as file:
            file.hash_and_check_finite(lambda chunk: None)
            covered = sum(tensor.end - tensor.start for tensor in file.tensors.values())
            assert covered == len(raw) - 8 - int.from_bytes(raw[:8], "little")
            for tensor in file.tensors.values():
                if tensor.shape:
                    assert file.read(tensor).size == tensor.num_elements
    except InvalidAdapter:
        pass


fuzz = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(raw=st.binary(max_size=200))
@example(raw=packed({}, b""))
@fuzz
def test_any_bytes(tmp_path: Path, raw: bytes) -> None:
    answers(tmp_path, raw)


@given(header=headers, data=st.binary(max_size=60))
@example(header={"t": entry()}, data=DATA)
@fuzz
def test_any_header(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    answers(tmp_path, packed(header, data))


@given(header=st.binary(max_size=100), data=st.binary(max_size=20))
@fuzz
def test_any_header_bytes(tmp_path: Path, header: bytes, data: bytes) -> None:
    answers(tmp_path, packed(header, data))


@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 3))
@fuzz
def test_one_byte_of_a_good_file_changed(tmp_path: Path, place: int, byte: int, cut: int) -> None:
    raw = bytearray(safetensors(GOOD))
    raw[place % len(raw)] = byte
    answers(tmp_path, bytes(raw[: len(raw) - cut]))


@given(st.data())
@fuzz
def test_one_field_of_a_good_file_changed(tmp_path: Path, data: st.DataObject) -> None:
    header, body = layout(GOOD)
    changed = data.draw(st.sampled_from(sorted(header)))
    header[changed] = header[changed] | {data.draw(st.sampled_from(sorted(header[changed]))): data.draw(json_values)}
    answers(tmp_path, packed(header, body))


@given(
    st.binary(max_size=100) | st.text(max_size=60).map(str.encode) | json_values.map(lambda v: json.dumps(v).encode())
)
@fuzz
def test_any_json(raw: bytes) -> None:
    try:
        assert isinstance(parse_object(raw, what="it"), dict)
    except InvalidAdapter as error:
        assert error.message.startswith("it ")  # noqa: PT017


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/etc/passwd")], ids=["folder", "link"])
def test_not_a_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "weights")
    with pytest.raises(InvalidAdapter, match="weights"):
        TensorFile(tmp_path / "weights", max_header_bytes=100)
