// SPDX-License-Identifier: Apache-2.0
// What a guest says of itself until READY, whole: packets one after the other, each with the descriptors it asks for.
//
// An input is packets as `length (2 bytes), kinds (1 byte), packet`; each two bits of `kinds` choose a descriptor: a
// sealed memfd of two pages, one that may shrink, a sealed one of a bitmap's size, or /dev/null. A guest that was
// taken has memory that can be looked at to its last byte.
#include "base/bytes.hpp"
#include "daemon/machine/guest_registration.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

using namespace migrationd;

namespace {

// Larger ones cost page tables and address space, and say nothing more.
constexpr std::uint64_t largest_block = std::uint64_t{1} << 30;

int memfd(std::size_t bytes, bool sealed) {
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) std::abort();
  if (sealed && ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) std::abort();
  return fd;
}

std::vector<UniqueFd> descriptors(std::size_t count, unsigned kinds) {
  std::vector<UniqueFd> out;
  for (std::size_t i = 0; i < count; ++i, kinds >>= 2U) {
    switch (kinds & 3U) {
      case 0:
        out.emplace_back(memfd(8192, true));
        break;
      case 1:
        out.emplace_back(memfd(8192, false));
        break;
      case 2:
        out.emplace_back(memfd(4096, true));
        break;
      default:
        out.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC));
    }
  }
  return out;
}

bool too_large(guest::Type type, ByteView body) {
  if (type != guest::Type::new_block) return false;
  const auto block = guest::decode<guest::NewBlock>(body);
  return block.has_value() && block->length > largest_block;
}

void look_at(const RegisteredGuest& guest) {
  const std::size_t blocks = guest.ram.size();
  if (blocks == 0 || blocks != guest.addresses.size() || blocks != guest.tracking.size() ||
      blocks != guest.bitmaps.size())
    std::abort();
  for (std::size_t i = 0; i < blocks; ++i) {
    const auto& block = guest.ram.at(i);
    std::byte last{};
    if (::pread(block.fd(), &last, 1, static_cast<off_t>(block.length() - 1)) != 1) std::abort();
  }
}

// False: the connection would end here.
bool take(GuestRegistration& registration, ByteView packet, unsigned kinds) {
  ByteReader in(packet);
  const auto header = guest::decode_header(in);
  if (!header || header->is_reply()) return false;
  const auto type = static_cast<guest::Type>(header->type);
  if (type == guest::Type::ready) {
    const auto guest = registration.ready(in.rest());
    if (guest.has_value()) look_at(*guest);
    return !guest.has_value() && guest.error().kind() != ErrorKind::wire;
  }
  if (too_large(type, in.rest())) return true;
  const auto due = guest::fds_of(header->type);
  const std::size_t count = due.least + (kinds >> 7U) * (due.most - due.least);
  const auto answer = registration.take(type, in.rest(), descriptors(count, kinds));
  return answer.has_value() || answer.error().kind() != ErrorKind::wire;
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  GuestRegistration registration("fuzz", std::chrono::seconds(1));
  ByteReader in(std::as_bytes(std::span(data, size)));
  for (;;) {
    const auto length = in.u16();
    const auto kinds = in.u8();
    if (!length || !kinds) return 0;
    const auto packet = in.bytes(*length);
    if (!packet || !take(registration, *packet, *kinds)) return 0;
  }
}
