// SPDX-License-Identifier: Apache-2.0
// What one daemon tells the next of a guest: the first byte chooses the record. A registration gets memory of two pages
// and a bitmap for the blocks "a" and "b"; a standing that was taken is written as it was read.
#include "daemon/machine/guest_record.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

using namespace migrationd;

namespace {

UniqueFd memfd(off_t bytes) {
  UniqueFd fd(::memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd || ::ftruncate(fd.get(), bytes) != 0 || ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0) std::abort();
  return fd;
}

void registration(ByteView record) {
  std::vector<cpr::NamedDescriptor> descriptors;
  for (const char* name : {"a", "b"}) {
    descriptors.push_back({name, memory_descriptor_id, memfd(8192)});
    descriptors.push_back({name, bitmap_descriptor_id, memfd(4096)});
  }
  const auto guest = decode_registration(record, descriptors);
  if (!guest) return;
  if (guest->ram.size() == 0 || guest->ram.size() + descriptors.size() < 2) std::abort();
  // What was taken is told again, and taken again.
  auto shared = share_memory(*guest);
  if (!shared || !decode_registration(encode_registration(*guest), *shared) || !shared->empty()) std::abort();
}

void standing(ByteView record) {
  const auto read = decode_standing(record);
  if (!read) return;
  const Bytes written = encode_standing(*read);
  if (!std::equal(written.begin(), written.end(), record.begin(), record.end())) std::abort();
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const ByteView record = std::as_bytes(std::span(data, size)).subspan(1);
  if ((data[0] & 1U) != 0) {
    registration(record);
  } else {
    standing(record);
  }
  return 0;
}
