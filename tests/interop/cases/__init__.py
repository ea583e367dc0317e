# SPDX-License-Identifier: Apache-2.0
"""Importing this package registers every case. The order here is the order in which they run."""

from . import selftest, matrix, parked, mapped, mapped_workers, mapped_faults, libvirt, synthetic, hostile, kill, \
    faults, trouble, leftover, xbzrle, multifd, multifd_faults, refusals, images, postcopy_source, \
    resume, working_set, postcopy_destination, postcopy_pair, postcopy_breaks, postcopy_hostile, \
    postcopy_forbidden, resume_faults, postcopy_kills, resume_images, cpr, cpr_faults  # noqa: F401
