# SPDX-License-Identifier: Apache-2.0
"""How the models of `e2e/models/orders` were made: data, tokenizer, training, export, evaluation."""
