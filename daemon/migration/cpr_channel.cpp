// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/cpr_channel.hpp"

#include <array>
#include <utility>

namespace migrationd::migration {
namespace {

// The whole list of a common guest is some 300 bytes.
constexpr std::size_t read_bytes = 4096;

Error ended_early() {
  return Error(ErrorKind::peer, "cpr channel: the new process ended before it had read the list of descriptors");
}

Result<void> send_list(int socket, std::span<const cpr::NamedDescriptor> descriptors, const StopSource& stop) {
  ByteWriter out;
  cpr::encode_header(out);
  for (const cpr::NamedDescriptor& descriptor : descriptors) {
    MD_CHECK(cpr::check_name(descriptor.name));
    cpr::encode_entry(out, descriptor.name, descriptor.id);
    MD_CHECK(transports::send_bytes(socket, out.view(), stop));
    MD_CHECK(transports::send_descriptor(socket, cpr::carrier, descriptor.fd.get(), stop));
    out.clear();
  }
  // With an empty list the header is still here.
  out.u8(std::to_integer<std::uint8_t>(cpr::end_of_list));
  MD_CHECK(transports::send_bytes(socket, out.view(), stop));
  return transports::end_writing(socket);
}

}  // namespace

Result<void> send_descriptors(int socket, std::span<const cpr::NamedDescriptor> descriptors, const StopSource& stop) {
  if (descriptors.size() > cpr::most_entries) {
    return Error(ErrorKind::limit, "cpr channel: more descriptors than a list may have");
  }
  auto sent = send_list(socket, descriptors, stop);
  if (sent) return {};
  const int number = sent.error().sys_errno();
  if (number == EPIPE || number == ECONNRESET) return ended_early();
  return std::move(sent).error().with("cpr channel");
}

Result<ReceivedDescriptors> receive_descriptors(int socket, const StopSource& stop,
                                                const transports::Deadline& deadline) {
  cpr::CprStateDecoder decoder;
  std::array<std::byte, read_bytes> buffer{};
  while (true) {
    std::vector<UniqueFd> descriptors;
    auto got = transports::receive(socket, buffer, descriptors, stop, deadline);
    if (!got) {
      if (got.error().sys_errno() == ETIMEDOUT && decoder.list_ended()) {
        return wire_error("cpr channel: the old process did not end its side behind the list");
      }
      return std::move(got).error().with("cpr channel");
    }
    if (*got == 0) break;
    MD_CHECK(decoder.feed(ByteView(buffer.data(), *got), std::move(descriptors)));
  }
  ReceivedDescriptors received;
  received.untouched = decoder.untouched();
  if (received.untouched) return received;
  MD_TRY(received.entries, std::move(decoder).finish());
  return received;
}

Result<void> await_new_process(int socket, const StopSource& stop) {
  MD_TRY(const bool read_all, transports::await_hangup(socket, stop));
  if (read_all) return {};
  return ended_early();
}

Result<void> await_old_process(int socket, const StopSource& stop) {
  const UniqueFd process = transports::watch_peer_process(socket);
  auto ended = transports::await_hangup(socket, stop, process.get());
  if (!ended && ended.error().is_cancelled()) return std::move(ended).error();
  return {};
}

}  // namespace migrationd::migration
