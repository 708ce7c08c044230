"""Products of one token with NF4 weights in Triton and PTX, unpacked in registers and multiplied by tensor cores.

A thread processes sixteen numbers of two rows at a time, with the elements of x that belong to them. A warp multiplies
its A (m16n8k16: the first rows and the second rows of eight threads) by its B (x). Only the diagonal of this product is
used: the numbers of each thread times its own x. The waste is acceptable, because unpacking takes twenty-one
instructions for eight numbers, and the product takes one for sixty-four.
"""

# mypy: disallow-untyped-decorators=False, disable-error-code="assignment"
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

UNPACK = """
    and.b32 s, {word}, 0x77777777; shl.b32 u, {word}, 4;
    prmt.b32 k, u, {word}, 0xd9c8;
    prmt.b32 a, $14, $15, s; prmt.b32 b, $16, $17, s; lop3.b32 h, k, b, a, 0xca;
    prmt.b32 a, $18, $19, s; prmt.b32 b, $20, $21, s; lop3.b32 l, k, b, a, 0xca;
    prmt.b32 {row}{0}, l, h, 0x4051; prmt.b32 {row}{1}, l, h, 0x6273;
    shr.b32 s, s, 16; prmt.b32 k, u, {word}, 0xfbea;
    prmt.b32 a, $14, $15, s; prmt.b32 b, $16, $17, s; lop3.b32 h, k, b, a, 0xca;
    prmt.b32 a, $18, $19, s; prmt.b32 b, $20, $21, s; lop3.b32 l, k, b, a, 0xca;
    prmt.b32 {row}{2}, l, h, 0x4051; prmt.b32 {row}{3}, l, h, 0x6273;
"""
"""Converts a word of eight codes to four pairs of bfloat16 in registers: ``prmt`` selects four of eight bytes.

h has the upper bytes of four numbers, and l has the lower bytes. Each byte is from the lower (a) or the upper (b) eight
entries of the table, as the fourth bit of its code (k) says. In a byte, the upper code is the first one.
"""
ZERO = "mov.f32 c0, 0f00000000; mov.f32 c1, c0; mov.f32 c2, c0; mov.f32 c3, c0;"
ADD = (
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
    "{{c0, c1, c2, c3}}, {{{}, {}, {}, {}}}, {{${}, ${}}}, {{c0, c1, c2, c3}};"
)
PRODUCT: tl.constexpr = tl.constexpr(
    "{ .reg .b32 s, u, k, a, b, h, l, p<8>, q<8>, v<2>, w<2>; .reg .f32 c<4>;"
    "mov.b64 {v0, v1}, $4; mov.b64 {w0, w1}, $5;"
    + "".join(
        UNPACK.format(*range(4 * half, 4 * half + 4), word=f"{word}{half}", row=row)
        for word, row in (("v", "p"), ("w", "q"))
        for half in (0, 1)
    )
    + ZERO
    + "".join(ADD.format(f"p{at}", f"q{at}", f"p{at + 1}", f"q{at + 1}", 6 + at, 7 + at) for at in (0, 2, 4, 6))
    + "mov.f32 $0, c0; mov.f32 $1, c1; mov.f32 $2, c2; mov.f32 $3, c3; }"
)
LOAD_ASM: tl.constexpr = tl.constexpr(
    "ld.global.v4.b32 {$0, $1, $2, $3}, [$8]; ld.global.v4.b32 {$4, $5, $6, $7}, [$8+16];"
)
SQUARE: tl.constexpr = tl.constexpr(
    "{ .reg .b32 z; .reg .f32 c<4>; mov.b32 z, 0;"
    + ZERO
    + "".join(ADD.format(f"${at}", "z", f"${at + 1}", "z", at, at + 1) for at in (2, 4, 6, 8))
    + "mov.f32 $0, c0; mov.f32 $1, c1; }"
)
TIMES: tl.constexpr = tl.constexpr("{ .reg .b32 z; mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, $1, $2, z; }")
EIGHT: tl.constexpr = tl.constexpr("r,r,r,r,r,r,r,r")


@triton.jit
def _sixteen(numbers, at):  # type: ignore[no-untyped-def]
    """Load sixteen bfloat16 numbers for each index ``at`` (n,), which counts in sixteens.

    Returns eight pairs, each of shape (n,), int32.
    """
    return tl.inline_asm_elementwise(
        LOAD_ASM, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,l", [(numbers + at * 16).to(tl.int64)],
        dtype=(tl.int32,) * 8, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _diagonal(even, odd, thread):  # type: ignore[no-untyped-def]
    """Return the diagonal element of the product of a warp that is in the even or odd column of each thread, or 0."""
    row, column = thread % 32 // 4, thread % 4 * 2
    return tl.where(row == column, even, tl.where(row == column + 1, odd, 0.0))


@triton.jit
def _stacked(rows):  # type: ignore[no-untyped-def]
    """Stack a tuple of tensors (n,) into one tensor (n, count)."""
    COUNT: tl.constexpr = len(rows)
    if COUNT == 1:
        result = rows[0]
    else:
        pairs = ()
        for at in tl.static_range(COUNT // 2):
            pairs += (tl.join(rows[at], rows[at + COUNT // 2]),)
        result = _stacked(pairs)
    return result


@triton.jit
def _load_codes(  # type: ignore[no-untyped-def]
    codes, scales, first, distance, end, at, K: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Load a word of sixteen codes of each row and its scale, each of shape (n,)."""
    mask = at < K // 16
    words, factors = (), ()
    for row in tl.static_range(BLOCK):
        own = (tl.minimum(first + row // 2 * STRIDE, end - STRIDE) + row % 2 * distance).to(tl.int64)
        words += (tl.load(codes + own * (K // 16) + at, mask=mask, other=0),)
        factors += (tl.load(scales + own * (K // 64) + at // 4, mask=mask, other=0.0),)
    return words, factors


@triton.jit
def nf4_products(  # type: ignore[no-untyped-def]
    x, codes, scales, table, gain, first, distance, end, K: tl.constexpr, NORM: tl.constexpr, STRIDE: tl.constexpr,
    BLOCK: tl.constexpr, THREADS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """See ``matvec._products``. ``THREADS`` is the number of threads of the program."""
    PAIRS: tl.constexpr = BLOCK // 2
    thread = tl.arange(0, THREADS)
    numbers = ()
    for at in tl.static_range(8):
        numbers += (tl.load(table + thread % 2 * 8 + at),)
    sums = ()
    for _ in tl.static_range(4 * PAIRS):
        sums += (tl.zeros((THREADS,), dtype=tl.float32),)
    squares = tl.zeros((THREADS,), dtype=tl.float32)
    loaded = _load_codes(codes, scales, first, distance, end, thread, K, STRIDE, BLOCK)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    for start in tl.static_range(0, K // 16, THREADS):
        at = start + thread
        words, factors = loaded
        if start + THREADS < K // 16:  # load the next words before these are processed
            loaded = _load_codes(codes, scales, first, distance, end, at + THREADS, K, STRIDE, BLOCK)
        inside = tl.minimum(at, K // 16 - 1)  # numbers that are read twice have a factor of 0
        values = _sixteen(x, inside)
        if NORM:
            even, odd = tl.inline_asm_elementwise(
                SQUARE, "=f,=f," + EIGHT, values, dtype=(tl.float32,) * 2, is_pure=True, pack=1
            )
            squares += tl.where(at < K // 16, _diagonal(even, odd, thread), 0.0)
            gains, scaled = _sixteen(gain, inside), ()
            for pair in tl.static_range(8):
                scaled += (tl.inline_asm_elementwise(TIMES, "=r,r,r", (values[pair], gains[pair]), dtype=tl.int32,
                                                     is_pure=True, pack=1),)  # fmt: skip
            values = scaled
        added = ()
        for pair in tl.static_range(PAIRS):
            four = tl.inline_asm_elementwise(
                PRODUCT, "=&f,=&f,=&f,=&f,l,l," + EIGHT + "," + EIGHT,
                (words[2 * pair], words[2 * pair + 1]) + values + numbers,
                dtype=(tl.float32,) * 4, is_pure=True, pack=1,
            )  # fmt: skip
            for part in tl.static_range(4):
                added += (sums[4 * pair + part] + four[part] * factors[2 * pair + part // 2],)
        sums = added
    rows = ()
    for row in tl.static_range(BLOCK):
        rows += (_diagonal(sums[2 * row], sums[2 * row + 1], thread),)
    return tl.sum(tl.reshape(_stacked(rows), (THREADS, BLOCK)), 0), tl.sum(squares)
