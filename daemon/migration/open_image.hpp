// SPDX-License-Identifier: Apache-2.0
//
// A libvirt save image named as a migration's file: what its header says decides how it is opened.
//
// `file:PATH` without an offset, of a path or a descriptor set, is looked at; if the file begins with libvirt's header,
// the stream is taken from where it begins, sparse images as mapped-ram whatever the capability says, compressed ones
// through the program that the header names. Every other file is opened by the capabilities, as QEMU opens it; but one
// that is opened lazily (instant-resume) is mapped-ram or not as it is itself.
//
// Thread: control; a few kilobytes are read.
#pragma once

#include "base/result.hpp"
#include "daemon/migration/plan.hpp"
#include "protocol/qmp/capabilities.hpp"
#include "transports/address.hpp"
#include "transports/fd_source.hpp"

#include <string>
#include <vector>

namespace migrationd::migration {

struct IncomingFile {
  transports::Address address;
  qmp::Capabilities capabilities;   // mapped-ram as the image is
  std::vector<std::string> filter;  // the decompressor and its arguments; empty: none
  bool goes_on = false;             // libvirt stopped the machine to save it: it runs again
};

// Errors: an image that is not whole, or of no kind we know, with the reason. What cannot be opened is not an error
// here: whoever opens it says so.
Result<IncomingFile> look_at_incoming(const transports::Address& address, const qmp::Capabilities& capabilities,
                                      transports::FdSource& descriptors);

}  // namespace migrationd::migration
