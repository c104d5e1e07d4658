"""Every format that can be said, in training: what a student computes with is what it would store, bit for bit."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from ggufs import random_blocks
from linears import one_of_each
from packables import random_quantized

from schemas.distill import Codes, Distill, Offsets, Rates
from schemas.format import Format, Ggml, PerColumn, format_names, read_format
from steps.distill.build import build_start
from steps.distill.codes.code import Grid
from steps.distill.codes.spacing import Table
from steps.distill.matrices.matrix import Matrix
from steps.distill.student import Student, student, tensors_of, untrained
from steps.quantize.ggml.blocks import unpack
from steps.quantize.ggml.kinds import IQ4_NL_VALUES, KINDS
from steps.quantize.grids.affine import GridParams
from steps.quantize.grids.levels import Grid as Solvable
from steps.quantize.grids.levels import nearest_levels
from steps.quantize.grids.pieces import Pieces
from steps.quantize.qtensor import QuantizedTensor, from_value, item_meta
from steps.quantize.tensors.affine import AffineTensor
from steps.quantize.tensors.ggml import GgmlTensor
from steps.quantize.tensors.mixed import MixedTensor, steps
from steps.step import Output

FORMATS = [read_format(name) for name in format_names()]
NAMES = [form.name for form in FORMATS]
CODED = [form for form in FORMATS if form.name != "f16"]
NAME, ROWS, COLUMNS = "model.layers.0.mlp.up_proj", 3, 256


def matrix_of(form: Format) -> QuantizedTensor:
    """Random codes over the whole grid; of llama.cpp's types also flat groups and integer scales of either sign."""
    if isinstance(form, Ggml):
        return GgmlTensor(NAME, form, random_blocks(form.type, ROWS, COLUMNS // form.block.weights))
    return random_quantized(NAME, form, (ROWS, COLUMNS), seed=3)


def item_of(q: QuantizedTensor) -> Output:
    return Output(item_meta("layers.0.mlp.up", q.format, {NAME: {"shape": list(q.shape)}}), q.to_tensors())


def original_of(q: QuantizedTensor) -> Output:
    """A model whose weights are as far off the grid as weights are."""
    W_OI = q.dequantize()
    noise_OI = torch.randn(W_OI.shape, generator=torch.Generator().manual_seed(1))
    tensors = {f"{NAME}.weight": W_OI + 0.3 * W_OI.abs().mean() * noise_OI}
    return Output({"shapes": {name: list(t.shape) for name, t in tensors.items()}}, tensors)


BOTH = Rates(codes=0.2, scales=0.1)


def spec_of(codes: Any = None, rates: Rates = BOTH) -> Distill:
    return Distill(step="distill", rates=rates, **({} if codes is None else {"codes": codes}))


def students(form: Format, spec: Distill) -> tuple[QuantizedTensor, Student]:
    """A matrix and the student that is it alone."""
    q = matrix_of(form)
    return q, student(spec, original_of(q), Output(children={"layers.0.mlp.up": item_of(q)}), [0], False, "cpu")


def same(first: QuantizedTensor, second: QuantizedTensor) -> bool:
    ours, theirs = first.to_tensors(), second.to_tensors()
    return (first.format, first.shape, ours.keys()) == (second.format, second.shape, theirs.keys()) and all(
        t.dtype == theirs[n].dtype and torch.equal(t, theirs[n]) for n, t in ours.items()
    )


def move(matrix: Matrix, seed: int = 5) -> None:
    """Every variable far from its start, as training could."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if (variable := matrix.code.variable) is not None:
            variable.add_(2 * torch.randn(variable.shape, generator=generator))
        for part in matrix.frame.scales:
            if part.delta_X is not None:
                part.delta_X.add_(0.3 * torch.randn(part.delta_X.shape, generator=generator))
    matrix.code.project()


def test_every_family_is_here() -> None:
    assert {type(form) for form in FORMATS} == set(get_args(Format))


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_a_student_starts_as_the_stored_matrix_bit_for_bit(form: Format) -> None:
    q, trained = students(form, spec_of())
    matrix = trained.matrices[NAME]
    for hard in (True, False):
        assert torch.equal(matrix.weight(hard), q.dequantize())
    assert same(matrix.stored(), q)
    assert set(tensors_of(trained)) == set(q.to_tensors())


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_what_is_stored_is_what_was_computed_with_whatever_moved(form: Format) -> None:
    for codes in (None, *one_of_each(Codes)):
        q, trained = students(form, spec_of(codes, Rates(scales=0.1) if codes is None else BOTH))
        matrix = trained.matrices[NAME]
        move(matrix)
        stored = matrix.stored()
        assert torch.equal(stored.dequantize(), matrix.weight(hard=True)), codes
        assert stored.nbytes() == q.nbytes() and torch.isfinite(stored.dequantize()).all(), codes
        back = from_value(item_of(stored), NAME)
        assert same(back, stored) and back.shape == q.shape, codes
        assert same(stored, q) == (form.name == "f16"), codes
        if isinstance(stored, GgmlTensor) and form.name != "f16":
            assert int(unpack(stored.format.type, stored.blocks_OB)[0].max()) < KINDS[stored.format.type].levels


@pytest.mark.parametrize("form", CODED, ids=[form.name for form in CODED])
def test_codes_and_scales_have_gradients_and_their_own_rates(form: Format) -> None:
    _, trained = students(form, spec_of())
    rated = trained.variables(spec_of(), 10)
    trained.matrices[NAME].weight(hard=False).square().sum().backward()
    assert [rate for _, rate in rated] == [0.2] + [0.1] * (len(rated) - 1) and len(rated) in (2, 3)
    assert all(variable.grad is not None and variable.grad.abs().sum() > 0 for variable, _ in rated)


def solvable(q: QuantizedTensor) -> Solvable:
    """The grid that a solver would choose codes of this matrix on."""
    match q:
        case AffineTensor():
            return GridParams(q.format, q.scale_OG, q.zero_point_OG)
        case GgmlTensor():
            return unpack(q.format.type, q.blocks_OB)[1]
        case MixedTensor():
            return Pieces(steps(q.format, q.scale_OG.float(), q.bits_K), q.bits_K)
        case _:
            raise NotImplementedError(type(q))


@pytest.mark.parametrize("form", CODED, ids=[form.name for form in CODED])
def test_no_offset_is_the_nearest_level_of_the_solvers_own_grid(form: Format) -> None:
    q, trained = students(form, spec_of(Offsets(kind="offsets")))
    W_OI, grid = original_of(q).tensors[f"{NAME}.weight"], solvable(q)
    nearest = grid.codes(nearest_levels(W_OI, grid.levels(torch.float32)))
    stored = trained.matrices[NAME].stored()
    codes = unpack(stored.format.type, stored.blocks_OB)[0] if isinstance(stored, GgmlTensor) else stored.codes_OI
    assert torch.equal(codes, nearest)


@pytest.mark.parametrize("form", CODED, ids=[form.name for form in CODED])
def test_levels_undo_weights(form: Format) -> None:
    """But where a group is flat, and to the accuracy of a division and, with minima, of a difference."""
    start = build_start(item_of(matrix_of(form)), NAME, "cpu", scaled=False)
    spacing, within = start.frame.spacing(), start.level_OGJ + 0.25
    steep = (spacing.step_OG1 != 0).expand(within.shape)
    back = spacing.levels(spacing.weights(within))
    torch.testing.assert_close(back[steep], within[steep], rtol=1e-4, atol=2e-3)
    apart = spacing.weights(within) - spacing.weights(start.level_OGJ)
    torch.testing.assert_close(spacing.apart(within, start.level_OGJ), apart, rtol=1e-3, atol=1e-5)


def test_the_table_is_exact_at_whole_levels_and_half_way_half_way() -> None:
    values_L = torch.tensor(IQ4_NL_VALUES, dtype=torch.float32)
    table, level_L = Table(values_L), torch.arange(16.0)
    assert torch.equal(table.values(level_L), values_L) and torch.equal(table.levels(values_L), level_L)
    assert torch.equal(table.values(level_L[:-1] + 0.5), (values_L[1:] + values_L[:-1]) / 2)
    outside = torch.tensor([-150.0, 130.0])
    torch.testing.assert_close(table.values(table.levels(outside)), outside)


def test_bounds_of_widths_are_those_of_each_column() -> None:
    q = matrix_of(PerColumn(mean_bits=3, group_size=64))
    assert isinstance(q, MixedTensor)
    start = build_start(item_of(q), NAME, "cpu", scaled=False)
    assert start.bounds is not None
    wide = torch.full_like(start.level_OGJ, 1e6)
    for sign, ends_K in ((1, 2.0 ** (q.bits_K - 1) - 1), (-1, -(2.0 ** (q.bits_K - 1)))):
        assert torch.equal(start.bounds.clamp(sign * wide).flatten(1), ends_K.expand(q.shape))
    grid = Grid(start.level_OGJ, start.bounds, start.frame.spacing(), q.dequantize().view(start.level_OGJ.shape))
    torch.testing.assert_close(grid.wanted(), start.level_OGJ)


def test_what_is_not_trained_is_said() -> None:
    plain, coded = item_of(matrix_of(Ggml(type="f16"))), item_of(matrix_of(Ggml(type="q4_k")))
    outside = Output({**coded.meta, "members": {"model.embed_tokens": {}}})
    selection = Output(children={"a": plain, "b": coded, "norms": Output(), "embed_tokens": outside})
    assert untrained(selection) == ["a", "embed_tokens"]
    _, trained = students(Ggml(type="f16"), spec_of())
    assert trained.variables(spec_of(), 10) == []
