# SPDX-License-Identifier: Apache-2.0
"""Quantization with onnxruntime's own tools: matrices in blocks of 8 or 4 bits."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np

from slmopt.errors import unfit
from slmopt.graph import OnnxExport
from slmopt.job import QuantizeInt4, QuantizeInt8
from slmopt.log import log


def apply_int8(export: OnnxExport, step: QuantizeInt8) -> None:
    """Quantize the matrices in place to MatMulNBits with 8 bits; raises OptimizeError (Unfit).

    Not onnxruntime's dynamic quantization, which takes one scale from the activations of a whole batch:
    what a server answers to one would depend on what others ask at the same moment. Here a row has its own
    scales, and the number of rows moves it by rounding of float32 alone (1e-5 of logits around 10).
    """
    export.refuse_quantized("quantizeInt8")
    chosen = {matrix.node for matrix in export.select(step.exclude, step="quantizeInt8")}
    others = [node.name for node in export.nodes if node.op_type == "MatMul" and node.name not in chosen]
    _quantize_blocks(export, bits=8, block_size=step.block_size, accuracy_level=4, excluded=others)
    _refuse_left(export, chosen, step="quantizeInt8")
    log("quantized", bits=8, matrices=len(chosen), block=step.block_size)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's progress bars, hints and divisions by the scale of empty blocks.

    What it does not understand of a graph is raised as OptimizeError (Unfit).
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise unfit(f"onnxruntime cannot quantize this graph ({text}); export the model again") from error
    finally:
        logging.disable(before)


def apply_int4(export: OnnxExport, step: QuantizeInt4) -> None:
    """Quantize the matrices in place to MatMulNBits with 4 bits; raises OptimizeError (Unfit)."""
    export.refuse_quantized("quantizeInt4")
    chosen = {matrix.node for matrix in export.select(step.exclude, step="quantizeInt4")}
    others = [node.name for node in export.nodes if node.op_type == "MatMul" and node.name not in chosen]
    if step.algorithm == "kQuant":
        _refuse_odd_blocks(export, chosen, step.block_size)
        if step.embeddings:
            raise unfit('quantizeInt4.embeddings works with algorithm "rtn"; choose one of the two')
        _quantize_k(export, step, others)
    else:
        kinds = ("MatMul", "Gather") if step.embeddings else ("MatMul",)
        if step.embeddings:
            # Only the embedding table: other lookups are index arithmetic of the graph.
            table = _find_embedding(export)
            others += [n.name for n in export.nodes if n.op_type == "Gather" and n.name != table]
        _quantize_blocks(
            export,
            bits=4,
            block_size=step.block_size,
            accuracy_level=step.accuracy_level,
            excluded=others,
            symmetric=step.symmetric,
            kinds=kinds,
        )
    _refuse_left(export, chosen, step="quantizeInt4")
    log("quantized", bits=4, matrices=len(chosen), block=step.block_size, algorithm=step.algorithm)


def _refuse_left(export: OnnxExport, chosen: set[str], *, step: str) -> None:
    """onnxruntime passes over what it does not know, and says so in its log alone."""
    for node in export.nodes:
        if node.op_type == "MatMul" and node.name in chosen:
            raise unfit(
                f"{step}: onnxruntime left {node.name} as it is, whose weights are no plain matrix; name it "
                f"in {step}.exclude, or export the model again"
            )


def _refuse_odd_blocks(export: OnnxExport, chosen: set[str], block: int) -> None:
    """onnxruntime packs the offsets of two blocks into a byte, and cannot where one is left over."""
    for matrix in export.matrices():
        inputs = export.shape(matrix.weight)[0]
        if matrix.node in chosen and -(-inputs // block) % 2:
            raise unfit(
                f"quantizeInt4.blockSize {block} makes {-(-inputs // block)} blocks of the {inputs} "
                f'inputs of {matrix.node}, and "kQuant" needs an even number; choose another size, or "rtn"'
            )


def _find_embedding(export: OnnxExport) -> str:
    for node in export.nodes:
        if node.op_type == "Gather" and export.is_float(node.input[0]):
            return str(node.name)
    raise unfit("quantizeInt4.embeddings: the model has no embedding table in fp32 or fp16; leave it out")


def _quantize_blocks(
    export: OnnxExport,
    *,
    bits: int,
    block_size: int,
    accuracy_level: int,
    excluded: list[str],
    symmetric: bool = True,
    kinds: tuple[str, ...] = ("MatMul",),
) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(
        block_size=block_size,
        is_symmetric=symmetric,
        accuracy_level=accuracy_level or None,
        op_types_to_quantize=kinds,
        bits=bits,
    )
    quantizer = MatMulNBitsQuantizer(export.model, algo_config=config, nodes_to_exclude=excluded)
    with _quietly():
        quantizer.process()
    export.model = quantizer.model.model


def _quantize_k(export: OnnxExport, step: QuantizeInt4, excluded: list[str]) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        KQuantWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    quantizer = MatMulNBitsQuantizer(
        export.model,
        bits=4,
        block_size=step.block_size,
        is_symmetric=step.symmetric,
        accuracy_level=step.accuracy_level or None,
        nodes_to_exclude=excluded,
        algo_config=KQuantWeightOnlyQuantConfig(),
    )
    with _quietly():
        quantizer.process()
    export.model = quantizer.model.model
