# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Multiple instance learning on large medical images: head CT in `ct`, whole slides in `wsi`, on what both share."""
