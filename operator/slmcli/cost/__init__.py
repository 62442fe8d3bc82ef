# SPDX-License-Identifier: Apache-2.0
"""`cost`: what serving a model takes, by site, and what the same tokens would cost elsewhere."""
