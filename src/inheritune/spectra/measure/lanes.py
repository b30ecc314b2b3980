"""Vectors of 16 floats for Numba: the same arithmetic on 16 matrices at once, one to a lane.

LLVM makes of them what the processor has: one AVX-512 register, two of AVX2, four of SSE or NEON. Numba's own loops
over lanes would not do: between two loops LLVM writes every vector back to memory, and it halves AVX-512's width.
`load`, `store` and `transpose_in` take whole arrays and do not check their bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, register_model

LANES = 16
"""Matrices worked on at once."""

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)


class LanesType(types.Type):
    """Numba's type of 16 floats, or of 16 counts in the same bits."""

    def __init__(self) -> None:
        super().__init__(name=f"lanes{LANES}")


lanes = LanesType()


@register_model(LanesType)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Return the address `offset` floats into an array, as one of a vector."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [offset]), _VECTOR.as_pointer())


def _integers(*values: int) -> ir.Constant:
    return ir.Constant(_INTEGERS, list(values) * (LANES // len(values)))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call an LLVM intrinsic."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _elementwise(build: Callable[..., Any], arity: int) -> Any:
    """Return a Numba function of `arity` vectors that `build(builder, *vectors)` writes the instructions of."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return build(builder, *arguments)

    signature = lanes(*[lanes] * arity)
    if arity == 1:
        return intrinsic(lambda _, a: (signature, code))
    if arity == 2:
        return intrinsic(lambda _, a, b: (signature, code))
    return intrinsic(lambda _, a, b, c: (signature, code))


def _count_change(builder: Any, count: Any, a: Any, b: Any) -> Any:
    bits = [builder.bitcast(each, _INTEGERS) for each in (count, a, b)]
    changed = builder.lshr(builder.xor(bits[1], bits[2]), _integers(31))
    return builder.bitcast(builder.add(bits[0], changed), _VECTOR)


def _inverse_power(builder: Any, a: Any) -> Any:
    exponent = builder.and_(builder.bitcast(a, _INTEGERS), _integers(0x7F800000))
    return builder.bitcast(builder.sub(_integers(254 << 23), exponent), _VECTOR)


def _copy_sign(builder: Any, a: Any, b: Any) -> Any:
    return _call(builder, f"llvm.copysign.v{LANES}f32", _VECTOR, a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _or_zero(builder: Any, a: Any, b: Any, least: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", b, least), a, ir.Constant(_VECTOR, [0.0] * LANES))


add = _elementwise(lambda builder, a, b: builder.fadd(a, b), 2)
subtract = _elementwise(lambda builder, a, b: builder.fsub(a, b), 2)
multiply = _elementwise(lambda builder, a, b: builder.fmul(a, b), 2)
divide = _elementwise(lambda builder, a, b: builder.fdiv(a, b), 2)
negative = _elementwise(lambda builder, a: builder.fneg(a), 1)
root = _elementwise(lambda builder, a: _call(builder, f"llvm.sqrt.v{LANES}f32", _VECTOR, a), 1)
magnitude = _elementwise(lambda builder, a: _call(builder, f"llvm.fabs.v{LANES}f32", _VECTOR, a), 1)
larger = _elementwise(_larger, 2)
smaller = _elementwise(_smaller, 2)
copy_sign = _elementwise(_copy_sign, 2)
multiply_add = _elementwise(lambda builder, a, b, c: _call(builder, f"llvm.fmuladd.v{LANES}f32", _VECTOR, a, b, c), 3)
"""a b + c, rounded once where the processor can."""
or_zero = _elementwise(_or_zero, 3)
"""a where b > c, else 0."""
count_change = _elementwise(_count_change, 3)
"""The count a, one more where the signs of b and c differ."""
inverse_power = _elementwise(_inverse_power, 1)
"""The power of two that brings a positive number between 1 and 2."""


@intrinsic
def load(_: Any, array: Any, row: Any) -> Any:
    """Return the 16 floats of one row of an (n, 16) array that begins at a multiple of 64 bytes."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        offset = builder.mul(arguments[1], ir.Constant(arguments[1].type, LANES))
        return builder.load(_pointer(context, builder, signature.args[0], arguments[0], offset), align=64)

    return lanes(array, types.intp), code


@intrinsic
def store(_: Any, array: Any, row: Any, value: Any) -> Any:
    """Write the 16 floats of one row of such an array."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        offset = builder.mul(arguments[1], ir.Constant(arguments[1].type, LANES))
        builder.store(arguments[2], _pointer(context, builder, signature.args[0], arguments[0], offset), align=64)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


@intrinsic
def everywhere(_: Any, value: Any) -> Any:
    """Return a vector with the same float32 in every lane."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), arguments[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, first, _integers(0))

    return lanes(types.float32), code


@intrinsic
def where_count(_: Any, count: Any, bound: Any, a: Any, b: Any) -> Any:
    """Return a in the lanes whose count is at most `bound`, b in the others."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        first = builder.insert_element(ir.Constant(_INTEGERS, ir.Undefined), arguments[1], ir.IntType(32)(0))
        bound = builder.shuffle_vector(first, first, _integers(0))
        few = builder.icmp_signed("<=", builder.bitcast(arguments[0], _INTEGERS), bound)
        return builder.select(few, arguments[2], arguments[3])

    return lanes(lanes, types.int32, lanes, lanes), code


@intrinsic
def least(_: Any, value: Any) -> Any:
    """Return the least of the 16 floats."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        found = builder.extract_element(arguments[0], ir.IntType(32)(0))
        for lane in range(1, LANES):
            other = builder.extract_element(arguments[0], ir.IntType(32)(lane))
            found = builder.select(builder.fcmp_ordered("<", other, found), other, found)
        return found

    return types.float32(lanes), code


@intrinsic
def transpose_in(_: Any, source: Any, offset: Any, stride: Any, last: Any, target: Any, row: Any) -> Any:
    """Copy 16 floats from each of 16 places of an array to 16 rows of an (n, 16) array, the last float first.

    Lane i is read from `offset + min(i, last) * stride`.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, offset, stride, last, target, row = arguments
        integer = offset.type
        rows = []
        for lane in range(LANES):
            own = builder.select(builder.icmp_signed("<", last, integer(lane)), last, integer(lane))
            place = builder.add(offset, builder.mul(own, stride))
            rows.append(builder.load(_pointer(context, builder, signature.args[0], source, place), align=4))
        half = LANES // 2
        low, high = [[first + i // 2 + LANES * (i % 2) for i in range(LANES)] for first in (0, half)]
        for _ in range(LANES.bit_length() - 1):  # each round interleaves the first half of the rows with the second
            pairs = [(rows[i], rows[i + half]) for i in range(half)]
            rows = [builder.shuffle_vector(*pair, _integers(*order)) for pair in pairs for order in (low, high)]
        for i, value in enumerate(rows):
            place = builder.mul(builder.add(row, integer(LANES - 1 - i)), integer(LANES))
            builder.store(value, _pointer(context, builder, signature.args[4], target, place), align=64)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, types.intp, target, types.intp), code
