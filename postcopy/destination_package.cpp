// SPDX-License-Identifier: Apache-2.0
#include "postcopy/destination_package.hpp"

#include "base/limits.hpp"
#include "protocol/stream/footer_scan.hpp"
#include "protocol/stream/globalstate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace migrationd::postcopy {
namespace {

namespace command = stream::command;

// As they stand on the wire.
constexpr std::size_t run_bytes = 5;
constexpr std::size_t ping_bytes = 9;

// The commands at the front, up to the first section. LISTEN is among them, once and first.
Result<std::size_t> take_front(ByteView bytes, std::vector<std::uint32_t>& pings) {
  std::size_t at = 0;
  bool listening = false;
  while (at < bytes.size() && bytes[at] == std::byte{stream::mark::command}) {
    auto decoded = stream::decode_command(bytes.subspan(at));
    if (decoded.needs_more()) return wire_error("a command is cut off at the package's end");
    if (decoded.failed()) return std::move(decoded).error();
    const stream::Command& found = decoded.value();
    const auto* ping = std::get_if<command::Ping>(&found);
    if (std::holds_alternative<command::PostcopyListen>(found) && !listening) {
      listening = true;
    } else if (ping != nullptr && listening) {
      pings.push_back(ping->value);
    } else if (std::holds_alternative<command::PostcopyRun>(found) && listening) {
      return at;  // a package without devices
    } else {
      return wire_error(fmt::format("command {} in its place", stream::command_name(found)));
    }
    at += decoded.consumed();
  }
  if (!listening) return wire_error("it does not begin with POSTCOPY_LISTEN");
  return at;
}

template <class Kind>
const Kind* command_at(ByteView bytes, std::size_t size, stream::Command& store) {
  if (bytes.size() < size || bytes[bytes.size() - size] != std::byte{stream::mark::command}) return nullptr;
  auto decoded = stream::decode_command(bytes.last(size));
  if (!decoded.is_ready() || decoded.consumed() != size) return nullptr;
  store = std::move(decoded).value();
  return std::get_if<Kind>(&store);
}

// RUN and the PINGs before it, taken off the end.
Result<ByteView> take_back(ByteView bytes, std::vector<std::uint32_t>& pings) {
  stream::Command store;
  if (command_at<command::PostcopyRun>(bytes, run_bytes, store) == nullptr) {
    return wire_error("it does not end with POSTCOPY_RUN");
  }
  bytes = bytes.first(bytes.size() - run_bytes);
  std::vector<std::uint32_t> last;
  while (const auto* ping = command_at<command::Ping>(bytes, ping_bytes, store)) {
    last.push_back(ping->value);
    bytes = bytes.first(bytes.size() - ping_bytes);
  }
  pings.insert(pings.end(), last.rbegin(), last.rend());
  return bytes;
}

Result<std::vector<stream::SectionSpan>> find_sections(ByteView bytes, stream::ScanRules& rules) {
  stream::ScanBudget budget{limits::footer_scan_bytes};
  // As at the end of a precopy stream: a chain with globalstate is believed before one without.
  rules.required_name = stream::globalstate_name;
  auto sections = stream::scan_sections(bytes, rules, budget);
  if (sections || sections.error().kind() == ErrorKind::limit) return sections;
  rules.required_name.clear();
  return stream::scan_sections(bytes, rules, budget);
}

Result<Package> parse(ByteView bytes, stream::ScanRules& rules) {
  Package package;
  MD_TRY(const std::size_t front, take_front(bytes, package.pings));
  MD_TRY(const ByteView body, take_back(bytes.subspan(front), package.pings));
  MD_TRY(auto spans, find_sections(body, rules));
  for (stream::SectionSpan& span : spans) package.sections.push_back(stream::take_section(span, body));
  return package;
}

}  // namespace

Result<Package> parse_package(ByteView bytes, std::uint32_t ram_section_id, std::vector<std::uint32_t> used_ids) {
  stream::ScanRules rules;
  rules.ram_section_id = ram_section_id;
  rules.used_ids = std::move(used_ids);
  auto package = parse(bytes, rules);
  if (!package) return std::move(package).error().with(fmt::format("package of {} bytes", bytes.size()));
  return package;
}

}  // namespace migrationd::postcopy
