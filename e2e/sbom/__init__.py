# SPDX-License-Identifier: Apache-2.0
"""Software bills of materials of the images, from the locks that they are installed from."""
