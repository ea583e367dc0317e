// SPDX-License-Identifier: Apache-2.0
//
// The first eight bytes of a stream: magic and version.
#pragma once

#include "base/bytes.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/layout.hpp"

namespace migrationd::stream {

struct Header {};

// Ready when magic and version are QEMU's; a wrong magic is refused as soon as its bytes are there.
Decoded<Header> decode_header(ByteView available);
void encode_header(ByteWriter& out);

}  // namespace migrationd::stream
