// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/guest_record.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace migrationd {
namespace {

template <class Body>
void put_packet(guest::Type type, const Body& body, ByteWriter& out) {
  // Every packet with the same serial: nothing answers it.
  const Bytes packet = guest::packet(static_cast<std::uint16_t>(type), 1, body);
  out.u32(static_cast<std::uint32_t>(packet.size())).bytes(packet);
}

struct RecordedPacket {
  guest::Type type;
  ByteView body;
};

Result<RecordedPacket> take_packet(ByteReader& in) {
  MD_TRY(const std::uint32_t length, in.u32());
  if (length > guest::packet_bytes) return wire_error(fmt::format("a packet of {} bytes", length));
  MD_TRY(const ByteView packet, in.bytes(length));
  ByteReader body(packet);
  MD_TRY(const guest::Header header, guest::decode_header(body));
  return RecordedPacket{static_cast<guest::Type>(header.type), body.rest()};
}

Result<UniqueFd> take_descriptor(std::vector<cpr::NamedDescriptor>& descriptors, const std::string& name,
                                 std::int32_t id) {
  const auto found = std::find_if(descriptors.begin(), descriptors.end(),
                                  [&](const auto& entry) { return entry.name == name && entry.id == id; });
  if (found == descriptors.end())
    return machine_error(fmt::format("block '{}': its {} was not handed over", printable(name),
                                     id == memory_descriptor_id ? "memory" : "bitmap"));
  UniqueFd fd = std::move(found->fd);
  descriptors.erase(found);
  return fd;
}

Result<RegisteredGuest> replay(ByteReader& in, std::vector<cpr::NamedDescriptor>& descriptors) {
  // Its answers go to nobody: the guest has had them.
  GuestRegistration registration("migrationd", std::chrono::milliseconds(1));
  while (true) {
    MD_TRY(const RecordedPacket packet, take_packet(in));
    if (packet.type == guest::Type::ready) return registration.ready(packet.body);
    // Memory that is only now to be made is none that the guest has.
    if (packet.type == guest::Type::new_block) return wire_error("NEW_BLOCK in a registration");
    std::vector<UniqueFd> fds;
    if (packet.type == guest::Type::add_block) {
      MD_TRY(const auto block, guest::decode<guest::AddBlock>(packet.body));
      MD_TRY(UniqueFd memory, take_descriptor(descriptors, block.name, memory_descriptor_id));
      fds.push_back(std::move(memory));
      if (guest::fds_of(block) == 2) {
        MD_TRY(UniqueFd bitmap, take_descriptor(descriptors, block.name, bitmap_descriptor_id));
        fds.push_back(std::move(bitmap));
      }
    }
    MD_CHECK(registration.take(packet.type, packet.body, std::move(fds)));
  }
}

Result<cpr::NamedDescriptor> duplicate(int fd, const std::string& name, std::int32_t id) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy) return Error::from_errno(fmt::format("hand the memory of block '{}' over", printable(name)));
  return cpr::NamedDescriptor{name, id, std::move(copy)};
}

}  // namespace

Bytes encode_registration(const RegisteredGuest& guest) {
  ByteWriter out;
  out.u32(registration_magic);
  guest::Hello hello = guest.hello;
  // What version it speaks was agreed; the device it has, if it wanted it.
  hello.lowest = hello.highest = guest::protocol_version;
  hello.wants_device = false;
  put_packet(guest::Type::hello, hello, out);
  for (std::size_t i = 0; i < guest.ram.size(); ++i) {
    const ram::RamBlock& block = guest.ram.at(i);
    guest::AddBlock body;
    body.name = block.name();
    body.address = reinterpret_cast<std::uint64_t>(guest.addresses[i]);
    body.length = block.length();
    body.page_size = static_cast<std::uint32_t>(block.backing_page());
    body.tracking = guest.tracking[i];
    put_packet(guest::Type::add_block, body, out);
  }
  for (const guest::AddDevice& device : guest.devices) put_packet(guest::Type::add_device, device, out);
  put_packet(guest::Type::ready, guest.ready, out);
  return std::move(out).take();
}

Result<RegisteredGuest> decode_registration(ByteView record, std::vector<cpr::NamedDescriptor>& descriptors) {
  constexpr const char* context = "the guest's registration";
  ByteReader in(record);
  auto magic = in.u32();
  if (!magic) return std::move(magic).error().with(context);
  if (*magic != registration_magic) return wire_error(fmt::format("magic {}", hex(*magic))).with(context);
  auto guest = replay(in, descriptors);
  if (!guest) return std::move(guest).error().with(context);
  if (!in.at_end()) return wire_error(fmt::format("{} bytes too many", in.remaining())).with(context);
  return guest;
}

Bytes encode_standing(const GuestStanding& standing) {
  ByteWriter out;
  out.u32(standing_magic).u8(static_cast<std::uint8_t>(standing.state));
  out.u32(standing.last_serial).u32(standing.last_blocker);
  out.u32(static_cast<std::uint32_t>(standing.blockers.size()));
  for (const auto& [number, reason] : standing.blockers) {
    out.u32(number);
    guest::encode(guest::AddBlocker{reason}, out);
  }
  return std::move(out).take();
}

Result<GuestStanding> decode_standing(ByteView record) {
  GuestStanding out;
  ByteReader in(record);
  MD_TRY(const std::uint32_t magic, in.u32());
  MD_TRY(const std::uint8_t state, in.u8());
  MD_TRY(out.last_serial, in.u32());
  MD_TRY(out.last_blocker, in.u32());
  MD_TRY(const std::uint32_t count, in.u32());
  if (magic != standing_magic) return wire_error(fmt::format("the guest's standing: magic {}", hex(magic)));
  if (state != static_cast<std::uint8_t>(guest::GuestState::paused) &&
      state != static_cast<std::uint8_t>(guest::GuestState::running))
    return wire_error(fmt::format("the guest's standing: state {} is neither paused nor running", state));
  out.state = static_cast<guest::GuestState>(state);
  if (count > guest::guest_blockers)
    return Error(ErrorKind::limit,
                 fmt::format("the guest's standing: {} blockers are more than {}", count, guest::guest_blockers));
  for (std::uint32_t i = 0; i < count; ++i) {
    MD_TRY(const std::uint32_t number, in.u32());
    MD_TRY(const std::uint16_t length, in.u16());
    MD_TRY(const ByteView reason, in.bytes(length));
    const std::string_view text = as_text(reason);
    if (text.empty() || !guest::is_sentence(text)) return wire_error("the guest's standing: a reason is no sentence");
    out.blockers.emplace_back(number, std::string(text));
  }
  if (!in.at_end()) return wire_error(fmt::format("the guest's standing: {} bytes too many", in.remaining()));
  return out;
}

Result<std::vector<cpr::NamedDescriptor>> share_memory(const RegisteredGuest& guest) {
  std::vector<cpr::NamedDescriptor> out;
  for (std::size_t i = guest.ram.size(); i-- > 0;) {
    const ram::RamBlock& block = guest.ram.at(i);
    MD_TRY(auto memory, duplicate(block.fd(), block.name(), memory_descriptor_id));
    out.push_back(std::move(memory));
    if (!guest.bitmaps[i]) continue;
    MD_TRY(auto bitmap, duplicate(guest.bitmaps[i]->fd(), block.name(), bitmap_descriptor_id));
    out.push_back(std::move(bitmap));
  }
  return out;
}

}  // namespace migrationd
