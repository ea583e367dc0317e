// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/configuration.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace migrationd::stream {

namespace {

constexpr std::string_view page_bits_subsection = "configuration/target-page-bits";
constexpr std::string_view capabilities_subsection = "configuration/capabilities";
constexpr std::string_view uuid_subsection = "configuration/uuid";
constexpr std::uint32_t subsection_version = 1;

Error refused(std::string text) { return wire_error(fmt::format("configuration: {}", text)); }

// What one step of the decoder found: fine, or bytes are missing (the cursor knows how many), or an error.
enum class Step : std::uint8_t { done, short_of_bytes };
using StepResult = Result<Step>;

StepResult decode_capabilities(CodecCursor& in, Configuration& out) {
  std::uint32_t count = 0;
  if (!in.u32(count)) return Step::short_of_bytes;
  if (count > limits::configuration_capabilities) {
    return refused(
        fmt::format("{} capabilities are listed, at most {} are taken", count, limits::configuration_capabilities));
  }
  std::vector<std::string> capabilities;
  for (std::uint32_t i = 0; i < count; ++i) {
    std::string_view name;
    if (!in.str8(name)) return Step::short_of_bytes;
    capabilities.emplace_back(name);
  }
  out.capabilities = std::move(capabilities);
  return Step::done;
}

StepResult decode_subsection_body(std::string_view name, CodecCursor& in, Configuration& out) {
  if (name == page_bits_subsection) {
    std::uint32_t bits = 0;
    if (!in.u32(bits)) return Step::short_of_bytes;
    out.target_page_bits = bits;
    return Step::done;
  }
  if (name == capabilities_subsection) return decode_capabilities(in, out);
  if (name == uuid_subsection) {
    ByteView bytes;
    if (!in.bytes(uuid_bytes, bytes)) return Step::short_of_bytes;
    Uuid uuid{};
    std::copy(bytes.begin(), bytes.end(), uuid.begin());
    out.uuid = uuid;
    return Step::done;
  }
  return refused(fmt::format("subsection \"{}\" is unknown", printable(name)));
}

bool already_there(std::string_view name, const Configuration& configuration) {
  return (name == page_bits_subsection && configuration.target_page_bits) ||
         (name == capabilities_subsection && configuration.capabilities) ||
         (name == uuid_subsection && configuration.uuid);
}

// The 05 byte was read.
StepResult decode_subsection(CodecCursor& in, Configuration& out) {
  std::string_view name;
  std::uint32_t subsection = 0;
  if (!in.str8(name) || !in.u32(subsection)) return Step::short_of_bytes;
  if (already_there(name, out)) return refused(fmt::format("subsection \"{}\" comes twice", printable(name)));
  if (subsection != subsection_version) {
    return refused(fmt::format("subsection \"{}\" has version {}, only {} is known", printable(name), subsection,
                               subsection_version));
  }
  return decode_subsection_body(name, in, out);
}

void encode_subsection_header(ByteWriter& out, std::string_view name) {
  out.u8(mark::subsection).str8(name).u32(subsection_version);
}

Result<void> check_capability(const Configuration& received, std::string_view name, bool local) {
  const bool peer = received.capabilities && std::find(received.capabilities->begin(), received.capabilities->end(),
                                                       name) != received.capabilities->end();
  if (peer == local) return {};
  return refused(fmt::format("Capability {} is {}, but received capability is {}", name, local ? "on" : "off",
                             peer ? "on" : "off"));
}

}  // namespace

Decoded<Configuration> decode_configuration(ByteView available) {
  CodecCursor in(available);
  const auto more = [&in] { return Decoded<Configuration>::need_more(in.needed()); };
  std::uint8_t first = 0;
  if (!in.u8(first)) return more();
  if (first != mark::configuration) {
    return refused(fmt::format("Configuration section missing: byte {:#04x} where 0x07 is due", first));
  }
  std::uint32_t length = 0;
  if (!in.u32(length)) return more();
  if (length == 0 || length > limits::machine_name_bytes) {
    return refused(fmt::format("machine type name of {} bytes, 1 to {} are taken", length, limits::machine_name_bytes));
  }
  ByteView name;
  if (!in.bytes(length, name)) return more();
  Configuration out;
  out.machine_name = as_text(name);
  // No element begins with 05, so the next byte alone says whether a subsection follows.
  for (;;) {
    if (!in.has(1)) return more();
    if (available[in.position()] != std::byte{mark::subsection}) break;
    std::uint8_t skipped = 0;
    in.u8(skipped);
    auto step = decode_subsection(in, out);
    if (!step) return std::move(step).error();
    if (*step == Step::short_of_bytes) return more();
  }
  return Decoded<Configuration>::ready(std::move(out), in.position());
}

void encode_configuration(ByteWriter& out, const Configuration& configuration) {
  out.u8(mark::configuration).u32(static_cast<std::uint32_t>(configuration.machine_name.size()));
  out.text(configuration.machine_name);
  if (configuration.target_page_bits) {
    encode_subsection_header(out, page_bits_subsection);
    out.u32(*configuration.target_page_bits);
  }
  if (configuration.capabilities) {
    encode_subsection_header(out, capabilities_subsection);
    out.u32(static_cast<std::uint32_t>(configuration.capabilities->size()));
    for (const std::string& name : *configuration.capabilities) out.str8(name);
  }
  if (configuration.uuid) {
    encode_subsection_header(out, uuid_subsection);
    out.bytes(*configuration.uuid);
  }
}

Result<std::vector<std::string>> check_configuration(const Configuration& received,
                                                     const ConfigurationExpectations& local) {
  // QEMU compares as many bytes as came, so "pc" passes for "pc-i440fx-7.2".
  if (local.machine_name && !std::string_view(*local.machine_name).starts_with(received.machine_name)) {
    return refused(fmt::format("Machine type received is '{}' and local is '{}'", printable(received.machine_name),
                               *local.machine_name));
  }
  const std::uint32_t page_bits = received.target_page_bits.value_or(default_target_page_bits);
  if (page_bits != default_target_page_bits) {
    return refused(fmt::format("Received TARGET_PAGE_BITS is {} but local is {}", page_bits, default_target_page_bits));
  }
  if (received.capabilities) {
    for (const std::string& name : *received.capabilities) {
      if (name != capability_ignore_shared && name != capability_mapped_ram) {
        return refused(fmt::format("Received unknown capability {}", printable(name)));
      }
    }
  }
  MD_CHECK(check_capability(received, capability_ignore_shared, local.ignore_shared));
  MD_CHECK(check_capability(received, capability_mapped_ram, local.mapped_ram));
  std::vector<std::string> warnings;
  if (received.uuid && !local.uuid) warnings.emplace_back("the stream names a UUID and this machine has none");
  if (received.uuid && local.uuid && *received.uuid != *local.uuid) {
    return refused("the UUID received is not the machine's own");
  }
  return warnings;
}

}  // namespace migrationd::stream
