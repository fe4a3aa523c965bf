"""The ctypes structures that the CPU kernels are called with. They mirror ``kernels/interface.h`` field by field."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p

#: ``OpFields.prologue``: what is applied to the input of a PROJECT.
PLAIN, NORM, SILU_TIMES, GELU_TIMES = range(4)

#: ``OpFields.kind``.
PROJECT, ATTEND, ADD_NORM = range(3)


class LinearFields(Structure):
    """The packed weights of one ``CpuLinear`` and its pages of the bank."""

    _fields_ = (
        ("num_inputs", c_int32),
        ("num_blocks", c_int32),
        ("num_tiles", c_int32),
        ("num_members", c_int32),
        ("panels", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("tiles", c_void_p),
        ("a", c_void_p),
        ("a_scale", c_void_p),
        ("b", c_void_p),
        ("b_scale", c_void_p),
    )


class AdaptersFields(Structure):
    """The pages of each row: ``RowAdapters``."""

    _fields_ = (("first", c_void_p), ("pages", c_void_p), ("num_groups", c_int32))


class AttentionFields(Structure):
    """One layer's attention: its part of the cache, head sizes, scale, window, soft cap, norms of queries and keys."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("slot_stride", c_int64),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("dim", c_int32),
        ("rotary_dim", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int32),
        ("rope", c_int32),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("eps", c_float),
    )


class OpFields(Structure):
    """One kernel call: ``kind`` (PROJECT, ATTEND or ADD_NORM), input ``x``, output ``y`` and what that kind needs."""

    _fields_ = (
        ("kind", c_int32),
        ("prologue", c_int32),
        ("accumulate", c_int32),
        ("with_bias", c_int32),
        ("x", c_void_p),
        ("y", c_void_p),
        ("x_width", c_int32),
        ("y_width", c_int32),
        ("linear", POINTER(LinearFields)),
        ("attention", POINTER(AttentionFields)),
        ("norm", c_void_p),
        ("eps", c_float),
    )


class StepFields(Structure):
    """What all calls of a step share: slots and positions of its rows, rotary angles and adapters."""

    _fields_ = (
        ("num_rows", c_int32),
        ("slot", c_void_p),
        ("position", c_void_p),
        ("cos", POINTER(c_void_p)),
        ("sin", POINTER(c_void_p)),
        ("adapters", AdaptersFields),
    )


class SamplingFields(Structure):
    """How a row's token is chosen: temperature 0 is the likeliest, ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off;
    ``uniform`` is drawn from [0, 1)."""

    _fields_ = (
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("top_k", c_int32),
        ("uniform", c_double),
    )
