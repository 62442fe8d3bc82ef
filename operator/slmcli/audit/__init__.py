# SPDX-License-Identifier: Apache-2.0
"""`audit`: what a reviewer asks of a deployment, answered from what the API server tells."""
