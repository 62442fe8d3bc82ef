#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Takes out of a site-packages directory what no image runs, and compiles the rest.
set -eu
lib=$1
cd "$lib"
# Console scripts, test suites, headers, type stubs and static libraries.
rm -rf bin include share
find . -depth -type d \( -name tests -o -name test -o -name __pycache__ \) -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' -o -name '*.h' \
  -o -name '*.hpp' -o -name '*.c' -o -name '*.cpp' -o -name '*.lib' \) -delete
# onnxruntime's converters and quantizers need packages that are not here.
rm -rf onnxruntime/tools onnxruntime/transformers onnxruntime/quantization onnxruntime/datasets
# numpy's Fortran compiler and build helper.
rm -rf numpy/f2py numpy/distutils
# OpenVINO's other devices, and the readers of formats that are not its own.
(cd openvino/libs 2> /dev/null && rm -f cache.json libopenvino_intel_gpu_plugin.so* libopenvino_intel_npu_plugin.so* \
  libopenvino_pytorch_* libopenvino_tensorflow_* libopenvino_paddle_* libopenvino_jax_* libopenvino_onnx_* \
  libopenvino_gguf_* libopenvino_auto_* libopenvino_hetero_*) || true
# Packages may carry templates that are no Python; those stay uncompiled.
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash . > /dev/null || true
